"""The model of PyTorch's caching allocator: every rule by hand, and what must hold for any sequence of requests."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitplan.allocator.blocks import Block
from fitplan.allocator.caching import CachingAllocator, takes_oldest_first
from fitplan.allocator.replay import replay
from fitplan.allocator.settings import AllocatorSettings
from fitplan.errors import InputError
from fitplan.phase import Phase
from fitplan.trace.events import EMPTY_CACHE, Allocation, Category, Layer, Moment, Trace
from fitplan.units import KIB, MIB
from fitplan.validation.comparison import predicted_phases

EXPANDABLE = AllocatorSettings(expandable_segments=True)
SPLIT_32 = AllocatorSettings(max_split_size_bytes=32 * MIB)


def _malloc(allocator: CachingAllocator, *sizes: int) -> list[Block]:
    blocks = [allocator.malloc(size) for size in sizes]
    assert None not in blocks
    return blocks


def _free(allocator: CachingAllocator, *blocks: Block) -> None:
    for block in blocks:
        allocator.free(block)


# Sizes and segments


@pytest.mark.parametrize(("requested", "size"), [(1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)])
def test_blocks_are_multiples_of_512_bytes(requested: int, size: int) -> None:
    allocator = CachingAllocator(EXPANDABLE)  # which keeps no remainder
    assert _malloc(allocator, requested)[0].size == allocator.allocated == size
    assert allocator.requested == requested


@pytest.mark.parametrize(
    ("requested", "reserved"),
    [
        (1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB), (12 * MIB, 12 * MIB), (100 * MIB - 1, 100 * MIB),
    ],
)  # fmt: skip
def test_the_first_request_reserves_its_segment(requested: int, reserved: int) -> None:
    allocator = CachingAllocator()
    _malloc(allocator, requested)
    assert allocator.reserved == reserved
    assert allocator.segments == 1


def test_small_and_large_requests_share_no_segment() -> None:
    allocator = CachingAllocator()
    _malloc(allocator, 2 * MIB)  # leaves 18 MiB of its segment
    _malloc(allocator, MIB)
    assert allocator.reserved == 22 * MIB
    assert allocator.large_blocks == 1


# Splitting


def test_a_small_segment_is_split_down_to_512_bytes() -> None:
    allocator = CachingAllocator()
    first, second = _malloc(allocator, MIB - 512, MIB)
    assert second.address == first.address + MIB - 512
    assert allocator.allocated == 2 * MIB - 512
    _malloc(allocator, 512)  # the very rest
    assert allocator.reserved == allocator.allocated == 2 * MIB


@pytest.mark.parametrize(
    ("requested", "allocated"),
    [(19 * MIB, 20 * MIB), (19 * MIB + 512, 20 * MIB), (19 * MIB - 512, 19 * MIB - 512), (11 * MIB, 12 * MIB)],
)
def test_a_large_remainder_is_split_off_above_1_mib_only(requested: int, allocated: int) -> None:
    allocator = CachingAllocator()
    _free(allocator, *_malloc(allocator, 20 * MIB if requested > 12 * MIB else 12 * MIB))
    _malloc(allocator, requested)
    assert allocator.allocated == allocated
    assert allocator.requested == requested


def test_the_unsplit_remainder_is_given_up_with_its_block() -> None:
    allocator = CachingAllocator()
    (block,) = _malloc(allocator, 11 * MIB)
    assert block.size == 12 * MIB
    _free(allocator, block)
    assert allocator.allocated == allocator.requested == 0
    _malloc(allocator, 12 * MIB)
    assert allocator.reserved == 12 * MIB


# Searching and merging


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    sixteen, twelve, fourteen = _malloc(allocator, 16 * MIB, 12 * MIB, 14 * MIB)
    _free(allocator, sixteen, twelve, fourteen)
    addresses = sixteen.address, twelve.address, fourteen.address
    assert _malloc(allocator, 13 * MIB)[0].address == addresses[2]
    assert _malloc(allocator, 13 * MIB)[0].address == addresses[0]
    assert _malloc(allocator, 11 * MIB)[0].address == addresses[1]
    assert allocator.reserved == 42 * MIB


@pytest.mark.parametrize("oldest_first", [True, False])
def test_of_two_equal_blocks_the_older_is_taken_or_the_lower_which_is_the_newer(oldest_first: bool) -> None:
    allocator = CachingAllocator(oldest_first=oldest_first)
    first, second = _malloc(allocator, 12 * MIB, 12 * MIB)
    _free(allocator, *((second, first) if oldest_first else (first, second)))
    taken = _malloc(allocator, 12 * MIB)[0]
    assert taken.address == (first if oldest_first else second).address
    allocator = CachingAllocator(oldest_first=oldest_first)
    lower, between, upper = _malloc(allocator, 6 * MIB, 6 * MIB, 6 * MIB)
    assert lower.address < between.address < upper.address, "in one segment"
    _free(allocator, upper, lower)
    assert _malloc(allocator, 6 * MIB)[0].address == lower.address


@pytest.mark.parametrize(("installed", "oldest"), [("2.11.0+cu130", False), ("2.12.0", True), ("2.14.1+cpu", True)])
def test_the_installed_torch_says_which(installed: str, oldest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitplan.allocator.caching.version", lambda _: installed)
    assert takes_oldest_first.__wrapped__() == oldest


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbours_merge_whatever_the_order(order: tuple[int, ...]) -> None:
    allocator = CachingAllocator()
    blocks = _malloc(allocator, 6 * MIB, 6 * MIB, 8 * MIB)
    assert allocator.reserved == 20 * MIB
    _free(allocator, *(blocks[place] for place in order))
    assert _malloc(allocator, 20 * MIB)[0].size == 20 * MIB
    assert allocator.reserved == 20 * MIB


def test_a_live_block_keeps_its_neighbours_apart() -> None:
    allocator = CachingAllocator()
    first, _, third = _malloc(allocator, 6 * MIB, 6 * MIB, 8 * MIB)
    _free(allocator, first, third)
    assert allocator.inactive_split_bytes == 14 * MIB
    _malloc(allocator, 9 * MIB)  # 6 and 8 MiB are free, but nowhere 9
    assert allocator.reserved == 40 * MIB


def test_segments_do_not_merge_with_each_other() -> None:
    allocator = CachingAllocator()
    _free(allocator, *_malloc(allocator, 12 * MIB, 12 * MIB))
    assert allocator.inactive_split_bytes == 0
    _malloc(allocator, 24 * MIB)
    assert allocator.reserved == 48 * MIB


def test_a_block_is_freed_once() -> None:
    allocator = CachingAllocator()
    (block,) = _malloc(allocator, 1)
    allocator.free(block)
    with pytest.raises(AssertionError, match="once"):
        allocator.free(block)


# Pressure


def test_the_cache_is_emptied_before_memory_runs_out() -> None:
    allocator = CachingAllocator(limit_bytes=48 * MIB)
    _free(allocator, *_malloc(allocator, 12 * MIB, 12 * MIB))
    _malloc(allocator, 26 * MIB)  # 24 + 26 MiB are too much, 26 are not
    assert allocator.reserved == 26 * MIB
    assert allocator.segments == 1
    assert allocator.releases_under_pressure == 1


def test_a_limit_that_is_just_reached_is_kept() -> None:
    allocator = CachingAllocator(limit_bytes=48 * MIB)
    _free(allocator, *_malloc(allocator, 12 * MIB, 12 * MIB))
    _malloc(allocator, 24 * MIB)
    assert allocator.reserved == 48 * MIB
    assert allocator.releases_under_pressure == 0


def test_a_segment_that_is_partly_used_is_not_given_back() -> None:
    allocator = CachingAllocator(limit_bytes=40 * MIB)
    first, _ = _malloc(allocator, 8 * MIB, 8 * MIB)
    _free(allocator, first)
    assert allocator.malloc(22 * MIB) is None
    assert allocator.reserved == 20 * MIB
    assert allocator.allocated == 8 * MIB
    assert _malloc(allocator, 20 * MIB)  # a smaller request still finds its place


def test_a_small_large_request_needs_a_whole_segment() -> None:
    allocator = CachingAllocator(limit_bytes=19 * MIB)
    assert allocator.malloc(2 * MIB) is None
    assert _malloc(allocator, 18 * MIB)


# max_split_size


def test_an_oversize_block_is_not_split_for_a_smaller_request() -> None:
    allocator = CachingAllocator(SPLIT_32)
    _free(allocator, *_malloc(allocator, 32 * MIB))
    _malloc(allocator, 30 * MIB)
    assert allocator.reserved == 62 * MIB
    _free(allocator, *_malloc(allocator, 4 * MIB))  # a block below the limit is split as ever
    assert allocator.reserved == 82 * MIB


@pytest.mark.parametrize(
    ("requested", "allocated", "reserved"),
    [(40 * MIB + 512, 60 * MIB, 60 * MIB), (40 * MIB, 40 * MIB, 100 * MIB)],
)
def test_an_oversize_block_serves_requests_up_to_20_mib_smaller(requested: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator(SPLIT_32)
    _free(allocator, *_malloc(allocator, 60 * MIB))
    _malloc(allocator, requested)
    assert allocator.allocated == allocated
    assert allocator.reserved == reserved


def test_one_oversize_block_is_given_back_before_the_whole_cache() -> None:
    allocator = CachingAllocator(SPLIT_32, limit_bytes=100 * MIB)
    _free(allocator, *_malloc(allocator, 60 * MIB, 12 * MIB))
    _malloc(allocator, 35 * MIB)  # 60 MiB is too large a block for it, and 72 + 36 MiB too much
    assert allocator.reserved == 12 * MIB + 36 * MIB
    assert allocator.releases_under_pressure == 0


def test_oversize_blocks_are_given_back_from_the_largest_until_it_suffices() -> None:
    allocator = CachingAllocator(SPLIT_32, limit_bytes=150 * MIB)
    _free(allocator, *_malloc(allocator, 34 * MIB, 40 * MIB, 44 * MIB))
    _malloc(allocator, 80 * MIB)  # 44 + 40 MiB suffice
    assert allocator.reserved == 34 * MIB + 80 * MIB
    assert allocator.releases_under_pressure == 0


# garbage_collection_threshold


def test_the_oldest_idle_segment_goes_first() -> None:
    half = AllocatorSettings(garbage_collection_threshold=0.5)
    allocator = CachingAllocator(half, limit_bytes=200 * MIB)
    old, young = _malloc(allocator, 24 * MIB, 26 * MIB)
    allocator.free(old)
    _malloc(allocator, 28 * MIB)
    allocator.free(young)
    _malloc(allocator, 30 * MIB)
    assert allocator.reserved == 108 * MIB  # 78 MiB were below the 100 MiB when it was asked for
    _malloc(allocator, 32 * MIB)
    assert allocator.reserved == 108 * MIB - 24 * MIB + 32 * MIB
    _malloc(allocator, 26 * MIB)  # still cached
    assert allocator.reserved == 116 * MIB
    assert allocator.releases_under_pressure == 0


def test_what_is_as_old_as_the_mean_goes_too() -> None:
    """``garbage_collect_cached_blocks``: ``gc_count() >= age_threshold``; of three ages one apart, the middle one."""
    half = AllocatorSettings(garbage_collection_threshold=0.5)
    allocator = CachingAllocator(half, limit_bytes=400 * MIB)
    for block, size in zip(_malloc(allocator, 22 * MIB, 24 * MIB, 26 * MIB), (28, 30, 32), strict=True):
        allocator.free(block)
        _malloc(allocator, size * MIB)
    _malloc(allocator, 40 * MIB)
    assert allocator.reserved == 202 * MIB
    _malloc(allocator, 42 * MIB)
    assert allocator.reserved == (202 - 22 - 24 + 42) * MIB


def test_without_a_limit_no_garbage_is_collected() -> None:
    allocator = CachingAllocator(AllocatorSettings(garbage_collection_threshold=0.01))
    _free(allocator, *_malloc(allocator, 24 * MIB))
    _malloc(allocator, 26 * MIB)
    assert allocator.reserved == 50 * MIB


# expandable_segments


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ((1,), 2 * MIB), ((MIB, MIB), 2 * MIB), ((MIB, MIB, 1), 4 * MIB), ((MIB + 1,), 20 * MIB),
        ((8 * MIB, 8 * MIB), 20 * MIB), ((8 * MIB, 8 * MIB, 8 * MIB), 40 * MIB), ((21 * MIB,), 40 * MIB),
        ((20 * MIB, 1), 22 * MIB), ((16 * MIB, 24 * MIB), 40 * MIB),
    ],
)  # fmt: skip
def test_an_expandable_segment_grows_by_pages(sizes: tuple[int, ...], reserved: int) -> None:
    allocator = CachingAllocator(EXPANDABLE)
    _malloc(allocator, *sizes)
    assert allocator.reserved == reserved
    assert allocator.allocated == sum(-(-size // 512) * 512 for size in sizes)


def test_an_expandable_segment_keeps_no_remainder() -> None:
    allocator = CachingAllocator(EXPANDABLE)
    _malloc(allocator, 20 * MIB - 512)
    assert allocator.allocated == 20 * MIB - 512


def test_an_expandable_segment_cures_fragmentation() -> None:
    # 8 x 12 MiB, then 4 x 24 MiB: the segments of the first are of no use to the second.
    reserved = {}
    for setting in (AllocatorSettings(), EXPANDABLE):
        allocator = CachingAllocator(setting)
        _free(allocator, *_malloc(allocator, *[12 * MIB] * 8))
        _malloc(allocator, *[24 * MIB] * 4)
        assert allocator.allocated == 96 * MIB
        reserved[setting] = allocator.reserved
    assert reserved == {AllocatorSettings(): 192 * MIB, EXPANDABLE: 100 * MIB}


def test_a_block_that_can_grow_is_spared() -> None:
    allocator = CachingAllocator(EXPANDABLE)
    first, _ = _malloc(allocator, 16 * MIB, 2 * MIB)  # 2 MiB are left at the end of the page
    _free(allocator, first)
    assert _malloc(allocator, 2 * MIB)[0].address == first.address


def test_pages_of_one_pool_are_given_back_for_the_other() -> None:
    allocator = CachingAllocator(EXPANDABLE, limit_bytes=102 * MIB)
    _free(allocator, *_malloc(allocator, 100 * MIB))
    _malloc(allocator, MIB, MIB)
    assert allocator.reserved == 102 * MIB
    _malloc(allocator, MIB)
    assert allocator.reserved == 4 * MIB
    assert allocator.segments == 1
    assert allocator.releases_under_pressure == 1


def test_only_whole_pages_are_given_back_and_their_gap_is_filled_first() -> None:
    allocator = CachingAllocator(EXPANDABLE, limit_bytes=41 * MIB)
    first, second, third = _malloc(allocator, 10 * MIB, 20 * MIB, 10 * MIB)
    start = first.address
    _free(allocator, second)  # 10 to 30 MiB: no whole page of 20
    assert allocator.malloc(1) is None
    assert allocator.reserved == 40 * MIB
    _free(allocator, first)  # 0 to 30 MiB: the first page
    (small,) = _malloc(allocator, 1)
    assert allocator.reserved == 22 * MIB
    assert allocator.segments == 2
    _free(allocator, small)
    (block,) = _malloc(allocator, 25 * MIB)  # the gap and the 10 MiB behind it
    assert block.address == start
    assert third.address == start + 30 * MIB
    assert allocator.reserved == 40 * MIB
    assert allocator.releases_under_pressure == 3


def test_gaps_side_by_side_become_one() -> None:
    allocator = CachingAllocator(EXPANDABLE, limit_bytes=60 * MIB)
    first, second, _ = _malloc(allocator, 20 * MIB, 20 * MIB, 20 * MIB)
    _free(allocator, first)
    _free(allocator, *_malloc(allocator, 1))
    assert allocator.reserved == 42 * MIB
    _free(allocator, second)
    assert allocator.malloc(60 * MIB) is None
    assert allocator.reserved == 20 * MIB
    assert allocator.segments == 1


# Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AllocatorSettings()),
        ("expandable_segments:True", EXPANDABLE),
        (" expandable_segments : True , max_split_size_mb:32,", AllocatorSettings(
            expandable_segments=True, max_split_size_bytes=32 * MIB
        )),
        ("garbage_collection_threshold:0.8,expandable_segments:False", AllocatorSettings(
            garbage_collection_threshold=0.8
        )),
        ("backend:native,pinned_use_background_threads:True", AllocatorSettings()),
    ],
)  # fmt: skip
def test_settings_are_read(text: str, expected: AllocatorSettings) -> None:
    assert AllocatorSettings.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segment:True", "'expandable_segment' is no option"),
        ("expandable_segments:true", "takes True or False, not 'true'"),
        ("expandable_segments", "takes True or False, not ''"),
        ("max_split_size_mb:19", "at least 20 MiB, not 19 MiB"),
        ("max_split_size_mb:many", "takes a number, not 'many'"),
        ("garbage_collection_threshold:1.0", "between 0 and 1, not at 1"),
        ("garbage_collection_threshold:nan", "takes a number"),
        ("backend:cudaMallocAsync", "backend is not modelled"),
        ("roundup_power2_divisions:[64:8,>:1],expandable_segments:True", "roundup_power2_divisions is not modelled"),
    ],
)
def test_what_is_no_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        AllocatorSettings.parse(text)


# Replay


def _trace(*events: int, second_step: int | None = None) -> Trace:
    """A trace of births (bytes) and releases (``-1`` for the first allocation, ``-2`` for the second, ...).

    The second step begins at the place ``second_step``.
    """
    trace = Trace(stacks={"model.layers": 2})
    for number, event in enumerate(events):
        step = int(second_step is not None and number >= second_step)
        moment = Moment(Phase.FORWARD, "layer", Layer("model.layers", number), step)
        if event < 0:
            trace.released(-event - 1, moment)
        else:
            trace.born(Allocation(event, Category.ACTIVATIONS, "model", "mm"), moment)
    return trace


def test_the_program_empties_the_cache() -> None:
    """What is whole goes back, here 12 MiB before 14 MiB are asked for; half a segment stays."""
    trace = _trace(12 * MIB, -1, 14 * MIB)
    assert replay(trace).peaks.peak_reserved_bytes == 26 * MIB
    emptied = _trace(12 * MIB, -1, 0, 14 * MIB)
    emptied.allocations[1].op = EMPTY_CACHE
    assert replay(emptied).peaks.peak_reserved_bytes == 14 * MIB
    assert replay(emptied).peaks.releases_under_pressure == 0
    (phase,) = predicted_phases(emptied, expandable=False)
    assert phase.reserved_bytes == 14 * MIB

    partly = _trace(6 * MIB, 6 * MIB, -1, 0, 24 * MIB)
    partly.allocations[2].op = EMPTY_CACHE
    assert replay(partly).peaks.peak_reserved_bytes == 20 * MIB + 24 * MIB
    assert replay(partly, EXPANDABLE).peaks.peak_reserved_bytes == 2 * 20 * MIB  # pages, the first of them in use


def test_a_trace_is_replayed() -> None:
    # 6 + 6 + 8 MiB fill a segment; the outer two are freed; 9 MiB need a second one, and the single byte a small one.
    result = replay(_trace(6 * MIB, 6 * MIB, 8 * MIB, -1, -3, 9 * MIB, 1, 0, -2, -4))
    assert result.peaks.peak_allocated_bytes == result.peaks.peak_requested_bytes == 20 * MIB
    assert result.peaks.reserved_at_peak_allocated == 20 * MIB
    assert result.peaks.large_blocks == 3
    assert result.peaks.peak_reserved_bytes == 42 * MIB
    assert result.reserved_moment == "forward of layer 6"
    assert result.peaks.inactive_split_bytes == 14 * MIB + 11 * MIB + 2 * MIB - 512
    assert result.peaks.segments == 3
    assert result.peaks.releases_under_pressure == 0
    assert result.out_of_memory is None


def test_requested_and_allocated_bytes_peak_apart() -> None:
    result = replay(_trace(19 * MIB, 1))
    assert result.peaks.peak_requested_bytes == 19 * MIB + 1
    assert result.peaks.peak_allocated_bytes == 20 * MIB + 512


def test_of_equal_peaks_the_first_is_told() -> None:
    result = replay(_trace(20 * MIB, -1, *[MIB] * 20), limit_bytes=20 * MIB)
    assert result.peaks.peak_allocated_bytes == result.peaks.peak_reserved_bytes == 20 * MIB
    assert result.peaks.large_blocks == 1
    assert result.reserved_moment == "forward of layer 0"
    assert result.peaks.releases_under_pressure == 1


def test_running_out_of_memory_is_told_and_ends_the_replay() -> None:
    result = replay(_trace(12 * MIB, 14 * MIB, -1, 24 * MIB + 1, 1), limit_bytes=38 * MIB)
    failure = result.out_of_memory
    assert failure is not None
    assert failure.requested_bytes == 24 * MIB + 1
    assert failure.allocated_bytes == 14 * MIB
    assert failure.reserved_bytes == 14 * MIB
    assert failure.moment == "forward of layer 3"
    assert result.peaks.releases_under_pressure == 1
    assert result.peaks.peak_reserved_bytes == 26 * MIB
    assert result.peaks.segments == 1


_GROWS = (4 * MIB, 12 * MIB, 12 * MIB, -1, -2, -3)
"""Once: 4 and 12 MiB share a segment of 20, 12 have their own. Again: the 4 fit best into the 12, which then lack."""


def test_a_later_step_may_reserve_more() -> None:
    once = replay(_trace(*_GROWS))
    assert once.peaks.peak_reserved_bytes == 32 * MIB
    weights = replay(_trace(2 * MIB, *(event - (event < 0) for event in _GROWS), -1, second_step=1))
    assert weights.peaks.peak_reserved_bytes - once.peaks.peak_reserved_bytes == 12 * MIB
    assert weights.peaks.peak_allocated_bytes == (2 + 28) * MIB
    trace = _trace(*_GROWS, second_step=0)
    result = replay(trace)
    assert result.peaks.peak_reserved_bytes == 44 * MIB
    assert result.reserved_moment == "forward of layer 2"
    assert max(phase.reserved_bytes or 0 for phase in predicted_phases(trace, expandable=False)) == 44 * MIB
    failed = replay(trace, limit_bytes=40 * MIB).out_of_memory
    assert failed is not None
    assert (failed.requested_bytes, failed.reserved_bytes) == (12 * MIB, 32 * MIB)


def test_a_step_that_leaves_something_is_not_repeated() -> None:
    assert replay(_trace(*_GROWS[:-1], second_step=0)).peaks.peak_reserved_bytes == 32 * MIB


def test_nothing_allocates_nothing() -> None:
    result = replay(_trace(0, -1))
    assert result.peaks.peak_reserved_bytes == result.peaks.peak_allocated_bytes == result.peaks.segments == 0
    assert result.reserved_moment == ""


def test_the_allocator_needs_no_torch() -> None:
    code = "import sys, fitplan.allocator.replay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What always holds

_sizes = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(1, 48 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 2 * MIB, 10 * MIB - 1, 10 * MIB, 18 * MIB, 19 * MIB, 20 * MIB, 40 * MIB]),
)
_steps = st.lists(st.one_of(_sizes, st.integers(-30, -1)), max_size=60)
_settings = st.builds(
    AllocatorSettings,
    expandable_segments=st.booleans(),
    max_split_size_bytes=st.sampled_from([None, 20 * MIB, 32 * MIB]),
    garbage_collection_threshold=st.sampled_from([None, 0.3, 0.8]),
)
_limits = st.one_of(st.none(), st.integers(0, 100).map(lambda pages: pages * 2 * MIB))


def _check(allocator: CachingAllocator, live: list[Block], limit: int | None) -> None:
    assert allocator.allocated == sum(block.size for block in live)
    assert allocator.requested == sum(block.requested for block in live)
    assert allocator.requested <= allocator.allocated <= allocator.reserved
    assert 0 <= allocator.inactive_split_bytes <= allocator.reserved - allocator.allocated
    assert allocator.reserved % (2 * MIB) == 0
    assert limit is None or allocator.reserved <= limit
    for before, after in pairwise(sorted(live, key=lambda block: block.address)):
        assert before.address + before.size <= after.address
    for block in live:
        assert block.size >= block.requested
        following = block.following
        if following is not None:
            assert following.previous is block
            assert following.address == block.address + block.size
            if following.cached and following.following is not None:
                assert not following.following.cached, "cached neighbours are merged"


@settings(max_examples=150, deadline=None)
@given(_steps, _settings, _limits)
def test_invariants(steps: list[int], setting: AllocatorSettings, limit: int | None) -> None:
    allocator = CachingAllocator(setting, limit)
    live: list[Block] = []
    for step in steps:
        if step > 0:
            block = allocator.malloc(step)
            assert block is not None or limit is not None
            live += [block] if block is not None else []
        elif live:
            allocator.free(live.pop(step % len(live)))
        _check(allocator, live, limit)
    _free(allocator, *live)
    _check(allocator, [], limit)
    assert allocator.allocated == allocator.requested == allocator.large_blocks == allocator.inactive_split_bytes == 0
    if limit is not None and limit >= 60 * MIB:  # three pages of an expandable segment
        assert allocator.malloc(48 * MIB) is not None, "what is free can be given back"


@settings(max_examples=50, deadline=None)
@given(_steps, _settings, _limits)
def test_a_replay_is_what_the_allocator_does(steps: list[int], setting: AllocatorSettings, limit: int | None) -> None:
    events: list[int] = []
    alive: list[int] = []
    born = 0
    for step in steps:
        if step > 0:
            alive.append(born := born + 1)
            events.append(step)
        elif alive:
            events.append(-alive.pop(step % len(alive)))
    trace = _trace(*events)
    result = replay(trace, setting, limit)
    assert result == replay(trace, setting, limit)
    assert (
        result.peaks.peak_requested_bytes
        <= result.peaks.peak_allocated_bytes
        <= result.peaks.reserved_at_peak_allocated
    )
    assert result.peaks.reserved_at_peak_allocated <= result.peaks.peak_reserved_bytes
    assert result.out_of_memory is None or limit is not None


class _Plain:
    """PyTorch's default allocator once more, with nothing but a list of [segment, size, small, free] by address."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.reserved = 0

    def malloc(self, requested: int) -> list[int]:
        size = max(512, (requested + 511) // 512 * 512)
        small = size <= MIB
        fits = [piece for piece in self.pieces if piece[3] and piece[2] == small and piece[1] >= size]
        if fits:
            piece = min(fits, key=lambda piece: piece[1])  # min keeps the first, that is the lowest, of equals
        else:
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            self.reserved += segment
            piece = [max((other[0] for other in self.pieces), default=0) + 1, segment, small, True]
            self.pieces.append(piece)
        rest = piece[1] - size
        if rest >= 512 if small else rest > MIB:
            place = next(place for place, other in enumerate(self.pieces) if other is piece)
            self.pieces.insert(place + 1, [piece[0], rest, small, True])
            piece[1] = size
        piece[3] = False
        return piece

    def free(self, piece: list[int]) -> None:
        piece[3] = True
        merged: list[list[int]] = []
        for other in self.pieces:
            if merged and merged[-1][3] and other[3] and merged[-1][0] == other[0]:
                merged[-1][1] += other[1]
            else:
                merged.append(other)
        self.pieces = merged


@settings(max_examples=150, deadline=None)
@given(_steps)
def test_a_slow_and_simple_allocator_agrees(steps: list[int]) -> None:
    fast, plain = CachingAllocator(), _Plain()
    live: list[tuple[Block, list[int]]] = []
    for step in steps:
        if step > 0:
            live.append((_malloc(fast, step)[0], plain.malloc(step)))
        elif live:
            block, piece = live.pop(step % len(live))
            fast.free(block)
            plain.free(piece)
        assert [block.size for block, _ in live] == [piece[1] for _, piece in live]
        assert fast.reserved == plain.reserved
