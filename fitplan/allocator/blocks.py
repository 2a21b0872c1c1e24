"""The blocks of the caching allocator, and the pools that cache them."""

from bisect import bisect_left, insort
from operator import attrgetter

ADDRESS_BITS = 128
"""More than any machine has: a config that nothing can hold is answered for all the same."""
_address = attrgetter("address")


class Block:
    """A piece of a segment: handed out, cached, or (in an expandable segment) not backed by memory.

    Attributes:
        address: of its first byte.
        size: bytes; what ``torch.cuda.memory_allocated`` counts.
        requested: bytes that were asked for; what ``requested_bytes`` counts.
        cached: whether it waits in its pool to be handed out.
        mapped: whether there is memory behind it; false only in expandable segments.

    """

    __slots__ = ("address", "cached", "following", "mapped", "pool", "previous", "requested", "searches", "size")

    def __init__(self, pool: "Pool", address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.requested = 0
        self.cached = False
        self.mapped = True
        self.previous: Block | None = None
        self.following: Block | None = None
        self.searches = 0

    def split_off(self, size: int) -> "Block":
        """Keep the first ``size`` bytes; the block of the rest, which is not cached yet."""
        rest = Block(self.pool, self.address + size, self.size - size)
        self.size = size
        rest.previous, rest.following = self, self.following
        if rest.following is not None:
            rest.following.previous = rest
        self.following = rest
        return rest

    def absorb_previous(self, other: "Block") -> None:
        """Grow over the block before."""
        self.address = other.address
        self.size += other.size
        self.previous = other.previous
        if self.previous is not None:
            self.previous.following = self

    def absorb_following(self, other: "Block") -> None:
        """Grow over the block behind."""
        self.size += other.size
        self.following = other.following
        if self.following is not None:
            self.following.previous = self

    @property
    def room(self) -> int:
        """Bytes to which a cached block of an expandable segment can grow."""
        gap = self.following
        return self.size + (gap.size if gap is not None and not gap.mapped else 0)

    @property
    def whole(self) -> bool:
        """Whether it is a whole segment."""
        return self.previous is None and self.following is None


class Pool:
    """The cached blocks for small or for large requests.

    Attributes:
        keys: size and address of each cached block in one number, ascending (``BlockComparatorSize``).
        blocks: the cached blocks in the same order.
        unmapped: the gaps of the expandable segment, by address; the last has no end.
        page: bytes by which the expandable segment grows.
        least_rest: the smallest remainder that is split off (``should_split``).
        splits_below: requests of this size or more keep the whole block.
        live: blocks handed out.
        searches: how often a block was looked for; the clock of the garbage collection.

    """

    __slots__ = ("blocks", "keys", "least_rest", "live", "page", "searches", "splits_below", "unmapped")

    def __init__(self, page: int, least_rest: int, splits_below: int) -> None:
        self.keys: list[int] = []
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []
        self.page = page
        self.least_rest = least_rest
        self.splits_below = splits_below
        self.live = 0
        self.searches = 0

    def insert(self, block: Block) -> None:
        """Cache a block."""
        block.cached = True
        block.searches = self.searches
        key = (block.size << ADDRESS_BITS) | block.address
        place = bisect_left(self.keys, key)
        self.keys.insert(place, key)
        self.blocks.insert(place, block)

    def remove(self, block: Block) -> None:
        """Take a block out of the cache."""
        block.cached = False
        place = bisect_left(self.keys, (block.size << ADDRESS_BITS) | block.address)
        del self.keys[place], self.blocks[place]

    def insert_gap(self, gap: Block) -> None:
        """Note a stretch of addresses that no memory is behind."""
        insort(self.unmapped, gap, key=_address)

    def lowest_room(self, size: int) -> Block:
        """Where the lowest row of cached blocks and gaps with ``size`` bytes begins (``find_expandable_block``)."""
        for gap in self.unmapped:
            before = gap.previous
            start = before if before is not None and before.cached else gap
            room, block = 0, start
            while True:
                room += block.size
                if room >= size:
                    return start
                if block.following is None or (block.following.mapped and not block.following.cached):
                    break
                block = block.following
        raise AssertionError("the last gap has no end")
