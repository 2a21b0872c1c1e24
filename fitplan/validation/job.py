"""What a validation run is told, and what it tells: plain values that cross from one process to the other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from fitplan.setup import TrainingSetup


class Runner(StrEnum):
    """Who runs the training loop."""

    STEP = "step"
    TRAINER = "trainer"


def grade(*, rehearsed: bool) -> str:
    """What the figures of a run are called."""
    return "rehearsed" if rehearsed else "measured"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        model: the content of ``config.json``.
        setup: every setting.
        device: ``"cpu"`` or ``"cuda:0"``.
        runner: fitplan's own step, or ``transformers.Trainer``.
        steps: optimizer steps.
        limit_bytes: memory that the run may take; ``None`` is all there is.
        weights: folder of a checkpoint; ``None`` for random weights.
        events: file that every allocation and release is written to; ``None`` for none.
        rehearsed: whether the GPU is one that is not there.

    """

    model: Mapping[str, Any]
    setup: TrainingSetup
    device: str
    runner: Runner = Runner.STEP
    steps: int = 3
    limit_bytes: int | None = None
    weights: str | None = None
    events: str | None = None
    rehearsed: bool = False

    @property
    def grade(self) -> str:
        """What its figures are called: ``"rehearsed"`` or ``"measured"``, and never the one for the other."""
        return grade(rehearsed=self.rehearsed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**vars(self), "model": dict(self.model), "setup": self.setup.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        setup = TrainingSetup.from_dict(document["setup"])
        return cls(**{**document, "setup": setup, "runner": Runner(document["runner"])})


@dataclass(frozen=True)
class PhaseMemory:
    """One phase of one step, measured.

    Attributes:
        phase: as in :class:`fitplan.phase.Phase`.
        step: 0 in the first optimizer step.
        requested_bytes: the most that the program had asked for and not given back.
        allocated_bytes: the most in blocks handed out (``max_memory_allocated``); ``None`` on the CPU.
        reserved_bytes: the most taken from the driver (``max_memory_reserved``); ``None`` on the CPU.
        process_bytes: device memory of the process when the phase ended, by NVML; ``None`` where it does not tell.

    """

    phase: str
    step: int
    requested_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """The most in blocks handed out; on the CPU, which has none, the most that was asked for."""
        return self.requested_bytes if self.allocated_bytes is None else self.allocated_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Expectation:
    """What a run is expected to measure, told before it starts.

    Attributes:
        phases: one for each phase of the first step, and one for each of the later ones.

    """

    phases: tuple[PhaseMemory, ...]


@dataclass(frozen=True)
class OutOfMemory:
    """How far a run got that the device was too small for.

    Attributes:
        phase: in which it ended.
        step: in which optimizer step.
        message: what the allocator said.

    """

    phase: str
    step: int
    message: str


@dataclass(frozen=True)
class Measurement:
    """What a run told.

    Attributes:
        phases: in order of time.
        device: name of the device.
        versions: the libraries that ran, the driver among them where there is one.
        out_of_memory: how it ended, if it did.

    """

    phases: tuple[PhaseMemory, ...]
    device: str
    versions: Mapping[str, str]
    out_of_memory: OutOfMemory | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "phases": [phase.to_dict() for phase in self.phases],
            "device": self.device,
            "versions": dict(self.versions),
            "out_of_memory": asdict(self.out_of_memory) if self.out_of_memory else None,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        failed = document["out_of_memory"]
        return cls(
            tuple(PhaseMemory(**phase) for phase in document["phases"]),
            document["device"],
            document["versions"],
            OutOfMemory(**failed) if failed else None,
        )
