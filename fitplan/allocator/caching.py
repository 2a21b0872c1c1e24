"""A model of PyTorch's CUDA caching allocator: the same blocks, split, cached and merged by the same rules.

Source: pytorch ``c10/cuda/CUDACachingAllocator.cpp``, class ``DeviceCachingAllocator``; each rule names its function
there. Read at pytorch 001074d2, ethanwee1/pytorch 0488bc43 and huydhn/pytorch 82536757, which by their contents are
about torch 2.5, 2.7 and 2.13. They agree on every rule below but one: the first also tries to give back an expandable
segment as if it came from ``cudaMalloc``, when a split limit or a garbage collection threshold is set (PR 134338).

Of two cached blocks of one size, which is taken decides what stays whole, and so what is reserved later. From torch
2.12 on it is the one whose segment was taken from the driver first, and the lower one within a segment (pytorch PR
178362 and 183591; seen in rehearsals with 2.11 to 2.14). Before, it was the lower one altogether
(``BlockComparatorSize``), so that it matters where ``cudaMalloc`` puts a segment. That is documented nowhere; here each
lies below the one before. The 73 jobs that were run on an H100 (driver 580.159, torch 2.11, ``profiles/measured``) then
reserve what was measured to within 0.67 %, nine in ten to within 0.15 %; with rising addresses nine are off by 0.7 to
6.2 %. The newer rule is played by addresses that rise.

What the model leaves out, knowingly:
- A block belongs to the stream that it was made for, as in ``get_free_block``. That another one uses it too
  (``record_stream``), which delays its release, has no counterpart, nor have CUDA graphs and memory pools of the user.
- Addresses that were given back are not used again.
- An expandable segment never runs out of addresses (in reality it has 1 1/8 times the memory of the GPU).
- A limit is taken for what the driver can give. A limit that the program sets itself
  (``set_per_process_memory_fraction``) differs in one point: with expandable segments PyTorch then compares it with the
  size of a whole segment (``alloc_block``), not with the pages that are missing.
"""

from bisect import bisect_left
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fitplan.allocator.blocks import ADDRESS_BITS, Block, Pool
from fitplan.allocator.settings import AllocatorSettings
from fitplan.cuda import GRANULE, LARGE_BLOCK, LARGE_SEGMENT, SMALL_SEGMENT, rounded, segment_size

_ADDRESS_SPACE = 2 ** (ADDRESS_BITS - 4)
_UNLIMITED = 2 ** (ADDRESS_BITS - 2)

OLDEST_FIRST_SINCE = (2, 12)


@cache
def takes_oldest_first() -> bool:
    """Whether the installed torch tells equal blocks apart by age; the newest does where none is installed."""
    try:
        major, minor = version("torch").split(".")[:2]
    except PackageNotFoundError:
        return True
    return (int(major), int(minor)) >= OLDEST_FIRST_SINCE


class CachingAllocator:
    """The allocator of one GPU.

    Attributes:
        allocated: bytes of the blocks handed out, as ``torch.cuda.memory_allocated``.
        requested: bytes that were asked for and are still live, as ``requested_bytes`` in ``memory_stats``.
        reserved: bytes taken from the driver, as ``torch.cuda.memory_reserved``.
        releases_under_pressure: how often the cache was emptied because the driver had nothing left, as
            ``num_alloc_retries`` in ``memory_stats``.

    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        limit_bytes: int | None = None,
        *,
        oldest_first: bool | None = None,
    ) -> None:
        """An allocator that the driver gives no more than ``limit_bytes``; ``None`` is no limit.

        ``oldest_first`` is how equal blocks are told apart: by the age of their segments, or by address; as the
        installed torch does it where nothing is said.
        """
        settings = settings or AllocatorSettings()
        expandable = settings.expandable_segments
        self._expandable = expandable
        self._limit = limit_bytes
        self._max_split = settings.max_split_size_bytes
        threshold = settings.garbage_collection_threshold
        self._collect_above = None if threshold is None or limit_bytes is None else int(threshold * limit_bytes)
        self._pools: dict[int, tuple[Pool, Pool]] = {}
        self._plain = not expandable and self._max_split is None
        self._oldest_first = takes_oldest_first() if oldest_first is None else oldest_first
        self._next_address = _UNLIMITED
        self._segments = 0
        self._idle = 0
        self.allocated = self.requested = self.reserved = self.releases_under_pressure = 0
        self._open(0)

    def _open(self, stream: int) -> tuple[Pool, Pool]:
        """The pools of a stream, of small and of large blocks.

        A remainder of the large one is split off above 1 MiB only, unless segments are expandable (``should_split``).
        """
        expandable = self._expandable
        pools = self._pools[stream] = (
            Pool(SMALL_SEGMENT, GRANULE, _UNLIMITED),
            Pool(
                LARGE_SEGMENT,
                GRANULE if expandable else LARGE_BLOCK + GRANULE,
                _UNLIMITED if expandable or self._max_split is None else self._max_split,
            ),
        )
        if expandable:
            for number, pool in enumerate(pools, 2 * len(self._pools) - 1):
                gap = Block(pool, number * _ADDRESS_SPACE // pool.page * pool.page, _ADDRESS_SPACE // 2)
                gap.mapped = False
                pool.unmapped.append(gap)
        return pools

    @property
    def segments(self) -> int:
        """Segments that are held; of an expandable one, each stretch of mapped pages (``snapshot``)."""
        gaps = (gap for pools in self._pools.values() for pool in pools for gap in pool.unmapped)
        return self._segments + sum(gap.previous is not None for gap in gaps)

    @property
    def inactive_split_bytes(self) -> int:
        """Cached pieces of segments that are partly in use: what emptying the cache does not give back.

        As ``inactive_split_bytes`` in ``memory_stats``, which leaves expandable segments out.
        """
        return 0 if self._expandable else self.reserved - self.allocated - self._idle

    @property
    def large_blocks(self) -> int:
        """Blocks handed out from the pool of the requests above 1 MiB."""
        return sum(large.live for _, large in self._pools.values())

    def malloc(self, requested: int, stream: int = 0) -> Block | None:
        """A block for at least one byte, or ``None``: out of memory. (A tensor of no bytes asks for no block.)"""
        size = rounded(requested)
        pools = self._pools.get(stream) or self._open(stream)
        pool = pools[size > LARGE_BLOCK]
        if self._collect_above is not None:
            pool.searches += 1
        place = bisect_left(pool.keys, size << ADDRESS_BITS)
        if not self._plain:
            place = self._acceptable(pool, place, size)
        if place < len(pool.blocks):
            block = pool.blocks[place]
            del pool.keys[place], pool.blocks[place]
            block.cached = False
            if block.previous is None and block.following is None:
                self._idle -= block.size
        else:
            new = self._new_block(pool, size)
            if new is None:
                return None
            block = new
        if block.size - size >= pool.least_rest and size < pool.splits_below:
            pool.insert(block.split_off(size))
        block.requested = requested
        pool.live += 1
        self.allocated += block.size
        self.requested += requested
        return block

    def free(self, block: Block) -> None:
        """Cache a block again, merged with the cached blocks beside it (``free_block``, ``try_merge_blocks``)."""
        assert not block.cached, "a block is freed once"
        pool = block.pool
        pool.live -= 1
        self.allocated -= block.size
        self.requested -= block.requested
        self._cache(block)
        if block.previous is None and block.following is None:
            self._idle += block.size

    def _cache(self, block: Block) -> None:
        pool = block.pool
        neighbour = block.previous
        if neighbour is not None and neighbour.cached:
            pool.remove(neighbour)
            block.absorb_previous(neighbour)
        neighbour = block.following
        if neighbour is not None and neighbour.cached:
            pool.remove(neighbour)
            block.absorb_following(neighbour)
        pool.insert(block)

    def _acceptable(self, pool: Pool, place: int, size: int) -> int:
        """The place of the block to take, from the best fit on; the end of the list for none (``get_free_block``)."""
        blocks = pool.blocks
        if place == len(blocks):
            return place
        if self._expandable:
            # A block that can grow counts with the size to which it can grow.
            while place + 1 < len(blocks) and blocks[place + 1].room < blocks[place].room:
                place += 1
        limit = self._max_split
        if limit is not None:
            found = blocks[place].size
            if found >= limit if size < limit else found >= size + LARGE_SEGMENT:
                return len(blocks)
        return place

    def _new_block(self, pool: Pool, size: int) -> Block | None:
        """A block of memory that the driver has yet to give, with whatever must be given back for it (``malloc``)."""
        if self._collect_above is not None:
            self._collect_garbage(self._collect_above)
        block = self._grow(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self.releases_under_pressure += 1
            self._release_cached()
            block = self._grow(pool, size)
        return block

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """One attempt to get memory from the driver (``alloc_block``)."""
        if self._expandable:
            return self._extend(pool, size)
        segment = segment_size(size)
        if not self._reserve(segment):
            return None
        self._segments += 1
        if self._oldest_first:
            self._next_address += segment
            return Block(pool, self._next_address - segment, segment)
        self._next_address -= segment
        return Block(pool, self._next_address, segment)

    def _reserve(self, size: int) -> bool:
        if self._limit is not None and self.reserved + size > self._limit:
            return False
        self.reserved += size
        return True

    def _release(self, block: Block) -> None:
        """Give a whole segment back (``release_block``)."""
        assert block.whole, "only whole segments can be given back"
        block.pool.remove(block)
        self._segments -= 1
        self._idle -= block.size
        self.reserved -= block.size

    def empty_cache(self) -> None:
        """Give back what is not in use, as far as segments are whole (``torch.cuda.empty_cache``, ``emptyCache``)."""
        self._release_cached()

    def _release_cached(self) -> None:
        """Give back whatever is whole and cached (``release_cached_blocks``)."""
        for pool in (pool for pools in self._pools.values() for pool in reversed(pools)):
            for block in list(pool.blocks):
                if self._expandable:
                    self._unmap(block)
                elif block.whole:
                    self._release(block)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back unsplittable segments, but no more than needed (``release_available_cached_blocks``)."""
        limit = self._max_split
        if limit is None or self._expandable:
            return False
        wanted = max(size, limit)
        place = bisect_left(pool.keys, wanted << ADDRESS_BITS)
        if place < len(pool.blocks):
            self._release(pool.blocks[place])
            return True
        while wanted > 0 and pool.blocks and pool.blocks[-1].size >= limit:
            wanted -= pool.blocks[-1].size
            self._release(pool.blocks[-1])
        return wanted <= 0

    def _collect_garbage(self, threshold: int) -> None:
        """Give back the idle large segments that were unused longest (``garbage_collect_cached_blocks``)."""
        missing = self.reserved - threshold
        idle = [block for _, pool in self._pools.values() for block in pool.blocks if block.whole]
        while missing > 0 and idle:
            age = sum(block.pool.searches - block.searches for block in idle) / len(idle)
            for block in [block for block in idle if block.pool.searches - block.searches >= age]:
                missing -= block.size
                idle.remove(block)
                self._release(block)

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """Map pages where the addresses suffice for ``size`` bytes (``try_allocate_expandable_block``)."""
        block = pool.lowest_room(size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            gap = block.following
            assert gap is not None, "a cached block that can grow ends at a gap"
            if not self._map(gap, min(gap.size, size - block.size)):
                return None
            block = gap
        pool.remove(block)
        return block

    def _map(self, gap: Block, size: int) -> bool:
        """Put pages behind the start of a gap, which becomes a cached block (``map_block``)."""
        pool = gap.pool
        size = -(-size // pool.page) * pool.page
        if not self._reserve(size):
            return False
        pool.unmapped.remove(gap)
        if size < gap.size:
            rest = gap.split_off(size)
            rest.mapped = False
            pool.insert_gap(rest)
        gap.mapped = True
        self._cache(gap)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly inside a cached block (``unmap_block``)."""
        pool, page = block.pool, block.pool.page
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if begin >= end:
            return
        pool.remove(block)
        if block.address < begin:
            front, block = block, block.split_off(begin - block.address)
            pool.insert(front)
        if end < block.address + block.size:
            pool.insert(block.split_off(end - begin))
        self.reserved -= end - begin
        block.mapped = False
        neighbour = block.previous
        if neighbour is not None and not neighbour.mapped:
            pool.unmapped.remove(neighbour)
            block.absorb_previous(neighbour)
        neighbour = block.following
        if neighbour is not None and not neighbour.mapped:
            pool.unmapped.remove(neighbour)
            block.absorb_following(neighbour)
        pool.insert_gap(block)
