"""What the caching allocator adds to a step, known at some shapes and estimated between them.

How blocks of thousands of sizes fall into segments has no formula. It is replayed at some shapes when a footprint is
made; a job in between lies on the line between its neighbours, and says how far it may be off.
"""

from bisect import bisect_left
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from fitplan.footprint.size import Shape
from fitplan.memory import AllocatorOverhead


@dataclass(frozen=True, slots=True)
class OverheadSample:
    """The replay of one shape.

    Attributes:
        batch_size: rows in a micro-batch.
        seq_len: tokens in a row.
        plain: what is added with PyTorch's default settings.
        expandable: what is added with ``expandable_segments:True``.

    """

    batch_size: int
    seq_len: int
    plain: AllocatorOverhead
    expandable: AllocatorOverhead

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch."""
        return self.batch_size * self.seq_len


PRESSED_PARTS = 64
"""What cannot be given back is known to within this part of what is cached."""


def replayed(
    sizes: Sequence[int],
    events: Sequence[int],
    steps: Sequence[int],
    shape: Shape,
    emptied: Container[int],
    streams: Mapping[int, int] | None = None,
    *,
    pressed: Container[bool] = (),
) -> OverheadSample:
    """What the allocator adds to a job of this shape, whose blocks have these sizes.

    ``steps`` tells in which optimizer step each event is; ``emptied`` are the births, of no bytes, at which the cache
    is emptied; ``streams`` are those that are not for the first stream. ``pressed`` says for which of plain and
    expandable segments it is looked for what the allocator cannot give back, which takes several times as long.
    """
    from fitplan.allocator.replay import Peaks, replay_events  # a shipped answer replays nothing, and starts sooner
    from fitplan.allocator.settings import EXPANDABLE, PLAIN, AllocatorSettings

    def added(settings: AllocatorSettings) -> AllocatorOverhead:
        def within(limit: int | None) -> Peaks:
            return replay_events(sizes, events, settings, limit, steps=steps, emptied=emptied, streams=streams or {})

        free = within(None)
        if settings.expandable_segments not in pressed:
            return free.overhead
        allocated, reserved = free.peak_allocated_bytes, free.peak_reserved_bytes
        lost, least = allocated - 1, reserved
        while least - lost > (reserved - allocated) / PRESSED_PARTS + 1:
            middle = (lost + least) // 2
            lost, least = (middle, least) if within(middle).failed_event >= 0 else (lost, middle)
        return replace(free.overhead, kept_bytes=least - allocated)

    return OverheadSample(shape.batch_size, shape.seq_len, added(PLAIN), added(EXPANDABLE))


def overhead_at(samples: Sequence[OverheadSample], shape: Shape, *, expandable: bool) -> AllocatorOverhead | None:
    """The overhead between samples, which are in order of their tokens; ``None`` beyond the last of them.

    It is the straight line between the two neighbours. Rank, accumulation and optimizer move it too, and there are no
    samples of them: the spread is half of what is added, within which 5 of 6 jobs stay (``benchmarks/reserved.py``).
    """
    if not samples or shape.tokens > samples[-1].tokens:
        return None
    if len(samples) == 1:
        return _added(samples[0], expandable)
    right = bisect_left([sample.tokens for sample in samples], shape.tokens)
    left = max(right - 1, 0)
    a, b = _added(samples[left], expandable), _added(samples[right], expandable)
    apart = samples[right].tokens - samples[left].tokens
    share = (shape.tokens - samples[left].tokens) / apart if apart else 0.0
    unsplit = round(a.unsplit_bytes + share * (b.unsplit_bytes - a.unsplit_bytes))
    cached = round(a.cached_bytes + share * (b.cached_bytes - a.cached_bytes))
    return AllocatorOverhead(unsplit, cached, (unsplit + cached) // 2)


def _added(sample: OverheadSample, expandable: bool) -> AllocatorOverhead:
    return sample.expandable if expandable else sample.plain
