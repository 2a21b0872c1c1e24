"""Instruments: how much memory a running program takes, phase by phase, on the CPU and on CUDA."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from fitplan.phase import STEP_ENDS, Phase
from fitplan.trace.recorder import Recorder
from fitplan.validation.job import PhaseMemory
from fitplan.validation.process_memory import ProcessMemory

Told = Callable[[PhaseMemory], None]
Event = tuple[int, str, int, str]
"""Bytes (negative when given back), phase, step, and who asked."""


class Meter(Protocol):
    """An instrument. It is told of every phase (:meth:`enter`) and tells of each that is over."""

    def enter(self, phase: Phase, owner: str = "", /) -> None:
        """``phase`` begins, or goes on with ``owner``."""

    def watch(self, model: torch.nn.Module) -> None:
        """The model is loaded."""

    def running(self) -> Any:
        """A context in which the program runs."""

    def finish(self) -> None:
        """The program is over."""

    @property
    def at(self) -> tuple[Phase, int]:
        """Where the program is: phase and step."""

    def events(self) -> list[Event]:
        """Every allocation and release."""


class _Phases:
    """Which phase and step the program is in."""

    def __init__(self) -> None:
        self.phase, self.step = Phase.LOAD, 0

    def moves_on(self, phase: Phase) -> bool:
        """Whether ``phase`` is another; a step begins with the forward after gradients were dropped."""
        if phase is self.phase:
            return False
        self.step += phase is Phase.FORWARD and self.phase in STEP_ENDS
        self.phase = phase
        return True


class LimitReached(Exception):
    """The run asked for more than it may take."""


class CpuMeter:
    """Counts what operators allocate on the CPU, by following every storage."""

    def __init__(self, told: Told, limit_bytes: int | None) -> None:
        self._recorder = Recorder("cpu")
        self._told, self._limit = told, limit_bytes
        self._phases = _Phases()
        self._counted = self._live = self._most = 0

    @property
    def at(self) -> tuple[Phase, int]:
        """Where the program is."""
        return self._phases.phase, self._phases.step

    def enter(self, phase: Phase, owner: str = "", /) -> None:
        """As :class:`Meter`."""
        before = self.at
        if self._phases.moves_on(phase):
            self._tell(*before)
        self._recorder.enter(phase, owner)

    def watch(self, model: torch.nn.Module) -> None:
        """As :class:`Meter`."""
        self._recorder.watch(model)

    @contextmanager
    def running(self) -> Iterator[None]:
        """As :class:`Meter`."""
        with self._recorder, self._recorder.module_calls():
            yield

    def finish(self) -> None:
        """As :class:`Meter`."""
        self._tell(*self.at)
        self._recorder.finish()

    def _tell(self, phase: Phase, step: int) -> None:
        trace = self._recorder.trace
        self._most = self._live
        for event in trace.events[self._counted :]:
            size = trace.allocations[event if event >= 0 else ~event].size
            self._live += size if event >= 0 else -size
            self._most = max(self._most, self._live)
        self._counted = len(trace.events)
        self._told(PhaseMemory(phase, step, self._most))
        if self._limit is not None and self._most > self._limit:
            self._phases.phase, self._phases.step = phase, step  # the next one does not begin
            raise LimitReached(f"{self._most} bytes were live, {self._limit} are allowed")

    def events(self) -> list[Event]:
        """As :class:`Meter`."""
        return [
            (sign * allocation.size, moment.phase, moment.step, f"{allocation.owner}: {allocation.op}")
            for allocation, sign, moment in self._recorder.trace.sizes()
        ]


class CudaMeter:
    """Reads PyTorch's own counters, its history of allocations, and NVML."""

    def __init__(
        self, told: Told, limit_bytes: int | None, device: torch.device, with_history: bool, memory: ProcessMemory
    ) -> None:
        self._told, self._device, self._with_history = told, device, with_history
        self._phases = _Phases()
        self._memory = memory
        total = torch.cuda.get_device_properties(device).total_memory
        if limit_bytes is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
        if with_history:
            torch.cuda.memory._record_memory_history(max_entries=10**7, stacks="python", context="alloc")
        torch.cuda.reset_peak_memory_stats(device)
        self._before = self._allocations()
        self._starts: list[tuple[int, Phase, int]] = [(0, Phase.LOAD, 0)]

    @property
    def at(self) -> tuple[Phase, int]:
        """Where the program is."""
        return self._phases.phase, self._phases.step

    def enter(self, phase: Phase, owner: str = "", /) -> None:  # noqa: ARG002
        """As :class:`Meter`."""
        before = self.at
        if self._phases.moves_on(phase):
            self._tell(*before)
            self._starts.append((self._allocations() - self._before, *self.at))

    def watch(self, model: torch.nn.Module) -> None:
        """As :class:`Meter`."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """As :class:`Meter`."""
        yield

    def finish(self) -> None:
        """As :class:`Meter`."""
        self._tell(*self.at)

    def _tell(self, phase: Phase, step: int) -> None:
        torch.cuda.synchronize(self._device)
        stats = torch.cuda.memory_stats(self._device)
        self._told(
            PhaseMemory(
                phase,
                step,
                stats["requested_bytes.all.peak"],
                stats["allocated_bytes.all.peak"],
                stats["reserved_bytes.all.peak"],
                self._memory.read(),
            )
        )
        torch.cuda.reset_peak_memory_stats(self._device)

    def _allocations(self) -> int:
        """How many there have been; a snapshot of the history would take seconds, once for each phase."""
        return int(torch.cuda.memory_stats(self._device)["allocation.all.allocated"])

    def _history(self) -> list[dict[str, Any]]:
        traces = torch.cuda.memory._snapshot(self._device)["device_traces"]
        return list(traces[self._device.index or 0])

    def events(self) -> list[Event]:
        """As :class:`Meter`; requested sizes, as the history tells them."""
        found: list[Event] = []
        starts = [*self._starts, (1 << 62, Phase.ZERO_GRAD, 0)]
        place = number = 0
        for entry in self._history():
            sign = {"alloc": 1, "free_completed": -1}.get(entry["action"], 0)
            while sign > 0 and number >= starts[place + 1][0]:
                place += 1
            _, phase, step = starts[place]
            number += sign > 0
            if sign:
                found.append((sign * entry["size"], phase, step, _caller(entry.get("frames", []))))
        return found


_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_INSIDE = f"{os.sep}rehearsal{os.sep}inside{os.sep}"
"""Where what runs inside a rehearsed process lies."""


def _caller(frames: list[dict[str, Any]]) -> str:
    """The innermost frame that is not PyTorch's own; a folder above it may be called so as well."""
    for frame in frames:
        name = frame["filename"]
        if not name.startswith(_TORCH) and name != "??" and _INSIDE not in name:
            return f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}"
    return ""


def write_events(events: list[Event], path: str) -> None:
    """Write them, one JSON list a line."""
    with Path(path).open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
