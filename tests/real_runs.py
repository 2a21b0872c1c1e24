"""The same training step three times: traced, run for real on the CPU, and run by ``transformers.Trainer``."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.state import AcceleratorState

from fitplan.phase import Phase
from fitplan.setup import TrainingSetup
from fitplan.step.architecture import load_config, task_of
from fitplan.step.batch import make_batch
from fitplan.step.distribute import distribute
from fitplan.step.job import Place
from fitplan.step.model import build_skeleton, load_model
from fitplan.step.run import train
from fitplan.trace.events import Trace
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import fresh_process, trace_training
from fitplan.validation.job import Job, Runner
from fitplan.validation.loop import with_trainer

CPU = Place("cpu", "cpu")


def traced(settings: dict[str, Any], setup: TrainingSetup) -> Trace:
    """The step on the meta device, with the kernels of the CPU, every layer traced."""
    return trace_training(load_config(settings), setup, None, full_depth=True).trace


@dataclass
class RealRun:
    """A run on the CPU with real tensors.

    Attributes:
        trace: everything that was allocated and released.
        live: bytes beyond the loaded model when each optimizer step begins, and when it ends.
        peak: the most bytes beyond the loaded model.
    """

    trace: Trace
    live: list[tuple[Phase, int]] = field(default_factory=list)
    peak: int = 0


def our_run(settings: dict[str, Any], setup: TrainingSetup, steps: int = 2) -> RealRun:
    """fitplan's own step."""

    def go(model: Any, config: Any, recorder: Recorder, note: Any) -> None:
        def observe(phase: Phase, owner: str = "", /) -> None:
            if phase in (Phase.OPTIMIZER, Phase.ZERO_GRAD):
                note(phase)
            recorder.enter(phase, owner)

        with recorder.module_calls():
            train(distribute(model, setup, CPU), config, setup, CPU, observe, steps=steps, micro_batches=2)

    return _recorded(settings, setup, go)


def trainer_run(settings: dict[str, Any], setup: TrainingSetup, steps: int = 2) -> RealRun:
    """The step of ``transformers.Trainer``, with the same model and batches."""

    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision of an earlier Trainer
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    job = Job(model=settings, setup=setup, device="cpu", runner=Runner.TRAINER, steps=steps)

    def go(model: Any, config: Any, recorder: Recorder, note: Any) -> None:
        def observe(phase: Phase, owner: str = "", /) -> None:
            if phase in (Phase.OPTIMIZER, Phase.ZERO_GRAD):
                note(phase)

        with_trainer(job, model, config, CPU, observe)

    return _recorded(settings, setup, go)


def training_events(trace: Trace) -> list[tuple[bool, int, Phase, int]]:
    """Births and releases in the training phases, in order, as (born, bytes, phase, step).

    Left out, or made equal, because it is not the same on a real CPU:
    - loading and preparing: there the CPU builds bitsandbytes' code tables and peft's adapters itself, on a GPU the
      host does;
    - the batch, which a real job builds on the host: on the CPU the host is the device;
    - scalars of up to 16 bytes: meta kernels of ``all`` and the like are written with more of them;
    - statistics of layer norms: the CPU keeps them in the input's type, CUDA and meta in float32;
    - the order of releases between two births: it follows hash tables and changes nothing.
    """
    left_out: set[int] = set()
    events: list[tuple[bool, int, Phase, int]] = []
    releases: list[tuple[bool, int, Phase, int]] = []
    for event, moment in zip(trace.events, trace.moments, strict=True):
        number = event if event >= 0 else ~event
        allocation = trace.allocations[number]
        loading = moment.phase in (Phase.LOAD, Phase.PREPARE)
        batch = moment.phase in (Phase.FORWARD, Phase.EVALUATION) and (
            not allocation.owner or "batch" in allocation.owner
        )
        if event >= 0 and (loading or batch or allocation.size <= 16):
            left_out.add(number)
        if number in left_out or loading:
            continue
        statistics = "native_layer_norm." in allocation.op and allocation.size <= 192
        item = (event >= 0, 0 if statistics else allocation.size, moment.phase, moment.step)
        if event < 0:
            releases.append(item)
            continue
        events += [*sorted(releases), item]
        releases = []
    return events + sorted(releases)


def batch_bytes(settings: dict[str, Any], setup: TrainingSetup) -> int:
    """Bytes of one micro-batch."""
    config = load_config(settings)
    batch = make_batch(config, task_of(config, setup), setup, "cpu")
    return sum(tensor.nbytes for tensor in batch.values())


def _recorded(settings: dict[str, Any], setup: TrainingSetup, go: Any) -> RealRun:
    torch.manual_seed(0)
    config = load_config(settings)
    skeleton = build_skeleton(config, setup, CPU)
    recorder = Recorder("cpu")
    run = RealRun(recorder.trace)
    with fresh_process(), recorder:
        model = load_model(skeleton, config, setup, CPU, recorder.enter)
        recorder.watch(model)
        recorder._accumulation.learn("cpu")  # Trainer's run tells no phases, at which the recorder would learn it
        base, start = _live(recorder), len(recorder.trace.events)
        go(model, config, recorder, lambda phase: run.live.append((phase, _live(recorder) - base)))
        recorder.finish()
    total = 0
    for place, (allocation, sign, _) in enumerate(recorder.trace.sizes()):
        total += sign * allocation.size
        if place >= start:
            run.peak = max(run.peak, total - base)
    return run


def _live(recorder: Recorder) -> int:
    return sum(recorder.trace.allocations[number].size for _, number in recorder._live.values())
