"""A trace, replayed through the model of the caching allocator."""

from dataclasses import dataclass

from fitplan.allocator.blocks import Block
from fitplan.allocator.caching import CachingAllocator
from fitplan.allocator.settings import AllocatorSettings
from fitplan.cuda import rounded
from fitplan.memory import AllocatorOverhead, moment_title
from fitplan.trace.events import Moment, Trace


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
class Replay:
    """What the caching allocator made of a trace; all peaks are those of the part that ran.

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
        reserved_moment: when the reserved bytes first peaked; ``""`` if nothing was allocated.
        releases_under_pressure: how often the cache was emptied because the limit was reached.
        out_of_memory: the request at which the run ended, or ``None`` if it went through.

    """

    peak_allocated_bytes: int
    peak_blocks_bytes: int
    peak_requested_bytes: int
    peak_reserved_bytes: int
    reserved_at_peak_allocated: int
    inactive_split_bytes: int
    large_blocks: int
    segments: int
    reserved_moment: str
    releases_under_pressure: int
    out_of_memory: OutOfMemory | None


def replay(trace: Trace, settings: AllocatorSettings | None = None, limit_bytes: int | None = None) -> Replay:
    """Replay the births and releases of a trace, one stream, with no more than ``limit_bytes`` to reserve.

    The trace must hold everything that comes from the caching allocator; the workspaces of cuBLAS do, and are in it.
    A garbage collection threshold is a share of ``limit_bytes`` and does nothing without it, as PyTorch's does nothing
    until the program sets a memory fraction.
    """
    allocator = CachingAllocator(settings, limit_bytes)
    malloc, free = allocator.malloc, allocator.free
    sizes = [allocation.size for allocation in trace.allocations]
    blocks: list[Block | None] = [None] * len(sizes)
    blocks_bytes = most_blocks_bytes = allocated = requested = reserved = reserved_then = inactive = large = 0
    peak: Moment | None = None
    failed: OutOfMemory | None = None
    for event, moment in zip(trace.events, trace.moments, strict=True):
        if event < 0:
            block = blocks[~event]
            if block is not None:
                free(block)
                blocks[~event] = None
                blocks_bytes -= rounded(sizes[~event])
            continue
        size = sizes[event]
        if not size:
            continue
        blocks[event] = block = malloc(size)
        if block is None:
            failed = OutOfMemory(
                requested_bytes=size,
                allocated_bytes=allocator.allocated,
                reserved_bytes=allocator.reserved,
                moment=moment_title(moment, trace),
            )
            break
        blocks_bytes += rounded(size)
        if blocks_bytes > most_blocks_bytes:
            most_blocks_bytes = blocks_bytes
        if allocator.requested > requested:
            requested = allocator.requested
        if allocator.reserved > reserved:
            reserved, inactive, peak = allocator.reserved, allocator.inactive_split_bytes, moment
        if allocator.allocated > allocated:
            allocated, reserved_then, large = allocator.allocated, allocator.reserved, allocator.large_blocks
    return Replay(
        peak_allocated_bytes=allocated,
        peak_blocks_bytes=most_blocks_bytes,
        peak_requested_bytes=requested,
        peak_reserved_bytes=reserved,
        reserved_at_peak_allocated=reserved_then,
        inactive_split_bytes=inactive,
        large_blocks=large,
        segments=allocator.segments,
        reserved_moment=moment_title(peak, trace) if peak is not None else "",
        releases_under_pressure=allocator.releases_under_pressure,
        out_of_memory=failed,
    )


def added_by_allocator(run: Replay) -> AllocatorOverhead:
    """What the allocator added to the blocks of the trace."""
    return AllocatorOverhead(
        run.peak_allocated_bytes - run.peak_blocks_bytes, run.peak_reserved_bytes - run.peak_allocated_bytes
    )
