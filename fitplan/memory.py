"""From a trace to a memory estimate: the peak, its moment, and where the memory goes."""

from dataclasses import dataclass
from typing import Any

from fitplan.cuda import GRANULE, LARGE_BLOCK
from fitplan.phase import Phase
from fitplan.trace.events import Category, Layer, Moment, Trace, moment_name


@dataclass(frozen=True)
class MemoryMoment:
    """The highest point of one named moment.

    Attributes:
        name: e.g. ``"backward of layer 31"``.
        bytes: allocated at that point.
        breakdown: the same by category; sums to ``bytes``.

    """

    name: str
    breakdown: dict[Category, int]

    @property
    def bytes(self) -> int:
        """Allocated at that point."""
        return sum(self.breakdown.values())


@dataclass(frozen=True)
class AllocatorOverhead:
    """What PyTorch's caching allocator adds to the blocks that the program asks for.

    Attributes:
        unsplit_bytes: rests of up to 1 MiB a block that it hands out along; they count as allocated.
        cached_bytes: the most that it reserves beyond the most that is allocated.
        spread_bytes: how far the two may be off together; 0 where the very run was replayed.
        kept_bytes: what of ``cached_bytes`` it cannot do without, found by replays with less and less to reserve; so
            much is the rest given back under pressure. ``None`` where that was not replayed.

    """

    unsplit_bytes: int
    cached_bytes: int
    spread_bytes: int = 0
    kept_bytes: int | None = None

    @property
    def bytes(self) -> int:
        """Both together."""
        return self.unsplit_bytes + self.cached_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training run needs.

    Attributes:
        peak: the highest of all moments.
        moments: the highest point of each kind of moment, in the order in which they first come.
        large_blocks: allocations above 1 MiB that live at the peak.
        allocator: what the caching allocator adds; ``None`` where it is not known.
        paged_bytes: optimizer states in managed memory, which moves to the host where the GPU has no room.
        gpus: of how many GPUs this is one.

    """

    peak: MemoryMoment
    moments: tuple[MemoryMoment, ...]
    large_blocks: int
    allocator: AllocatorOverhead | None = None
    paged_bytes: int = 0
    gpus: int = 1

    def agrees_with(self, other: "MemoryEstimate") -> bool:
        """Whether both say the same, but for which of several equally high points stands for a moment."""
        ours, theirs = ([moment.bytes for moment in one.moments] for one in (self, other))
        same_peak = (self.peak.bytes, self.large_blocks) == (other.peak.bytes, other.large_blocks)
        return ours == theirs and same_peak

    @property
    def peak_reserved_bytes(self) -> int | None:
        """What ``torch.cuda.max_memory_reserved()`` would say: the segments that the caching allocator holds."""
        return None if self.allocator is None else self.peak_allocated_bytes + self.allocator.bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """What ``torch.cuda.max_memory_allocated()`` would say but for unsplit rests: blocks rounded to 512 bytes."""
        return self.peak.bytes

    @property
    def peak_moment(self) -> str:
        """The name of the moment that peaks."""
        return self.peak.name

    @property
    def breakdown(self) -> dict[Category, int]:
        """Bytes by category at the peak; they sum to ``peak_allocated_bytes``."""
        return self.peak.breakdown

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; sizes are bytes."""
        return {
            "peak_allocated_bytes": self.peak_allocated_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "paged_bytes": self.paged_bytes,
            "peak_moment": self.peak_moment,
            "breakdown": dict(self.breakdown),
            "moments": [
                {"name": moment.name, "bytes": moment.bytes, "breakdown": dict(moment.breakdown)}
                for moment in self.moments
            ],
        }


def estimate_trace(trace: Trace, granule: int = GRANULE) -> MemoryEstimate:
    """The estimate that a trace gives; blocks are rounded up to ``granule`` bytes."""
    live: dict[Category, int] = dict.fromkeys(Category, 0)
    total = large = best = best_large = 0
    best_moment: Moment | None = None
    highest: dict[tuple[Phase, str], tuple[int, Moment, dict[Category, int]]] = {}
    for allocation, sign, moment in trace.sizes():
        size = -(-allocation.size // granule) * granule
        live[allocation.category] += sign * size
        total += sign * size
        large += sign * (size > LARGE_BLOCK)
        if sign < 0:
            continue
        key = (moment.phase, moment.part)
        found = highest.get(key)
        if found is None or total > found[0]:
            highest[key] = (total, moment, dict(live))
        if total > best:
            best, best_large, best_moment = total, large, moment
    assert best_moment is not None, "an empty trace has no peak"
    moments = {key: MemoryMoment(moment_title(moment, trace), split) for key, (_, moment, split) in highest.items()}
    peak = moments[(best_moment.phase, best_moment.part)]
    return MemoryEstimate(peak, tuple(moments.values()), best_large)


def moment_title(moment: Moment, trace: Trace) -> str:
    """The moment's name; the stack of a layer is told only where there are several."""
    layer = moment.layer
    if layer is not None:
        stacks = [stack for stack, depth in trace.stacks.items() if depth > 1]
        side = next((part for part in layer.stack.split(".") if part in ("encoder", "decoder")), layer.stack)
        layer = Layer(side if len(stacks) > 1 else "", layer.index)
    return moment_name(moment.phase, moment.part, layer)
