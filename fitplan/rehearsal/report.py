"""What came of a rehearsal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fitplan.devices.device import Device
from fitplan.verdict import Fit

SCHEMA = "fitplan.rehearse/1"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Allocations of one kind that are live at the peak.

    Attributes:
        category: what they hold.
        phase: when they were made.
        where: the line that asked for them, the innermost that is not PyTorch's.
        bytes: of all of them.
        count: how many.

    """

    category: str
    phase: str
    where: str
    bytes: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The moment at which most is allocated.

    Attributes:
        phase: what the program was doing: ``"load"``, ``"forward"``, ``"backward"`` or ``"optimizer"``.
        step: of the training, from 1.
        where: the line that asked for the last block.
        categories: bytes by what they hold; they sum to the peak.
        largest: the largest groups of allocations.

    """

    phase: str
    step: int
    where: str
    categories: Mapping[str, int]
    largest: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process.

    Attributes:
        rank: its number among its equals.
        steps: optimizer steps that it did.
        peak_allocated_bytes: as ``torch.cuda.max_memory_allocated()`` has it, over the whole run.
        peak_reserved_bytes: as ``torch.cuda.max_memory_reserved()``.
        device_bytes: the most that it took of the GPU, its CUDA context in.
        retries: how often the allocator had to give back what it kept, to find room.
        peak: what the peak is made of.
        phases: name, step, and the most allocated and reserved in each, in order of time.
        timeline: points of event, allocated and reserved bytes, and where phases begin.

    """

    rank: int
    steps: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int
    retries: int
    peak: Peak
    phases: tuple[Mapping[str, Any], ...] = ()
    timeline: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_account(cls, account: Mapping[str, Any]) -> "Rank":
        """From what the process wrote of itself."""
        names = set(cls.__dataclass_fields__) - {"peak", "phases"}
        peak = account["peak"]
        groups = tuple(Group(**one) for one in peak["largest"])
        return cls(
            peak=Peak(**{**peak, "largest": groups}),
            phases=tuple(account["phases"]),
            **{name: account[name] for name in names},
        )


@dataclass(frozen=True, kw_only=True)
class RehearsalReport:
    """A program that was run on a GPU that is not there.

    Attributes:
        gpu: the GPU.
        count: how many of it the program was shown.
        world: ranks that there are, of which these are the first; ``None`` where these are all.
        command: the program and its arguments.
        ranks: what each process took, by rank; none where no process used CUDA.
        out_of_memory: of the first process that ran out of memory: what was asked for, and what held the memory.
        exit_code: of the program, where it ended by itself; ``None`` where it was ended after its steps.
        without_rule: functions that were called for which the stand-ins have no rule; they answered success.
        assumed: what could not be known, and how often it was asked for.
        versions: of the libraries that ran.
        last_words: the end of what it wrote to stderr, where it failed.

    """

    gpu: Device
    count: int
    command: tuple[str, ...]
    ranks: tuple[Rank, ...]
    out_of_memory: Mapping[str, Any] | None
    exit_code: int | None
    without_rule: tuple[str, ...]
    assumed: Mapping[str, int]
    versions: Mapping[str, str]
    last_words: str = ""
    world: int | None = None

    @property
    def fit(self) -> Fit:
        """Whether it got through: *tight* if the allocator had to give back what it kept."""
        if self.out_of_memory is not None:
            return Fit.DOES_NOT_FIT
        return Fit.TIGHT if any(rank.retries for rank in self.ranks) else Fit.FITS

    @property
    def failed(self) -> bool:
        """Whether the program ended in an error that is not about memory."""
        return bool(self.exit_code) and self.out_of_memory is None

    @property
    def fullest(self) -> Rank | None:
        """The process that took most."""
        return max(self.ranks, key=lambda rank: rank.device_bytes, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.rehearse/1`` document. Keys are added, never renamed; sizes are bytes."""
        return {
            "schema": SCHEMA,
            "gpu": {**self.gpu.to_dict(), "count": self.count},
            "world_size": self.world or self.count,
            "command": list(self.command),
            "verdict": None if self.failed else str(self.fit),
            "ranks": [asdict(rank) for rank in self.ranks],
            "out_of_memory": dict(self.out_of_memory) if self.out_of_memory else None,
            "exit_code": self.exit_code,
            "without_rule": list(self.without_rule),
            "assumed": dict(self.assumed),
            "provenance": {"source": "rehearsed", "versions": dict(self.versions)},
        }
