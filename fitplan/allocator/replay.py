"""A trace, replayed through the model of the caching allocator.

A trace holds two steps; all later ones ask for the same. What they get is another matter: blocks that were cut up by
the first steps may not hold what the third one asks for, which then takes new segments. So the second step is replayed
again until that takes nothing more from the driver.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fitplan.allocator.blocks import Block
from fitplan.allocator.caching import CachingAllocator
from fitplan.allocator.settings import AllocatorSettings
from fitplan.cuda import rounded
from fitplan.memory import AllocatorOverhead, moment_title
from fitplan.trace.events import Trace


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The request that could not be served.

    Attributes:
        requested_bytes: what was asked for.
        allocated_bytes: in blocks handed out, at that time.
        reserved_bytes: taken from the driver, after the cache was emptied.
        moment: when it happened, e.g. ``"backward of layer 31"``.

    """

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    moment: str


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What the caching allocator made of a stream of events; all peaks are those of the part that ran.

    Attributes:
        peak_allocated_bytes: blocks handed out, as ``torch.cuda.max_memory_allocated``. They include the remainders of
            up to 1 MiB that the pool of large blocks does not split off.
        peak_blocks_bytes: what the program asked for, each block rounded up to 512 bytes.
        peak_requested_bytes: what the program asked for, as ``requested_bytes.all.peak`` in ``memory_stats``.
        peak_reserved_bytes: taken from the driver, as ``torch.cuda.max_memory_reserved``.
        reserved_at_peak_allocated: reserved bytes when the allocated bytes first peaked.
        inactive_split_bytes: cached pieces of segments partly in use when the reserved bytes first peaked:
            fragmentation that emptying the cache does not cure. Always 0 with expandable segments, as in PyTorch.
        large_blocks: blocks above 1 MiB that lived when the allocated bytes first peaked.
        segments: held at the end.
        reserved_event: the event at which the reserved bytes first peaked; -1 if nothing was allocated.
        releases_under_pressure: how often the cache was emptied because the limit was reached.
        failed_event: the event whose request could not be served, -1 if all were.
        allocated_bytes: at the end.
        reserved_bytes: at the end.

    """

    peak_allocated_bytes: int
    peak_blocks_bytes: int
    peak_requested_bytes: int
    peak_reserved_bytes: int
    reserved_at_peak_allocated: int
    inactive_split_bytes: int
    large_blocks: int
    segments: int
    reserved_event: int
    releases_under_pressure: int
    failed_event: int
    allocated_bytes: int
    reserved_bytes: int

    @property
    def overhead(self) -> AllocatorOverhead:
        """What the allocator added to the blocks of the program."""
        unsplit = self.peak_allocated_bytes - self.peak_blocks_bytes
        return AllocatorOverhead(unsplit, self.peak_reserved_bytes - self.peak_allocated_bytes)


@dataclass(frozen=True)
class Replay:
    """What the caching allocator made of a trace.

    Attributes:
        peaks: the numbers.
        reserved_moment: when the reserved bytes first peaked; ``""`` if nothing was allocated.
        out_of_memory: the request at which the run ended, or ``None`` if it went through.

    """

    peaks: Peaks
    reserved_moment: str
    out_of_memory: OutOfMemory | None


def replay(trace: Trace, settings: AllocatorSettings | None = None, limit_bytes: int | None = None) -> Replay:
    """Replay the births and releases of a trace; see :func:`replay_events`."""
    sizes = [allocation.size for allocation in trace.allocations]
    moments = trace.moments
    peaks = replay_events(
        sizes, trace.events, settings, limit_bytes, steps=trace.steps, emptied=trace.emptied, streams=trace.streams
    )
    failed = None
    if peaks.failed_event >= 0:
        failed = OutOfMemory(
            requested_bytes=trace.allocations[trace.events[peaks.failed_event]].size,
            allocated_bytes=peaks.allocated_bytes,
            reserved_bytes=peaks.reserved_bytes,
            moment=moment_title(moments[peaks.failed_event], trace),
        )
    return Replay(
        peaks, moment_title(moments[peaks.reserved_event], trace) if peaks.reserved_event >= 0 else "", failed
    )


NO_STREAMS: Mapping[int, int] = MappingProxyType({})

MOST_STEPS = 10
"""Steps that are replayed at most."""


def places_replayed(events: Sequence[int], steps: Sequence[int], allocator: CachingAllocator) -> Iterator[int]:
    """The places of the events, in the order in which they happen as the run goes on with the same ``allocator``.

    ``steps`` tells of each event in which optimizer step it is, 0 or 1. A further step repeats the births of the second
    and their releases. What is released when the program ends is left out.
    """
    own = {event for event, step in zip(events, steps, strict=True) if step and event >= 0}
    further = [place for place, event in enumerate(events) if (event if event >= 0 else ~event) in own]
    if not own or len(further) < 2 * len(own):  # no second step, or one that leaves something behind
        yield from range(len(events))
        return
    end = max(place for place, event in enumerate(events) if event >= 0) + 1
    yield from range(end)
    yield from (place for place in further if place >= end)
    for _ in range(2, MOST_STEPS):
        before = allocator.reserved
        yield from further
        if allocator.reserved <= before:
            break


def replay_events(
    sizes: Sequence[int],
    events: Sequence[int],
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
    *,
    steps: Sequence[int],
    emptied: Container[int] = frozenset(),
    streams: Mapping[int, int] = NO_STREAMS,
) -> Peaks:
    """Replay births (``i``) and releases (``~i``) of blocks, with no more than ``limit_bytes`` to reserve.

    ``steps`` tells in which optimizer step each event is (:func:`places_replayed`); ``emptied`` are the births, of no
    bytes, at which the cache is emptied; ``streams`` names those that are for another stream than the first.
    The events must hold everything that comes from the caching allocator; the workspaces of cuBLAS do.
    A garbage collection threshold is a share of ``limit_bytes`` and does nothing without it, as PyTorch's does nothing
    until the program sets a memory fraction.
    """
    allocator = CachingAllocator(settings, limit_bytes)
    malloc, free = allocator.malloc, allocator.free
    blocks: list[Block | None] = [None] * len(sizes)
    asked = most_asked = allocated = requested = reserved = reserved_then = inactive = large = 0
    peak = failed = -1
    for place in places_replayed(events, steps, allocator):
        event = events[place]
        if event < 0:
            block = blocks[~event]
            if block is not None:
                free(block)
                blocks[~event] = None
                asked -= rounded(sizes[~event])
            continue
        size = sizes[event]
        if not size:
            if event in emptied:
                allocator.empty_cache()
            continue
        blocks[event] = block = malloc(size, streams[event]) if event in streams else malloc(size)
        if block is None:
            failed = place
            break
        asked += rounded(size)
        if asked > most_asked:
            most_asked = asked
        if allocator.requested > requested:
            requested = allocator.requested
        if allocator.reserved > reserved:
            reserved, inactive, peak = allocator.reserved, allocator.inactive_split_bytes, place
        if allocator.allocated > allocated:
            allocated, reserved_then, large = allocator.allocated, allocator.reserved, allocator.large_blocks
    return Peaks(
        peak_allocated_bytes=allocated,
        peak_blocks_bytes=most_asked,
        peak_requested_bytes=requested,
        peak_reserved_bytes=reserved,
        reserved_at_peak_allocated=reserved_then,
        inactive_split_bytes=inactive,
        large_blocks=large,
        segments=allocator.segments,
        reserved_event=peak,
        releases_under_pressure=allocator.releases_under_pressure,
        failed_event=failed,
        allocated_bytes=allocator.allocated,
        reserved_bytes=allocator.reserved,
    )
