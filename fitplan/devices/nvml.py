"""The seam to NVIDIA's driver: the few functions of ``pynvml`` that fitplan calls, and what is read through them.

NVML answers without a CUDA context, so asking takes no memory from the GPU. ``pynvml`` is the module of the package
``nvidia-ml-py``; a recorded machine stands in for it in the tests.
"""
# ruff: noqa: N802, N815  the names are NVML's

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from itertools import chain
from typing import Protocol, TypeAlias, TypeVar, cast

Handle: TypeAlias = object
"""NVML's pointer to a GPU or to a MIG slice. One that NVML refused must not be passed on: it crashes the process."""


class MemoryInfo(Protocol):
    """``nvmlMemory_t``, and with ``reserved`` ``nvmlMemory_v2_t``; in bytes.

    ``used`` is left out: by some manuals it holds ``reserved`` in version 2 (R525), by others it does not (R590).
    """

    total: int
    free: int
    reserved: int


class ProcessInfo(Protocol):
    """``nvmlProcessInfo_t``; the memory is in bytes, or None where Windows manages it (WDDM, WSL2)."""

    pid: int
    usedGpuMemory: int | None


class Nvml(Protocol):
    """What is used of ``pynvml``. Each function may raise; :func:`ask` makes that a value."""

    nvmlMemory_v2: int

    def nvmlInit(self) -> None:
        """Open NVML; to be closed by ``nvmlShutdown``."""

    def nvmlShutdown(self) -> None:
        """Close what ``nvmlInit`` opened."""

    def nvmlSystemGetDriverVersion(self) -> str:
        """``"550.90.07"``."""

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        """1000 times the major and 10 times the minor version: 12040 is CUDA 12.4."""

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        """The process's first argument: a path, and for some programs a whole command line."""

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs there are, those included that cannot be talked to."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:
        """The GPU of that index; NVML counts in the order of the PCI bus."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle:
        """The GPU or the slice of that UUID."""

    def nvmlDeviceGetName(self, handle: Handle) -> str:
        """``"NVIDIA H100 80GB HBM3"``, of a slice ``"NVIDIA A100-SXM4-40GB MIG 3g.20gb"``."""

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:
        """``"GPU-…"``, of a slice ``"MIG-…"``."""

    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> MemoryInfo:
        """The memory; ``reserved`` is there only if version 2 is asked for, which drivers know since R510."""

    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle) -> tuple[int, int]:
        """``(9, 0)``."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> Sequence[ProcessInfo]:
        """Processes with a CUDA context."""

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle) -> Sequence[ProcessInfo]:
        """Processes that draw; one that does both is in both lists."""

    def nvmlDeviceGetDisplayActive(self, handle: Handle) -> int:
        """1 if a display is driven."""

    def nvmlDeviceGetCurrentEccMode(self, handle: Handle) -> int:
        """1 if error correction is on."""

    def nvmlDeviceGetMigMode(self, handle: Handle) -> Sequence[int]:
        """Current and pending mode; 1 is on."""

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int:
        """How many slices there can be. The indices of those that there are may leave gaps."""

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle:
        """The slice of that index."""


class Code(IntEnum):
    """Why NVML refuses, as far as it makes a difference (``nvmlReturn_t`` in nvml.h)."""

    NO_PERMISSION = 4
    DRIVER_NOT_LOADED = 9
    LIBRARY_NOT_FOUND = 12
    GPU_IS_LOST = 15
    LIB_RM_VERSION_MISMATCH = 18


@dataclass(frozen=True)
class Failure:
    """An answer that did not come.

    Attributes:
        code: NVML's error code; None if the bindings failed, not NVML.
        text: what the error says.

    """

    code: int | None
    text: str


Answer = TypeVar("Answer")


def ask(question: Callable[[], Answer]) -> Answer | Failure:
    """The answer, or why there is none."""
    try:
        return question()
    except Exception as error:
        # Beside NVMLError the bindings raise NVMLLibraryMismatchError, UnicodeDecodeError (a process name that is not
        # UTF-8), and TypeError or AttributeError where an old pynvml lacks a parameter or a function.
        return Failure(getattr(error, "value", None), str(error) or type(error).__name__)


def known(answer: Answer | Failure) -> Answer | None:
    """The answer, or None."""
    return None if isinstance(answer, Failure) else answer


def load() -> Nvml | None:
    """The bindings; None if ``nvidia-ml-py`` is not installed."""
    try:
        return cast("Nvml", import_module("pynvml"))
    except ImportError:
        return None


@dataclass(frozen=True)
class Memory:
    """The memory of a GPU or a MIG slice, in bytes.

    Attributes:
        total_bytes: all of it.
        free_bytes: what a new process can have, its CUDA context included.
        reserved_bytes: what driver and firmware keep; None where the driver does not tell it apart (before R510).

    """

    total_bytes: int
    free_bytes: int
    reserved_bytes: int | None

    @property
    def used_bytes(self) -> int:
        """What processes hold; with what the driver keeps where that is not told apart."""
        return self.total_bytes - self.free_bytes - (self.reserved_bytes or 0)


@dataclass(frozen=True)
class Process:
    """Another process on a GPU.

    Attributes:
        pid: as the driver counts; in a container that may be the host's number.
        name: of the program, without folder and options; None if it cannot be had.
        bytes: what it holds; None where the driver does not tell (WSL2).

    """

    pid: int
    name: str | None
    bytes: int | None


def read_memory(nvml: Nvml, handle: Handle) -> Memory | Failure:
    """The memory of a GPU or a slice; with what is reserved where the driver tells it."""
    second = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2))
    if not isinstance(second, Failure):
        return Memory(second.total, second.free, second.reserved)
    first = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return first if isinstance(first, Failure) else Memory(first.total, first.free, None)


def read_processes(nvml: Nvml, handle: Handle) -> tuple[Process, ...] | None:
    """The other processes on a GPU or a slice; None if the driver does not tell."""
    compute = known(ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    graphics = known(ask(lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)))
    if compute is None and graphics is None:
        return None
    sizes: dict[int, int | None] = {}
    for one in chain(compute or (), graphics or ()):
        if one.pid != os.getpid() and sizes.get(one.pid) is None:  # in both lists, it holds the memory once
            sizes[one.pid] = one.usedGpuMemory
    return tuple(Process(pid, _program(nvml, pid), size) for pid, size in sizes.items())


def _program(nvml: Nvml, pid: int) -> str | None:
    """The name without folder and options: some programs write their whole command line there, secrets included."""
    text = known(ask(lambda: nvml.nvmlSystemGetProcessName(pid)))
    return re.split(r"[/\\]", re.split(r"\s+-", text.strip(), maxsplit=1)[0])[-1] or None if text else None
