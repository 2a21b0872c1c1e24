"""The recorder against an independent meter: PyTorch's own profiler, which sees what the CPU's allocator does."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from real_runs import CPU, RealRun
from torch.profiler import ProfilerActivity, profile

from fitplan.setup import TrainingSetup
from fitplan.step.architecture import load_config
from fitplan.step.distribute import distribute
from fitplan.step.model import build_skeleton, load_model
from fitplan.step.run import train
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import fresh_process


def _allocations(trees: Any) -> Any:
    for node in trees:
        if node.tag == torch._C._profiler._EventType.Allocation:
            yield node.start_time_ns, node.extra_fields.alloc_size
        yield from _allocations(node.children)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "t5"])
def test_the_profiler_sees_the_same_peak(family: str) -> None:
    """Kernels' private scratch is in the profiler's figure only; on the CPU that is the softmax of attention."""
    setup = TrainingSetup(method="full", batch_size=4, seq_len=32, attn="eager")
    config = load_config({**FAMILIES[family], "vocab_size": 4096})
    recorder = Recorder("cpu")
    skeleton = build_skeleton(config, setup, CPU)
    run = RealRun(recorder.trace)
    with fresh_process(), recorder:
        model = load_model(skeleton, config, setup, CPU, recorder.enter)
        recorder.watch(model)
        start = len(recorder.trace.events)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as meter:
            train(distribute(model, setup, CPU), config, setup, CPU, recorder.enter)
        recorder.finish()
    total = base = 0
    for place, (allocation, sign, _) in enumerate(recorder.trace.sizes()):
        total += sign * allocation.size
        base = total if place < start else base
        run.peak = max(run.peak, total - base if place >= start else 0)
    events = sorted(_allocations(meter.profiler.kineto_results.experimental_event_tree()))
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    assert peak == pytest.approx(run.peak, rel=0.005)
