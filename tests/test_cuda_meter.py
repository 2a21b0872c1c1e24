"""The instrument for CUDA, on a stand-in: a step on the CPU whose storages go through the model of the allocator.

The history has the form that ``torch.cuda.memory._snapshot`` describes (torch/cuda/memory.py): allocations and frees
with requested sizes, segments and requests to free between them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers.models.llama import modeling_llama

from fitplan.allocator.caching import CachingAllocator
from fitplan.allocator.replay import replay
from fitplan.cli.main import main
from fitplan.configs.resolve import ModelConfig
from fitplan.devices.detect import DetectedGpu, State
from fitplan.devices.nvml import Memory
from fitplan.setup import TrainingSetup
from fitplan.step.job import Place
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import fresh_process
from fitplan.tracer import trace_job
from fitplan.units import MIB
from fitplan.validation import child, process_memory, records, runner
from fitplan.validation.comparison import comparable, differences, first_difference, measured_births, predicted_births
from fitplan.validation.job import Job, Measurement, PhaseMemory

SETUP = TrainingSetup(method="lora", batch_size=2, seq_len=16)
CONTEXT = 500 * MIB
TOTAL = 1 << 33
LAYER = "/opt/torch/.venv/lib/python3.12/site-packages/transformers/models/llama/modeling_llama.py"
FRAMES = [
    {"filename": "??", "line": 0, "name": "??"},
    {"filename": str(Path(torch.nn.__file__).parent / "modules" / "module.py"), "line": 1, "name": "_call_impl"},
    {"filename": LAYER, "line": 7, "name": "forward"},
]
"""As on a machine whose libraries lie in a folder called torch."""


class _Cuda:
    """``torch.cuda``, as far as it is asked, on top of a recorder for the CPU."""

    def __init__(self) -> None:
        self.recorder = Recorder("cpu")
        self._allocator = CachingAllocator()
        self._blocks: dict[int, Any] = {}
        self._read = self._allocations = 0
        self._peaks = [0, 0, 0]
        self.history: list[dict[str, Any]] = []
        self.most_entries = 0
        self.fraction = 1.0

    def _catch_up(self) -> None:
        trace = self.recorder.trace
        for event in trace.events[self._read :]:
            if event >= 0:
                size = trace.allocations[event].size
                if not size:  # a tensor of no bytes asks for no block
                    continue
                self._blocks[event] = self._allocator.malloc(size)
                self._allocations += 1
                self.history += [
                    {"action": "segment_alloc", "addr": 1, "size": 2 * MIB, "stream": 0},
                    {"action": "alloc", "addr": 1, "size": size, "stream": 0, "time_us": 1, "frames": FRAMES},
                ]
            elif ~event in self._blocks:
                size = trace.allocations[~event].size
                self._allocator.free(self._blocks.pop(~event))
                self.history += [
                    {"action": action, "addr": 1, "size": size, "stream": 0}
                    for action in ("free_requested", "free_completed")
                ]
            now = (self._allocator.requested, self._allocator.allocated, self._allocator.reserved)
            self._peaks = list(map(max, self._peaks, now))
        self._read = len(trace.events)

    def memory_stats(self, device: Any) -> dict[str, int]:
        self._catch_up()
        names = ("requested_bytes", "allocated_bytes", "reserved_bytes")
        peaks = dict(zip((f"{name}.all.peak" for name in names), self._peaks, strict=True))
        return peaks | {"allocation.all.allocated": self._allocations}

    def reset_peak_memory_stats(self, device: Any) -> None:
        self._catch_up()
        self._peaks = [self._allocator.requested, self._allocator.allocated, self._allocator.reserved]

    def record_memory_history(self, *, max_entries: int, stacks: str, context: str) -> None:
        assert (stacks, context) == ("python", "alloc")
        self.most_entries = max_entries

    def snapshot(self, device: Any) -> dict[str, Any]:
        self._catch_up()
        return {"segments": [], "device_traces": [self.history]}

    def set_fraction(self, fraction: float, device: Any) -> None:
        self.fraction = fraction


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Cuda]:
    fake = _Cuda()
    for name, stand_in in {
        "get_device_properties": lambda device: SimpleNamespace(total_memory=TOTAL),
        "get_device_name": lambda device: "NVIDIA H100 80GB HBM3",
        "synchronize": lambda device: None,
        "memory_stats": fake.memory_stats,
        "reset_peak_memory_stats": fake.reset_peak_memory_stats,
        "set_per_process_memory_fraction": fake.set_fraction,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", fake.record_memory_history)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", fake.snapshot)
    monkeypatch.setattr("fitplan.step.job.Place", lambda *_: Place("cpu", "cpu"))
    monkeypatch.setattr(
        process_memory,
        "ProcessMemory",
        lambda: SimpleNamespace(read=lambda: CONTEXT + fake._allocator.reserved),
    )
    with fresh_process():
        yield fake


def _run(fake: _Cuda, events: Path | None, **changes: Any) -> dict[str, Any]:
    """What the process of a run says, by what it is about; the phases as a list."""
    said: dict[str, Any] = {"phases": []}

    def say(**what: Any) -> None:
        if "phase" in what:
            said["phases"].append(PhaseMemory(**what["phase"]))
        else:
            said.update(json.loads(json.dumps(what)))

    job = Job(model=FAMILIES["llama"], setup=SETUP, device="cuda:0", events=str(events) if events else None, **changes)
    with fake.recorder:
        fake.recorder._accumulation.learn("cpu")  # which a program that is not watched is not there to tell
        child._run(job, say)
    return said


def test_it_measures_what_the_allocator_does(cuda: _Cuda, tmp_path: Path) -> None:
    """Phase by phase as predicted: of the same run, not the same device."""
    said = _run(cuda, tmp_path / "events")
    phases = said["phases"]
    assert [(one.phase, one.step) for one in phases[:8]] == [
        ("load", 0), ("prepare", 0), ("forward", 0), ("backward", 0), ("clip", 0), ("optimizer", 0), ("zero_grad", 0),
        ("forward", 1),
    ]  # fmt: skip
    assert phases[-1].step == 2
    trace = cuda.recorder.trace
    peaks = replay(trace).peaks
    assert max(one.allocated_bytes for one in phases) == peaks.peak_allocated_bytes
    assert max(one.requested_bytes for one in phases) == peaks.peak_requested_bytes
    assert max(one.reserved_bytes for one in phases) == peaks.peak_reserved_bytes
    assert phases[-1].process_bytes == CONTEXT + peaks.reserved_bytes
    assert said["done"]["device"] == "NVIDIA H100 80GB HBM3"
    assert cuda.most_entries >= 10**7


def test_its_history_is_that_of_the_trace(cuda: _Cuda, tmp_path: Path) -> None:
    events = tmp_path / "events"
    _run(cuda, events)
    trace = trace_job(ModelConfig("llama", "given", FAMILIES["llama"]), SETUP, None, lambda _: None).trace
    found = list(measured_births(str(events)))
    batches = {one[2] for one in predicted_births(trace) if one[3].startswith(("batch ", "labels of batch "))}
    known, births = (
        [one for one in comparable(some, all_in_first=True, on_cpu=True) if one[2] not in batches]
        for some in (predicted_births(trace), found)
    )
    assert len(births) > 500
    assert differences(known, births) == []
    assert first_difference(known, births) is None
    assert {one[3] for one in births} == {"modeling_llama.py:7 forward"}


def test_without_a_history_nothing_is_recorded(cuda: _Cuda) -> None:
    _run(cuda, None)
    assert cuda.most_entries == 0


def test_a_limit_is_a_share_of_the_memory(cuda: _Cuda) -> None:
    _run(cuda, None, limit_bytes=TOTAL // 4)
    assert cuda.fraction == 0.25


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_whoever_runs_out_of_memory_it_is_a_result(
    words: str, cuda: _Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise (torch.OutOfMemoryError if words.startswith("CUDA out") else RuntimeError)(words)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    said = _run(cuda, tmp_path / "events")
    assert (said["out_of_memory"]["phase"], said["out_of_memory"]["step"]) == ("clip", 0)
    assert said["done"]
    assert (tmp_path / "events").stat().st_size


def test_another_error_is_none(cuda: _Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        _run(cuda, None)


def test_a_report_compares_all_four_quantities(
    cuda: _Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From the prediction for a GPU to the record; what the run takes besides is told with who asked for it."""
    forward = modeling_llama.LlamaMLP.forward

    def hungry(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        torch.empty(4321, dtype=torch.uint8)
        return forward(layer, hidden)

    def measured(job: Job, **_: Any) -> Measurement:
        assert job.events is not None
        monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", hungry)
        said = _run(cuda, Path(job.events), runner=job.runner)
        return Measurement(tuple(said["phases"]), said["done"]["device"], said["done"]["versions"])

    monkeypatch.setattr(runner, "measure", measured)
    monkeypatch.setattr(runner, "detect", lambda: None)
    h100 = DetectedGpu(
        0, State.OK, uuid="GPU-1", name="NVIDIA H100 80GB HBM3", memory=Memory(80 << 30, 79 << 30, 0), capability=(9, 0)
    )
    monkeypatch.setattr(runner, "choose", lambda *_: h100)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(FAMILIES["llama"]))
    code = main(["validate", str(config), "--method", "lora", "--batch-size", "2", "--seq-len", "16", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code in (0, 4)
    assert document["run"]["device"] == "cuda:0"
    found = {one["name"]: one for one in document["quantities"]}
    assert list(found) == ["peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_bytes"]
    assert found["device_bytes"]["measured"] - found["peak_reserved_bytes"]["measured"] == CONTEXT
    assert found["device_bytes"]["predicted"] > found["peak_reserved_bytes"]["predicted"] > 64 * MIB
    workspaces = [one for one in document["differences"] if one["bytes"] == 32 * MIB]
    assert [(one["predicted"], one["measured"]) for one in workspaces] == [(1, 0), (1, 0)]
    besides = [one for one in document["differences"] if one["bytes"] == 4321]
    assert besides
    for one in besides:
        assert one["predicted"] == 0
        assert one["measured"] == FAMILIES["llama"]["num_hidden_layers"]  # in forward, and when it is run again
        assert "modeling_llama.py" in one["measured_by"]
    (record,) = records.own_records().glob("*.json")
    assert json.loads(record.read_text())["measurement"] == document["measurement"]


# --- what is told beside ----------------------------------------------------------------------------------------------


def test_what_libraries_print_is_no_answer() -> None:
    """Those in C write to the file, past ``sys.stdout``."""
    code = (
        "import os, sys\nfrom fitplan.process import serve\n"
        "def run(question, say):\n os.write(1, b'from C')\n print('from Python')\n say(answer=question)\n"
        "sys.exit(serve(run))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": _root()}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    with process:
        process.stdin.write('"why"\n')
        process.stdin.flush()  # and not closed: who asks waits for the answer
        assert process.wait(timeout=60) == 0
        answer, told = process.communicate()
    assert answer == '{"answer": "why"}\n'
    assert "from C" in told
    assert "from Python" in told


def _root() -> str:
    return str(Path(runner.__file__).parents[2])
