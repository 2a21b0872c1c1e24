"""The footprint of a training step, and what it says about a job of any shape.

A step's memory is the sum of its blocks; each has the size of a product of lengths (:mod:`fitplan.footprint.size`).
Of the thousands of points of a step only those are kept that can be the highest for some shape: the summits.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fitplan.audit import ParameterGroup
from fitplan.cuda import LARGE_BLOCK, rounded
from fitplan.footprint.overhead import OverheadSample, overhead_at
from fitplan.footprint.size import NO_NUMBERS, Numbers, Shape, Size, lengths_of
from fitplan.memory import AllocatorOverhead, MemoryEstimate, MemoryMoment
from fitplan.phase import Phase
from fitplan.trace.events import Category

CATEGORIES = tuple(Category)


@dataclass(frozen=True, slots=True)
class Block:
    """Allocations of one category whose size is given by one formula.

    Attributes:
        category: what they hold.
        size: bytes as requested.
        per_extra_batch: whether there is one for every micro-batch of the step beyond the first.
        what: module and operator of the first of them.

    """

    category: Category
    size: Size
    per_extra_batch: bool
    what: str


@dataclass(frozen=True, slots=True)
class Live:
    """What is allocated at one point of the step.

    Attributes:
        constant: bytes whose size does not depend on the shape, by category (in the order of :class:`Category`).
        large: how many of the constant blocks are larger than 1 MiB.
        blocks: how many there are of which block: (number of the block, count).

    """

    constant: tuple[int, ...] = (0,) * len(CATEGORIES)
    large: int = 0
    blocks: tuple[tuple[int, int], ...] = ()

    def plus(self, other: "Live") -> "Live":
        """Both together; the numbers of their blocks mean the same blocks."""
        counts = dict(self.blocks)
        for number, count in other.blocks:
            counts[number] = counts.get(number, 0) + count
        constant = tuple(map(operator.add, self.constant, other.constant))
        return Live(constant, self.large + other.large, tuple((n, c) for n, c in sorted(counts.items()) if c))

    def total(self, sizes: Sequence[int]) -> int:
        """Bytes, for blocks of these sizes."""
        return sum(self.constant) + sum(count * sizes[number] for number, count in self.blocks)

    def renumbered(self, by: int) -> "Live":
        """The same with every block's number moved."""
        return replace(self, blocks=tuple((number + by, count) for number, count in self.blocks))


@dataclass(frozen=True, slots=True)
class Summit:
    """A point of the step that is the highest for some shape.

    Attributes:
        phase: what the program is doing.
        part: which part of it, as in :class:`fitplan.trace.events.Moment`.
        name: ``"backward of layer 31"``.
        step: 0 in the first optimizer step, then 1.
        micro_batch: 1 where gradients have been accumulated before.
        with_states: whether the optimizer's states exist.
        live: what is allocated, without the optimizer's states.

    """

    phase: Phase
    part: str
    name: str
    step: int
    micro_batch: int
    with_states: bool
    live: Live

    @property
    def kind(self) -> str:
        """Moments of one kind are told as one: the highest of them."""
        return f"{self.phase}/{self.part}"


@dataclass(frozen=True, kw_only=True)
class Region:
    """The shapes for which a formula holds.

    Attributes:
        batch_size: least and most.
        seq_len: least and most.
        seq_len_step: the sequence length is a multiple of this.
        lora_r: least and most.
        tokens: most in a micro-batch.
        gradient_accumulation_steps: least and most.
        gpus: how many there may be.

    """

    batch_size: tuple[int, int]
    seq_len: tuple[int, int]
    seq_len_step: int
    lora_r: tuple[int, int]
    tokens: int
    gradient_accumulation_steps: tuple[int, int] = (1, 4096)
    gpus: tuple[int, ...] = (1,)

    @property
    def is_point(self) -> bool:
        """Whether it holds for one shape only."""
        return self.batch_size[0] == self.batch_size[1] and self.seq_len[0] == self.seq_len[1]

    @property
    def is_one_shape(self) -> bool:
        """Whether it was traced as it is: then ranks that GPUs do not share evenly are in what was traced."""
        return self.is_point and self.lora_r[0] == self.lora_r[1]

    def __contains__(self, shape: Shape) -> bool:
        return (
            self.batch_size[0] <= shape.batch_size <= self.batch_size[1]
            and self.seq_len[0] <= shape.seq_len <= self.seq_len[1]
            and shape.seq_len % self.seq_len_step == 0
            and self.lora_r[0] <= shape.lora_r <= self.lora_r[1]
            and shape.tokens <= self.tokens
            and shape.gpus in self.gpus
            and (self.is_one_shape or shape.lora_r % shape.gpus == 0)
            and self.gradient_accumulation_steps[0]
            <= shape.gradient_accumulation_steps
            <= self.gradient_accumulation_steps[1]
        )


@dataclass(frozen=True)
class OptimizerFootprint:
    """What an optimizer adds.

    Attributes:
        blocks: the blocks that the numbers mean.
        states: its states, from the end of the first step on.
        summits: points of ``optimizer.step()``, relative to what is live when it begins, with states included.

    """

    blocks: tuple[Block, ...]
    states: Live
    summits: tuple[Summit, ...]


@dataclass(frozen=True, kw_only=True)
class GroupFormula:
    """A :class:`ParameterGroup` whose count and bytes are formulas in the rank."""

    storage: str
    why: str
    trainable: bool
    adapter: bool
    parameters: Size
    bytes: Size
    example: str

    def at(self, shape: Shape) -> ParameterGroup:
        """The group for one rank."""
        values = {"r": shape.lora_r}
        return ParameterGroup(
            storage=self.storage,
            why=self.why,
            trainable=self.trainable,
            adapter=self.adapter,
            parameters=self.parameters.at(values),
            bytes=self.bytes.at(values),
            example=self.example,
        )


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A training step over one region, without what its optimizer adds.

    Attributes:
        region: where it holds.
        blocks: the blocks that the numbers mean.
        summits: in order of time, those inside ``optimizer.step()`` left out.
        kinds: the kinds of moments, in the order in which they first come.
        entry: what is live when ``optimizer.step()`` begins, without its states.
        parameters: how the model's parameters are stored.
        overheads: what the caching allocator adds, in order of tokens; with the recipe's own optimizer.
        numbers: those of the model that lengths depend on.

    """

    region: Region
    blocks: tuple[Block, ...]
    summits: tuple[Summit, ...]
    kinds: tuple[str, ...]
    entry: Live
    parameters: tuple[GroupFormula, ...] = ()
    overheads: tuple[OverheadSample, ...] = ()
    numbers: Numbers = NO_NUMBERS

    def with_optimizer(self, optimizer: OptimizerFootprint) -> "Piece":
        """The whole step."""
        moved = len(self.blocks)
        states = optimizer.states.renumbered(moved)
        own = [s if not s.with_states else replace(s, live=s.live.plus(states)) for s in self.summits]
        added = [replace(s, live=self.entry.plus(s.live.renumbered(moved))) for s in optimizer.summits]
        summits = sorted([*own, *added], key=lambda s: (s.step, _RANK.get(s.phase, 0)))
        kinds = tuple(k for k in self.kinds if any(s.kind == k for s in summits))
        return replace(
            self,
            blocks=self.blocks + optimizer.blocks,
            summits=tuple(summits),
            kinds=kinds,
            entry=self.entry.plus(states),
        )

    def groups(self, shape: Shape) -> tuple[ParameterGroup, ...]:
        """The model's parameters by how they are stored."""
        return tuple(group.at(shape) for group in self.parameters)

    def estimate(self, shape: Shape, capability: tuple[int, int]) -> MemoryEstimate:
        """What a job of this shape needs on a GPU of that compute capability."""
        totals, large = self._evaluated(shape, capability)
        highest: dict[str, tuple[int, Summit]] = {}
        best: tuple[int, Summit] | None = None
        for summit in self._present(shape):
            total = summit.live.total(totals)
            if summit.kind not in highest or total > highest[summit.kind][0]:
                highest[summit.kind] = (total, summit)
            if best is None or total > best[0]:
                best = (total, summit)
        assert best is not None, "a step without summits"
        moments = {
            kind: MemoryMoment(highest[kind][1].name, self._breakdown(highest[kind][1].live, totals))
            for kind in self.kinds
            if kind in highest
        }
        live = best[1].live
        return MemoryEstimate(
            moments[best[1].kind],
            tuple(moments.values()),
            live.large + sum(count * large[number] for number, count in live.blocks),
        )

    def overhead(self, shape: Shape, *, expandable: bool) -> AllocatorOverhead | None:
        """What the caching allocator adds to a job of this shape; ``None`` where it was not replayed near it."""
        return overhead_at(self.overheads, shape, expandable=expandable)

    def summit(self, shape: Shape, capability: tuple[int, int]) -> Summit:
        """The point that peaks."""
        totals, _ = self._evaluated(shape, capability)
        return max(self._present(shape), key=lambda summit: summit.live.total(totals))

    def peaks(self, batch_sizes: Iterable[int], shape: Shape, capability: tuple[int, int]) -> list[int]:
        """``peak_allocated_bytes`` for many batch sizes of the region, the rest as in ``shape``."""
        values = lengths_of(replace(shape, batch_size=1), capability, self.numbers)
        starts, slopes = [], []
        loose: list[tuple[int, Callable[[int], int]]] = []
        for number, block in enumerate(self.blocks):
            times = shape.gradient_accumulation_steps - 1 if block.per_extra_batch else 1
            size, lengths = block.size.at(values), block.size.lengths
            start = slope = 0
            if {"n", "n10", "k", "f"} & set(lengths):
                loose.append((number, self._size_by_rows(block.size, times, shape, capability)))
            elif "b" not in lengths:
                start = times * rounded(size)
            elif size == rounded(size):
                slope = times * size
            else:
                loose.append((number, lambda rows, times=times, size=size: times * rounded(size * rows)))  # type: ignore[misc]
            starts.append(start)
            slopes.append(slope)
        numbers = [number for number, _ in loose]
        lines = _highest({_line(summit.live, starts, slopes, numbers) for summit in self._present(shape)})
        found = []
        for rows in batch_sizes:
            sizes = [size_by_rows(rows) for _, size_by_rows in loose]
            found.append(max(a + b * rows + sum(map(operator.mul, counts, sizes)) for a, b, counts in lines))
        return found

    def _size_by_rows(self, size: Size, times: int, shape: Shape, capability: tuple[int, int]) -> Callable[[int], int]:
        def at(rows: int) -> int:
            values = lengths_of(replace(shape, batch_size=rows), capability, self.numbers)
            return times * rounded(size.at(values))

        return at

    def _present(self, shape: Shape) -> Sequence[Summit]:
        if shape.gradient_accumulation_steps > 1:
            return self.summits
        return [summit for summit in self.summits if not summit.micro_batch]

    def _evaluated(self, shape: Shape, capability: tuple[int, int]) -> tuple[list[int], list[int]]:
        """For each block: bytes of those that come together, and how many of them are large."""
        values = lengths_of(shape, capability, self.numbers)
        extra = shape.gradient_accumulation_steps - 1
        sizes = [rounded(block.size.at(values)) for block in self.blocks]
        times = [extra if block.per_extra_batch else 1 for block in self.blocks]
        totals = [n * size for n, size in zip(times, sizes, strict=True)]
        return totals, [n if size > LARGE_BLOCK else 0 for n, size in zip(times, sizes, strict=True)]

    def _breakdown(self, live: Live, totals: list[int]) -> dict[Category, int]:
        split = dict(zip(CATEGORIES, live.constant, strict=True))
        for number, count in live.blocks:
            split[self.blocks[number].category] += count * totals[number]
        return split


def piece_at_point(
    estimate: MemoryEstimate,
    parameters: Iterable[ParameterGroup],
    shape: Shape,
    capability: tuple[int, int],
    overhead: OverheadSample | None = None,
) -> Piece:
    """What one trace says, as a piece that holds for its shape only."""
    workspace = lengths_of(shape, capability)["w"]
    block = Block(Category.WORKSPACES, Size(1, ("w",)), False, "cuBLAS workspaces")
    region = Region(
        batch_size=(shape.batch_size,) * 2,
        seq_len=(shape.seq_len,) * 2,
        seq_len_step=1,
        lora_r=(shape.lora_r,) * 2,
        tokens=shape.tokens,
        gradient_accumulation_steps=(shape.gradient_accumulation_steps,) * 2,
        gpus=(shape.gpus,),
    )

    def summit(moment: MemoryMoment) -> Summit:
        handles = moment.breakdown[Category.WORKSPACES] // workspace
        constant = tuple(n for c in CATEGORIES for n in [0 if c is Category.WORKSPACES else moment.breakdown[c]])
        large = estimate.large_blocks - handles if moment is estimate.peak else 0
        live = Live(constant, large, ((0, handles),) if handles else ())
        return Summit(
            phase=Phase.FORWARD, part=moment.name, name=moment.name, step=0, micro_batch=0, with_states=False, live=live
        )

    others = [moment for moment in estimate.moments if moment is not estimate.peak]
    summits = tuple(summit(moment) for moment in (estimate.peak, *others))
    kinds = tuple(f"{Phase.FORWARD}/{moment.name}" for moment in estimate.moments)
    groups = tuple(
        GroupFormula(
            storage=g.storage,
            why=g.why,
            trainable=g.trainable,
            adapter=g.adapter,
            parameters=Size(g.parameters),
            bytes=Size(g.bytes),
            example=g.example,
        )
        for g in parameters
    )
    return Piece(
        region=region,
        blocks=(block,),
        summits=summits,
        kinds=kinds,
        entry=Live(),
        parameters=groups,
        overheads=(overhead,) if overhead else (),
    )


Line = tuple[int, int, tuple[int, ...]]
"""With all but the batch size fixed: bytes at no rows, bytes a row, and counts of the blocks that must be rounded."""


def _line(live: Live, starts: list[int], slopes: list[int], loose: list[int]) -> Line:
    start, slope = sum(live.constant), 0
    for number, count in live.blocks:
        start += count * starts[number]
        slope += count * slopes[number]
    counts = dict(live.blocks)
    return start, slope, tuple(counts.get(number, 0) for number in loose)


def _highest(lines: set[Line]) -> list[Line]:
    """The lines that no other exceeds in every part."""
    kept: list[Line] = []
    for line in sorted(lines, reverse=True):
        if not any(o[1] >= line[1] and all(map(operator.ge, o[2], line[2])) for o in kept):
            kept.append(line)
    return kept


_RANK = {Phase.OPTIMIZER: 1, Phase.ZERO_GRAD: 2}


@dataclass(frozen=True)
class Footprint:
    """The memory of one setup, as a formula in the shape of the job.

    Attributes:
        pieces: the formula, region by region.
        attention: the attention implementation that the model uses.
        task: what it is trained to do.
        versions: the libraries that were traced.

    """

    pieces: tuple[Piece, ...]
    attention: str
    task: str
    versions: dict[str, str]

    def piece(self, shape: Shape) -> Piece | None:
        """The piece that holds for ``shape``, if one does; before all others one that holds for nothing else."""
        found = (piece for piece in self.pieces if shape in piece.region)
        return min(found, key=lambda piece: not piece.region.is_point, default=None)

    def for_ranks(self, least: int, most: int) -> "Footprint":
        """The same, for no other ranks."""
        pieces = tuple(replace(piece, region=replace(piece.region, lora_r=(least, most))) for piece in self.pieces)
        return replace(self, pieces=pieces)
