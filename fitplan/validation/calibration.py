"""Measures what the trace cannot know of a GPU (its CUDA context), and checks what it assumes of kernels.

A measured context stands beside a prediction, in place of one that was measured on another GPU. No prediction is
scaled: where a kernel takes other scratch memory than the trace assumes, its rule in ``trace/kernels.py`` is wrong.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fitplan.cuda import cublas_workspace
from fitplan.devices.context import MEASURED_HERE, own_contexts, read_rows
from fitplan.errors import InputError, NoUsableGpu
from fitplan.validation.process import child_for_run
from fitplan.validation.runner import Target, find_gpu
from fitplan.whole import left_out_if_damaged, write_whole

SCHEMA = "fitplan.calibration/1"


@dataclass(frozen=True)
class Kernel:
    """Scratch memory of an operator: bytes at its peak beyond what is there when it has returned."""

    name: str
    predicted: int
    measured: int


@dataclass(frozen=True)
class Calibration:
    """What was measured on a GPU.

    Attributes:
        gpu: its name.
        context_bytes: the CUDA context, with the kernels of a training step loaded; ``None`` if NVML does not tell.
        kernels: scratch memory, the workspace of cuBLAS first.
        skipped: operators that this GPU refuses, and why.
        versions: of the libraries, the driver among them.
        created: when, in UTC, as ISO 8601.

    """

    gpu: str
    context_bytes: int | None
    kernels: tuple[Kernel, ...]
    skipped: dict[str, str]
    versions: dict[str, str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.calibration/1`` document."""
        return {"schema": SCHEMA, **asdict(self), "kernels": [asdict(kernel) for kernel in self.kernels]}


def measure_gpu(target: Target, timeout: float) -> Calibration:
    """Measure a GPU, in a process of its own.

    Raises:
        ValidationFailed: the process did not come to its end.

    """
    gpu = target.gpu
    assert gpu is not None, "there is nothing to measure on the CPU"
    context, skipped = None, {}
    kernels: list[Kernel] = []
    with child_for_run("fitplan.validation.calibration_child", target.environment) as child:
        child.ask({}, timeout)
        while "done" not in (said := child.hear()):
            if "workspace" in said:
                kernels.append(Kernel("workspace of cuBLAS", cublas_workspace(gpu.capability), said["workspace"]))
            elif "context" in said:
                context = said["context"]
            elif "kernel" in said:
                kernels.append(Kernel(**said["kernel"]))
            elif "skipped" in said:
                skipped[said["skipped"]["name"]] = said["skipped"]["why"]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Calibration(gpu.name, context, tuple(kernels), skipped, said["done"]["versions"], created)


def calibrate(device: str = "cuda", timeout: float = 300) -> Calibration:
    """Measure a GPU of this machine, and keep what was measured where ``check`` finds it.

    Raises:
        NoUsableGpu: there is no such GPU.
        ValidationFailed: the measuring process did not come to its end.
        InputError: the result cannot be written.

    """
    if device == "cpu":
        raise NoUsableGpu("only a GPU can be calibrated; name one by its index, or leave device out")
    try:
        target = find_gpu(device)
    except NoUsableGpu as error:
        raise NoUsableGpu(f"a calibration runs on a GPU of this machine, and none can be used: {error}") from error
    found = measure_gpu(target, timeout)
    keep(found)
    return found


def keep(found: Calibration) -> None:
    """Write a calibration into the user's folder, in place of an earlier one of the same GPU.

    Raises:
        InputError: it cannot be written.

    """
    if found.context_bytes is not None:
        row = {
            "gpu": found.gpu,
            "bytes": found.context_bytes,
            "torch": found.versions.get("torch", "unknown"),
            "driver": found.versions.get("driver", "unknown"),
            "what": "after a training step",
            "source": f"fitplan calibrate, {found.created}",
        }
        _replace(own_contexts(), row)
    _replace(own_contexts().with_name("kernels.json"), found.to_dict())


def _replace(path: Path, row: dict[str, Any]) -> None:
    """Put a row into a JSON list, in place of those of the same GPU; a damaged list is begun anew."""
    others = [one for one in _rows(path) if one.get("gpu") != row["gpu"]]
    try:
        write_whole(path, json.dumps([*others, row], indent=1))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    with left_out_if_damaged(path, MEASURED_HERE):
        return [row for row in read_rows(path) if isinstance(row, dict)]
    return []
