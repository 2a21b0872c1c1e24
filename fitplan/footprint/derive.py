"""From two traces of different shape to the formula that gives both, and all between.

An example, of one row. At 5 and at 56 tokens the same operators run in the same order, and the allocations have the
sizes

    ====================  ========  ========  ==============
    allocation            5 tokens  56        formula
    ====================  ========  ========  ==============
    a weight                 8 192     8 192  8192
    hidden states              640     7 168  128 s
    logits                   2 560    28 672  512 s
    attention's weights        400    50 176  16 s s
    ====================  ========  ========  ==============

Where a size is the same in both it is a constant; else it is a whole number times the simplest product of lengths
that gives both (:func:`fitplan.footprint.size.size_through`). After each event it is known which of them live: a row
of counts, such as one weight, two hidden states and the logits: 8192 + 2 x 128 s + 512 s bytes. The peak at any
length is the highest of these rows. Most can never be the highest, whatever the length, and are dropped
(:mod:`fitplan.footprint.envelope`); what is left are the summits of a piece. At the end the formula has to give both
traces back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fitplan.cuda import LARGE_BLOCK, rounded
from fitplan.footprint.envelope import Counts, Envelope
from fitplan.footprint.footprint import CATEGORIES, Block, Live, OptimizerFootprint, Piece, Region, Summit
from fitplan.footprint.overhead import OverheadSample, replayed
from fitplan.footprint.size import NO_NUMBERS, Lengths, NoFormula, Numbers, Shape, Size, lengths_of, size_through
from fitplan.memory import estimate_trace, moment_title
from fitplan.phase import Phase
from fitplan.trace.events import CUBLAS_CREATE, EMPTY_CACHE, Allocation, Category, Moment, Trace

EDGES = 2
"""Layers at either end of a stack that may differ from those between."""


class NotAlike(NoFormula):
    """Two shapes do not run the same operators."""


@dataclass(slots=True)
class _Birth:
    allocation: Allocation
    per_extra_batch: bool


class Corner:
    """A trace at one shape, as one end of a region.

    The micro-batches that are neither first nor last are left out: they are like the last.
    """

    def __init__(self, trace: Trace, shape: Shape, capability: tuple[int, int], numbers: Numbers = NO_NUMBERS) -> None:
        self.trace, self.shape, self.capability, self.numbers = trace, shape, capability, numbers
        self.values = lengths_of(shape, capability, numbers)
        last = shape.gradient_accumulation_steps - 1
        middle = {f"{what} {number}" for number in range(1, last) for what in ("batch", "labels of batch")}
        self.births: list[_Birth] = []
        self.events: list[int] = []
        self.moments: list[Moment] = []
        number: dict[int, int] = {}
        for event, moment in zip(trace.events, trace.moments, strict=True):
            index = event if event >= 0 else ~event
            allocation = trace.allocations[index]
            if allocation.owner in middle:
                continue
            if event >= 0:
                number[index] = len(self.births)
                self.births.append(_Birth(allocation, _per_extra_batch(allocation, last)))
            self.events.append(number[index] if event >= 0 else ~number[index])
            self.moments.append(moment)
        self._sort_releases()

    def _sort_releases(self) -> None:
        """Autograd drops what a finished graph held in no particular order."""
        start = 0
        for place, event in enumerate([*self.events, 0]):
            if event >= 0:
                if place - start > 1:
                    self.events[start:place] = sorted(self.events[start:place])
                start = place + 1

    def differs_from(self, other: "Corner") -> str:
        """Where the operators part; empty if they do not."""
        if len(self.events) != len(other.events):
            return f"{len(self.events)} and {len(other.events)} events"
        for place, (one, two) in enumerate(zip(self.births, other.births, strict=False)):
            a, b = one.allocation, two.allocation
            if (a.op, a.category, one.per_extra_batch) != (b.op, b.category, two.per_extra_batch):
                return f"allocation {place} is {a.op} of {a.owner}, or {b.op} of {b.owner}"
        if self.events != other.events or self.moments != other.moments:
            place = next(
                p
                for p, (a, b) in enumerate(zip(self.events, other.events, strict=True))
                if a != b or self.moments[p] != other.moments[p]
            )
            return f"event {place}, in {self.moments[place].name}"
        return ""


def derive(
    low: Corner, high: Corner, region: Region, sampled: Sequence[Shape] = ()
) -> tuple[Piece, OptimizerFootprint]:
    """The formula of a step from its traces at two corners of ``region``, and what its optimizer adds.

    At the shapes ``sampled``, of one micro-batch, the caching allocator is asked what it adds.

    Raises:
        NotAlike: the corners do not run the same operators, or the formula does not give them back.
        NoFormula: the size of an allocation is no product of the known lengths.

    """
    if difference := low.differs_from(high):
        raise NotAlike(difference)
    derivation = _Derivation(low, high, region)
    piece, optimizer = derivation.run()
    whole = piece.with_optimizer(optimizer)
    for corner in (low, high):
        if not whole.estimate(corner.shape, corner.capability).agrees_with(estimate_trace(corner.trace)):
            raise NotAlike(f"the formula does not give the trace at {corner.shape}")
    return replace(piece, overheads=derivation.overheads(sampled)), optimizer


def _per_extra_batch(allocation: Allocation, last: int) -> bool:
    """The last batch stands for all but the first; the first batch's count of labels for all but the last."""
    if allocation.owner == "labels of batch 0":
        return last > 0 and ".sum" in allocation.op
    return last > 0 and allocation.owner == f"batch {last}"


@dataclass(slots=True)
class _Columns:
    """The blocks of both traces, and the column of each allocation; constants have no block."""

    blocks: list[Block] = field(default_factory=list)
    numbers: dict[tuple[object, ...], int] = field(default_factory=dict)

    def of(self, low: _Birth, high: _Birth, runs: tuple[Corner, Corner]) -> int | None:
        sizes = (low.allocation.size, high.allocation.size)
        key = (*sizes, low.per_extra_batch, low.allocation.category, low.allocation.op == CUBLAS_CREATE)
        if key not in self.numbers:
            workspace = low.allocation.op == CUBLAS_CREATE
            size = (
                Size(1, ("w",))
                if workspace
                else size_through([(run.values, n) for run, n in zip(runs, sizes, strict=True)])
            )
            constant = not size.lengths and not low.per_extra_batch
            self.numbers[key] = -1 if constant else len(self.blocks)
            if not constant:
                what = _what(low.allocation)
                self.blocks.append(Block(low.allocation.category, size, low.per_extra_batch, what))
        number = self.numbers[key]
        return None if number < 0 else number


def _what(allocation: Allocation) -> str:
    owner = ".".join("*" if part.isdigit() else part for part in allocation.owner.split("."))
    return f"{owner.removeprefix('base_model.model.')}: {allocation.op.removeprefix('aten.')}"


class _Derivation:
    def __init__(self, low: Corner, high: Corner, region: Region) -> None:
        self._low, self._high, self._region = low, high, region
        self._columns = _Columns()
        columns = [self._columns.of(a, b, (low, high)) for a, b in zip(low.births, high.births, strict=True)]
        self._block_of = columns
        self._blocks = self._columns.blocks
        self._count = len(self._blocks)
        self._rows = self._accumulate(columns)
        self._is_state = self._state_columns()

    # --- what is live after each event -------------------------------------------------------------------------------

    def _accumulate(self, columns: Sequence[int | None]) -> Counts:
        """[events, blocks + categories + 1]: counts of blocks, constant bytes by category, large constant blocks."""
        width = self._count + len(CATEGORIES) + 1
        place = {category: self._count + index for index, category in enumerate(CATEGORIES)}
        births = self._low.births
        column = np.array(
            [place[b.allocation.category] if c is None else c for b, c in zip(births, columns, strict=True)]
        )
        amount = np.array(
            [rounded(b.allocation.size) if c is None else 1 for b, c in zip(births, columns, strict=True)]
        )
        large = np.array([c is None and b.allocation.size > LARGE_BLOCK for b, c in zip(births, columns, strict=True)])
        events = np.array(self._low.events)
        sign = np.where(events >= 0, 1, -1)
        number = np.where(events >= 0, events, ~events)
        rows = np.zeros((len(events), width), dtype=np.int64)
        rows[np.arange(len(events)), column[number]] = sign * amount[number]
        rows[:, -1] = sign * large[number]
        return np.cumsum(rows, axis=0, out=rows)

    def _state_columns(self) -> NDArray[np.bool_]:
        """Which columns are the optimizer's states."""
        states = [b.category is Category.OPTIMIZER_STATES for b in self._blocks]
        states += [category is Category.OPTIMIZER_STATES for category in CATEGORIES]
        return np.array([*states, False])

    # --- the two parts -----------------------------------------------------------------------------------------------

    def run(self) -> tuple[Piece, OptimizerFootprint]:
        moments = self._low.moments
        entries = self._entries()
        states = np.where(self._is_state, entries[1], 0)
        states_large = entries[1][-1] - entries[0][-1]
        body_rows: dict[str, list[int]] = {}
        step_rows: list[int] = []
        kinds: dict[str, None] = {}
        for place in self._tops():
            moment = moments[place]
            kind = f"{moment.phase}/{moment.part}"
            kinds.setdefault(kind)
            if moment.phase is Phase.OPTIMIZER:
                step_rows.append(place)
            else:
                body_rows.setdefault(kind, []).append(place)
        entry = np.where(self._is_state, 0, entries[0])
        self._check_states(entries, states, body_rows)
        summits: list[tuple[int, Summit]] = []
        for rows in body_rows.values():
            summits += self._summits(rows, states, states_large)
        piece = Piece(
            region=self._region,
            blocks=tuple(self._blocks),
            summits=tuple(summit for _, summit in sorted(summits, key=lambda pair: pair[0])),
            kinds=tuple(kinds),
            entry=self._live(entry),
            numbers=self._low.numbers,
        )
        return self._without_unused(piece), self._optimizer(step_rows, entry, states, states_large)

    # --- the allocator -----------------------------------------------------------------------------------------------

    def overheads(self, shapes: Sequence[Shape]) -> tuple[OverheadSample, ...]:
        """What the caching allocator adds to jobs of these shapes and one micro-batch."""
        births, later = self._low.births, set()
        events, steps = [], []
        for event, moment in zip(self._low.events, self._low.moments, strict=True):
            if event >= 0 and (moment.micro_batch or births[event].per_extra_batch):
                later.add(event)
            elif event >= 0 or ~event not in later:
                events.append(event)
                steps.append(moment.step)
        emptied = {number for number, birth in enumerate(births) if birth.allocation.op == EMPTY_CACHE}
        streams = {n: birth.allocation.stream for n, birth in enumerate(births) if birth.allocation.stream}
        return tuple(replayed(self._sizes(shape), events, steps, shape, emptied, streams) for shape in shapes)

    def _sizes(self, shape: Shape) -> list[int]:
        """The size of every allocation at a shape."""
        values = lengths_of(shape, self._low.capability, self._low.numbers)
        sizes = [block.size.at(values) for block in self._blocks]
        return [
            birth.allocation.size if block is None else sizes[block]
            for birth, block in zip(self._low.births, self._block_of, strict=True)
        ]

    def _entries(self) -> tuple[Counts, Counts]:
        """What is live when the optimizer's step begins, in both steps."""
        after = (Phase.OPTIMIZER, Phase.ZERO_GRAD)
        last = {m.step: place for place, m in enumerate(self._low.moments) if m.phase not in after}
        return self._rows[last[0]], self._rows[last[1]]

    def _check_states(self, entries: tuple[Counts, Counts], states: Counts, body: dict[str, list[int]]) -> None:
        first, second = (np.where(self._is_state, 0, entry) for entry in entries)
        if (first[:-1] != second[:-1]).any():
            raise NotAlike("the second step begins with other memory than the first")
        for rows in body.values():
            held = self._rows[rows][:, self._is_state]
            if not ((held == 0).all(axis=1) | (held == states[self._is_state]).all(axis=1)).all():
                raise NotAlike("optimizer states come and go")

    def _tops(self) -> list[int]:
        """Births that are not followed by another birth in the same moment: only there can a maximum be."""
        events, moments = self._low.events, self._low.moments
        last = len(events) - 1
        return [
            p
            for p, event in enumerate(events)
            if event >= 0 and (p == last or events[p + 1] < 0 or moments[p + 1] is not moments[p])
        ]

    def _live(self, row: Counts) -> Live:
        blocks = tuple((int(n), int(row[n])) for n in np.flatnonzero(row[: self._count]))
        constant = tuple(int(v) for v in row[self._count : -1])
        return Live(constant, int(row[-1]), blocks)

    def _summits(self, rows: list[int], states: Counts, states_large: int) -> list[tuple[int, Summit]]:
        moments = self._low.moments
        values = self._rows[rows]
        some = self._is_state.any() and states.any()
        with_states = (
            (values[:, self._is_state] != 0).any(axis=1) if some else np.array([moments[p].step > 0 for p in rows])
        )
        values = np.where(self._is_state, 0, values)
        values[:, -1] -= np.where(with_states, states_large, 0)
        kept = self._highest(rows, values, with_states)
        found = []
        for place in kept:
            moment = moments[rows[place]]
            found.append(
                (
                    rows[place],
                    Summit(
                        phase=moment.phase,
                        part=moment.part,
                        name=moment_title(moment, self._low.trace),
                        step=moment.step,
                        micro_batch=moment.micro_batch,
                        with_states=bool(with_states[place]),
                        live=self._live(values[place]),
                    ),
                )
            )
        return found

    def _optimizer(self, rows: list[int], entry: Counts, states: Counts, states_large: int) -> OptimizerFootprint:
        moments = self._low.moments
        values = self._rows[rows] - entry if rows else np.zeros((0, self._rows.shape[1]), dtype=np.int64)
        kept = self._highest(rows, values, np.ones(len(rows), dtype=bool)) if rows else []
        summits = [
            Summit(
                phase=Phase.OPTIMIZER,
                part=moments[rows[p]].part,
                name=moment_title(moments[rows[p]], self._low.trace),
                step=moments[rows[p]].step,
                micro_batch=0,
                with_states=True,
                live=self._live(values[p]),
            )
            for p in sorted(kept)
        ]
        state_row = states.copy()
        state_row[-1] = states_large
        used = sorted({n for live in [self._live(state_row), *(s.live for s in summits)] for n, _ in live.blocks})
        number = {old: new for new, old in enumerate(used)}
        return OptimizerFootprint(
            tuple(self._blocks[n] for n in used),
            _renumbered(self._live(state_row), number),
            tuple(replace(s, live=_renumbered(s.live, number)) for s in summits),
        )

    def _without_unused(self, piece: Piece) -> Piece:
        used = sorted({n for live in [piece.entry, *(s.live for s in piece.summits)] for n, _ in live.blocks})
        number = {old: new for new, old in enumerate(used)}
        return replace(
            piece,
            blocks=tuple(piece.blocks[n] for n in used),
            summits=tuple(replace(s, live=_renumbered(s.live, number)) for s in piece.summits),
            entry=_renumbered(piece.entry, number),
        )

    # --- the envelope ------------------------------------------------------------------------------------------------

    def _highest(self, rows: list[int], values: Counts, with_states: NDArray[np.bool_]) -> list[int]:
        """The places of those rows that may be the highest for some shape of the region."""
        polynomials, loose = self._polynomials(values)
        later = np.array([self._low.moments[row].micro_batch for row in rows])
        envelope = Envelope(polynomials, loose, later, with_states)
        envelope.drop_exceeded(self._probe)
        same: dict[str, list[int]] = {}
        for place in envelope.alive():
            allocation = self._low.births[self._low.events[rows[place]]].allocation
            same.setdefault(_what(allocation), []).append(place)
        for places in same.values():
            envelope.drop_between([(a, b) for a in places[:EDGES] for b in places[-EDGES:] if a < b])
        envelope.drop_under_means()
        return envelope.alive()

    def _polynomials(self, values: Counts) -> tuple[Counts, Counts]:
        """Each row as coefficients of products of (length - least length), and its counts of rounded blocks."""
        least = dict.fromkeys(("n", "n10", "q", "q10", "g-1"), 0)
        region = self._region
        smallest = Shape(region.batch_size[0], region.seq_len[0], region.lora_r[0], 1, region.gpus[-1])
        floor = lengths_of(smallest, (8, 0), self._low.numbers) | least
        products: dict[Lengths, int] = {(): 0}
        terms: list[list[tuple[int, int]]] = []
        for block in self._blocks:
            lengths = block.size.lengths + (("g-1",) if block.per_extra_batch else ())
            expansion: list[tuple[int, Lengths]] = [(block.size.coefficient, ())]
            for name in lengths:
                expansion = [(c * floor[name], part) for c, part in expansion] + [
                    (c, (*part, name)) for c, part in expansion
                ]
            terms.append([(products.setdefault(tuple(sorted(part)), len(products)), c) for c, part in expansion if c])
        matrix = np.zeros((values.shape[1], len(products)), dtype=np.int64)
        for number, expansion_terms in enumerate(terms):
            for product, c in expansion_terms:
                matrix[number, product] += c
        matrix[self._count : -1, 0] = 1
        high = self._high.values | {"g-1": 1}
        excess = {name: max(0, value - floor.get(name, 0)) for name, value in high.items()}
        self._probe = np.array([float(np.prod([float(excess[n]) for n in p])) for p in products])
        unaligned = np.array([not b.size.is_aligned for b in self._blocks], dtype=bool)
        return values @ matrix, values[:, : self._count][:, unaligned]


def _renumbered(live: Live, number: dict[int, int]) -> Live:
    return Live(live.constant, live.large, tuple((number[n], count) for n, count in live.blocks))
