"""Calibration without a GPU: what is kept, who finds it, and what the probes are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fitplan
from fitplan.cli.main import main
from fitplan.devices.context import context_on, own_contexts
from fitplan.devices.device import find_device
from fitplan.errors import NoUsableGpu
from fitplan.trace.kernels import Gpu
from fitplan.units import MIB
from fitplan.validation import calibration
from fitplan.validation.calibration import Calibration, Kernel, calibrate
from fitplan.validation.probes import PROBES, predicted_scratch
from fitplan.validation.runner import Target

FOUND = Calibration(
    "H100 80GB HBM3",
    700 * MIB,
    (Kernel("workspace of cuBLAS", 32 * MIB, 32 * MIB), Kernel("embedding backward", 4096, 4608)),
    {"attention, cuDNN": "no such kernel"},
    {"torch": "2.11.0", "driver": "580.1"},
    "2026-01-01T00:00:00+00:00",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "find_gpu", lambda _: Target("cuda:0", find_device("h100"), {}))


def _calibrated(monkeypatch: pytest.MonkeyPatch, found: Calibration) -> None:
    monkeypatch.setattr(calibration, "measure_gpu", lambda *_: found)
    assert calibrate() == found


def _device_bytes() -> int:
    report = fitplan.check("smollm2-135m", gpu="h100", method="full", seq_len=64)
    memory = report.plans[0].memory
    return memory.bytes


def test_a_measured_context_is_what_check_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    before, without = _device_bytes(), context_on(find_device("h100")).bytes
    _calibrated(monkeypatch, FOUND)
    context = context_on(find_device("h100"))
    assert (context.bytes, context.spread_bytes) == (700 * MIB, 0)
    assert context.source == "measured here, torch 2.11.0, driver 580.1"
    assert _device_bytes() - before == 700 * MIB - without
    assert context_on(find_device("4090")).bytes != 700 * MIB


def test_a_later_calibration_replaces_the_earlier_and_keeps_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _calibrated(monkeypatch, FOUND)
    other = Calibration("A100-SXM4-80GB", 500 * MIB, (), {}, {}, FOUND.created)
    _calibrated(monkeypatch, other)
    again = Calibration(FOUND.gpu, 600 * MIB, (), {}, {}, FOUND.created)
    _calibrated(monkeypatch, again)
    rows = json.loads(own_contexts().read_text())
    assert [(row["gpu"], row["bytes"]) for row in rows] == [(other.gpu, 500 * MIB), (FOUND.gpu, 600 * MIB)]
    shipped = json.loads((Path(fitplan.__file__).parents[1] / "profiles/gpus/contexts.json").read_text())
    assert set(rows[0]) >= set(shipped[0])
    assert len(json.loads(own_contexts().with_name("kernels.json").read_text())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"gpu": "H100 80GB HBM3"}]', '{"gpu": 1}'])
def test_a_damaged_file_is_no_measurement(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = context_on(find_device("h100"))
    own_contexts().parent.mkdir(parents=True, exist_ok=True)
    own_contexts().write_text(damage)
    assert context_on(find_device("h100")) == without
    _calibrated(monkeypatch, FOUND)
    assert context_on(find_device("h100")).bytes == 700 * MIB


def test_the_command_shows_both_sides(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(calibration, "measure_gpu", lambda *_: FOUND)
    assert main(["calibrate"]) == 0
    shown = capsys.readouterr().out
    assert "CUDA context: 700.0 MiB" in shown
    assert "+512 bytes" in shown
    assert main(["calibrate", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "fitplan.calibration/1"
    assert document["kernels"][1] == {"name": "embedding backward", "predicted": 4096, "measured": 4608}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def none(_: str) -> Target:
        raise NoUsableGpu("no NVIDIA driver runs on this machine")

    monkeypatch.setattr(calibration, "find_gpu", none)
    assert main(["calibrate"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("fitplan: error: a calibration runs on a GPU of this machine")
    assert said.endswith("no NVIDIA driver runs on this machine\n")
    assert said.count("\n") == 1
    assert main(["calibrate", "--device", "cpu"]) == 3


def _measured_by(monkeypatch: pytest.MonkeyPatch, step: Any, scratch: Any) -> dict[str, Any]:
    """What the measuring process says, with steps and operators that end as told."""
    from fitplan.validation import calibration_child, loop, probes, process_memory

    monkeypatch.setattr(process_memory, "ProcessMemory", lambda: SimpleNamespace(read=lambda: 900 * MIB))
    monkeypatch.setattr(loop, "run", step)
    monkeypatch.setattr(probes, "measured_workspace", lambda device: 32 * MIB)
    monkeypatch.setattr(probes, "measured_scratch", scratch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300 * MIB)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    said: dict[str, Any] = {"kernel": [], "skipped": []}

    def say(**what: Any) -> None:
        for name, value in what.items():
            if isinstance(said.get(name), list):
                said[name].append(value)
            else:
                said[name] = value

    calibration_child._calibrate({}, say)
    return said


def test_the_context_is_what_the_allocator_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    methods: list[str] = []
    said = _measured_by(monkeypatch, lambda job, *_: methods.append(str(job.setup.method)), lambda *_: 7)
    assert methods == ["full", "qlora"]
    assert (said["context"], said["workspace"]) == (600 * MIB, 32 * MIB)
    assert {one["name"] for one in said["kernel"]} == set(PROBES)
    assert all(one["measured"] == 7 for one in said["kernel"])
    assert said["skipped"] == []
    assert said["done"]["versions"]["torch"]


def test_what_does_not_work_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context without the kernels of a step would be too small: it is not told."""

    def step(job: Any, *_: Any) -> None:
        if job.setup.method == "qlora":
            raise OSError("libbitsandbytes_cuda130.so: cannot open shared object file")

    def scratch(prepare: Any, device: Any) -> int:
        if prepare is PROBES["attention, cuDNN"]:
            raise RuntimeError("No available kernel.\n Aborting execution.")
        return 7

    said = _measured_by(monkeypatch, step, scratch)
    assert said["context"] is None
    assert [one["name"] for one in said["skipped"]] == ["a training step, qlora", "attention, cuDNN"]
    assert said["skipped"][1]["why"] == "RuntimeError: No available kernel. Aborting execution."
    assert {one["name"] for one in said["kernel"]} == set(PROBES) - {"attention, cuDNN"}


BESIDE_THE_RULES = {"attention, memory-efficient": 16, "embedding backward": -16}
"""Bytes: seed and offset of dropout, which CUDA keeps on the host where there is none; two counts that are left out."""


def test_probes_take_what_an_h100_and_an_h200_took() -> None:
    """cuDNN's attention has no rule of its own: its workspace is flash's scratch and 248 bytes in these probes."""
    measured = json.loads((Path(fitplan.__file__).parents[1] / "profiles/measured/calibrations.json").read_text())
    assert {found["gpu"] for found in measured} == {"H100 80GB HBM3", "H200"}
    predicted = {name: predicted_scratch(prepare, Gpu((9, 0))) for name, prepare in PROBES.items()}
    for found in measured:
        for kernel in found["kernels"]:
            name = kernel["name"]
            if name in PROBES and "cuDNN" not in name and "as chosen" not in name:
                assert predicted[name] == kernel["measured"] + BESIDE_THE_RULES.get(name, 0), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_kernels_take_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitplan.validation.runner import find_gpu

    found = calibration.measure_gpu(find_gpu("cuda"), 300)
    assert found.context_bytes is None or 100 * MIB < found.context_bytes < 2048 * MIB
    for kernel in found.kernels:
        if "cuDNN" not in kernel.name and "as chosen" not in kernel.name:
            assert kernel.measured == pytest.approx(kernel.predicted, rel=0.02, abs=4096), kernel.name
