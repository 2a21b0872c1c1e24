"""A validation run as the app goes through it: where it can be done, how far it is, what came of it. No screen."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.detect import AUTO, Machine, Target, choose, means_this_machine, to_device
from fitplan.devices.device import Device, find_device
from fitplan.errors import DeviceNotFound, InputError, NoUsableGpu
from fitplan.tui.state import Question
from fitplan.validation.comparison import by_place
from fitplan.validation.depths import shortened
from fitplan.validation.job import Expectation, PhaseMemory
from fitplan.validation.report import Comparison
from fitplan.validation.runner import CPU

LAYERS = 2
"""A model is shortened to so many for the CPU."""


@dataclass(frozen=True)
class Place:
    """Where a question can be run.

    Attributes:
        flags: what ``fitplan validate`` is told of it.
        name: of the device.
        why: why there, and not on what was asked about; empty where it is that.

    """

    flags: Mapping[str, str]
    name: str
    why: str

    @property
    def is_shortened(self) -> bool:
        """Whether fewer layers are run, so that it says nothing of the whole model."""
        return "layers" in self.flags


def place_for(question: Question, model: ModelConfig | None, device: Device | None, machine: Machine) -> Place:
    """The GPU that was asked about if this machine has it, else its first that can be used, else the CPU.

    Args:
        question: what is asked.
        model: its model; ``None`` for one that was not fetched yet.
        device: its device; ``None`` where there is none of that name.
        machine: the GPUs of this machine.

    """
    asked = question.gpu or question.vram or ""
    with suppress(NoUsableGpu):
        if means_this_machine(asked):
            flags = {} if asked.lower() == AUTO else {"device": asked}
            return Place(flags, to_device(choose(machine, asked)).name, "")
        targets: list[Target] = [*machine.gpus, *(one for gpu in machine.gpus for one in gpu.mig)]
        for one in targets:
            if one.problem is None and device is not None and _same(to_device(one), device):
                return Place({"device": one.place}, to_device(one).name, "")
    try:
        name = to_device(choose(machine)).name
        if question.vram is not None:
            return Place({"vram": question.vram}, name, f"It may take no more than {question.vram} there.")
        return Place({}, name, f"{asked} is no GPU of this machine: the step is predicted and run for {name}.")
    except NoUsableGpu as error:
        why = f"There is no GPU to run it on: {error}."
    if not _is_long(model):
        return Place({"device": CPU}, "the CPU", why)
    return Place({"device": CPU, "layers": str(LAYERS)}, f"the CPU, with {LAYERS} layers of the model", why)


def _same(here: Device, asked: Device) -> bool:
    """Whether a GPU of this machine is of the model that was asked about."""
    with suppress(DeviceNotFound):
        here = find_device(here.name)
    return here.name == asked.name


def _is_long(model: ModelConfig | None) -> bool:
    """Whether a model can be shortened; of one that was not fetched yet nothing is known that says no."""
    try:
        return model is None or shortened(model, LAYERS).settings != model.settings
    except InputError:
        return False


class Stage(StrEnum):
    """How far a run is."""

    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One phase; of the later steps the highest.

    Attributes:
        phase: as in :class:`fitplan.phase.Phase`.
        step: 0 for the first optimizer step, 1 for all later ones.
        predicted: bytes.
        measured: bytes; ``None`` until it is.

    """

    phase: str
    step: int
    predicted: int
    measured: int | None


@dataclass(frozen=True)
class Run:
    """A run, and what is known of it so far.

    Attributes:
        place: where it is done.
        command: the command line that does it.
        stage: how far it is.
        told: what is being done, why it failed, or what could not be done beside it.
        seconds: since it was started.
        expected: what each phase is predicted to take.
        measured: the phases that are over, in order of time.
        outcome: prediction and measurement, once it has ended.

    """

    place: Place
    command: str
    stage: Stage = Stage.READY
    told: str = ""
    seconds: int = 0
    expected: tuple[PhaseMemory, ...] = ()
    measured: tuple[PhaseMemory, ...] = ()
    outcome: Comparison | None = None

    def heard(self, news: Expectation | PhaseMemory) -> Self:
        """The run with what it told."""
        if isinstance(news, PhaseMemory):
            return replace(self, measured=(*self.measured, news))
        return replace(self, expected=news.phases, measured=())

    @property
    def rows(self) -> tuple[Row, ...]:
        """The phases in the order of time: as they were compared, or as far as they are over."""
        if self.outcome is not None:
            return tuple(Row(pair.phase, pair.step, *pair.sizes) for pair in self.outcome.phases)
        known = by_place(self.measured)
        return tuple(
            Row(phase, step, one.bytes, known[phase, step].bytes if (phase, step) in known else None)
            for (phase, step), one in by_place(self.expected).items()
        )

    @property
    def peaks(self) -> tuple[int, int]:
        """The highest predicted and the highest measured bytes; 0 while none is known."""
        if self.outcome is not None and self.outcome.judged is not None:
            return self.outcome.judged.predicted, self.outcome.judged.measured
        told = self.expected, self.measured if self.outcome is None else self.outcome.measurement.phases
        predicted, measured = (max((phase.bytes for phase in phases), default=0) for phases in told)
        return predicted, measured
