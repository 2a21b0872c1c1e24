"""How a footprint is found: which shapes are traced, and which formula holds where.

Libraries choose their operators by the batch size, the sequence length or the number of tokens, by whether it exceeds
some threshold. So two corners of a region that run the same operators vouch for what lies between them. A batch of one
row is a piece of its own: of an axis of length one PyTorch makes no copy. Where short and long rows differ, the length
is searched at which they part.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fitplan.errors import InputError
from fitplan.footprint.derive import Corner, derive
from fitplan.footprint.footprint import Footprint, GroupFormula, OptimizerFootprint, Piece, Region
from fitplan.footprint.overhead import OverheadSample
from fitplan.footprint.size import NO_NUMBERS, NoFormula, Numbers, Shape, size_through
from fitplan.memory import estimate_trace
from fitplan.setup import Attention

if TYPE_CHECKING:
    from fitplan.trace.tracing import TracedRun

SHORTEST = 5
"""Tokens; rounded up to 8, 16, 32, 64 or 128 it becomes another number each time, so that every rounding shows."""
LONGEST = 131_112
"""Tokens; a multiple of 8 but of no greater power of two."""
ROWS = (2, 499)
LONG = 1048
"""Tokens in a row where there are many rows."""
TOKENS = 2**19
"""Most tokens in a micro-batch of several rows."""
STEP = 8
"""Rows of attention masks are padded to multiples of this (pytorch ``attention.cpp``, ``pad_bias``)."""
ROUNDEST = 128
"""The coarsest rounding of a length."""
ACCUMULATION = (2, 3)
REPLAYED_TOKENS = (512, 1024, 2048, 4096, 8192, 16_384, 65_536)
REPLAYED_ROWS = 4
REPLAYED_RANK = 16
REPLAYED_GPUS = 8


class _Stretch(NamedTuple):
    """Sequence lengths that run the same operators.

    Attributes:
        first: the shortest.
        low: from here on every rounding of the length can be told from the length; traced as the lower corner.
        high: the longest; traced as the upper corner.
        step: they are multiples of this.

    """

    first: int
    low: int
    high: int
    step: int


def optimizer_footprint(
    trace_at: "Callable[[Shape], TracedRun]",
    capability: tuple[int, int],
    ranks: tuple[int, int],
    gpus: tuple[int, ...] = (1,),
) -> OptimizerFootprint:
    """What an optimizer adds, for these ranks and all between; it does not depend on batch size and length.

    Args:
        trace_at: traces the optimizer at a shape.
        capability: of the GPU that is traced.
        ranks: least and most; 0 where there are no adapters.
        gpus: how many there may be.

    Raises:
        NoFormula: it has none, as where an optimizer treats small parameters in another way.

    """
    shapes = [Shape(1, SHORTEST, rank, 1, number) for rank, number in zip(ranks, (gpus[-1], gpus[0]), strict=True)]
    low, high = (Corner(trace_at(shape).trace, shape, capability) for shape in shapes)
    return derive(
        low,
        high,
        Region(batch_size=(1, 1), seq_len=(SHORTEST,) * 2, seq_len_step=1, lora_r=ranks, tokens=SHORTEST, gpus=gpus),
    )[1]


class Survey:
    """The survey of one recipe.

    Args:
        trace_at: traces the recipe at a shape.
        capability: of the GPU that is traced.
        ranks: of the adapters, least and most; 0 where there are none.
        gpus: how many there may be, in order.
        accumulates: whether it is for several micro-batches as well.
        positions: tokens that the model knows positions for, where it raises ``InputError`` beyond them.
        turning_points: lengths after which the operators may change; they are tried before searching.
        numbers: those of the model that lengths depend on.

    """

    def __init__(
        self,
        trace_at: "Callable[[Shape], TracedRun]",
        capability: tuple[int, int],
        *,
        ranks: tuple[int, int],
        gpus: tuple[int, ...] = (1,),
        accumulates: bool = True,
        positions: int = LONGEST,
        turning_points: tuple[int, ...] = (),
        numbers: Numbers = NO_NUMBERS,
    ) -> None:
        self._trace_at = trace_at
        self._capability = capability
        self._ranks = ranks
        self._gpus = gpus
        self._accumulation = ACCUMULATION if accumulates else (1, 1)
        self._region: dict[str, Any] = {
            "gpus": gpus,
            **({} if accumulates else {"gradient_accumulation_steps": (1, 1)}),
        }
        self._positions = positions
        self._turning_points = turning_points
        self._numbers = numbers
        self._corners: dict[Shape, tuple[Corner, TracedRun]] = {}

    def footprint(self, versions: dict[str, str]) -> tuple[Footprint, OptimizerFootprint]:
        """The footprint without its optimizer, and what the optimizer adds.

        Raises:
            NoFormula: the step has no formula.

        """
        pieces: list[Piece] = []
        optimizer: OptimizerFootprint | None = None
        for stretch in self._stretches():
            piece, added = self._one_row(stretch)
            optimizer = optimizer or added
            parameters = self._parameters(stretch)
            found = [piece, *self._several_rows(stretch, piece.overheads)]
            pieces += [replace(one, parameters=parameters) for one in found]
        assert optimizer is not None, "there is at least one stretch"
        run = next(iter(self._corners.values()))[1]
        return Footprint(tuple(pieces), str(run.attention), str(run.task), versions), optimizer

    # --- which lengths -----------------------------------------------------------------------------------------------

    def _stretches(self) -> Iterator[_Stretch]:
        """Sequence lengths that run the same operators."""
        longest = self._longest()
        if self._alike(SHORTEST, longest):
            yield _Stretch(SHORTEST, SHORTEST, longest, 1)
            return
        shortest = STEP
        step = 1 if self._alike(SHORTEST, shortest) else STEP
        if self._alike(shortest, longest):
            yield _Stretch(shortest, shortest, longest, STEP)
            return
        turn = self._turn(shortest, longest, step)
        low = SHORTEST if step == 1 else shortest
        yield _Stretch(low, low, turn, step)
        after = -(-turn // ROUNDEST) * ROUNDEST
        step = 1 if self._alike(after + SHORTEST, longest) else STEP
        low = after + (SHORTEST if step == 1 else STEP)
        yield _Stretch(min(low, -(-(turn + 1) // step) * step), low, longest, step)

    def _longest(self) -> int:
        for length in (LONGEST, self._positions):
            try:
                self._corner(1, length, high=True)
            except InputError:
                continue
            return length
        return self._positions - STEP  # a table of positions holds a few that are not for tokens

    def _turn(self, low: int, high: int, step: int) -> int:
        """The longest length that still runs the operators of ``low``."""
        for point in self._turning_points:
            for turn in (point // step * step, (point - 1) // step * step):
                if low < turn < high - step and self._alike(low, turn) and not self._alike(low, turn + step):
                    return turn
        while high - low > step:
            middle = (low + high) // 2 // step * step
            low, high = (middle, high) if self._alike(low, middle) else (low, middle)
        return low

    def _alike(self, low: int, high: int) -> bool:
        return not self._corner(1, low, high=False).differs_from(self._corner(1, high, high=True))

    # --- the formula -------------------------------------------------------------------------------------------------

    def _one_row(self, stretch: _Stretch) -> tuple[Piece, OptimizerFootprint]:
        low, high = self._corner(1, stretch.low, high=False), self._corner(1, stretch.high, high=True)
        region = Region(
            batch_size=(1, 1),
            seq_len=(stretch.first, stretch.high),
            seq_len_step=stretch.step,
            lora_r=self._ranks,
            tokens=stretch.high,
            **self._region,
        )
        piece, optimizer = derive(low, high, region, self._replayed(region, 1, 0))
        return self._where_it_holds(piece, optimizer, stretch), optimizer

    def _several_rows(self, stretch: _Stretch, one_row: tuple[OverheadSample, ...]) -> list[Piece]:
        """A piece, or none where there is no formula.

        What the allocator adds is taken from one row of as many tokens, except where attention keeps a matrix a row.
        """
        long = min(stretch.high, max(LONG, 2 * stretch.low)) // stretch.step * stretch.step
        rows = min(ROWS[1], TOKENS // long)
        region = Region(
            batch_size=(ROWS[0], rows),
            seq_len=(stretch.first, stretch.high),
            seq_len_step=stretch.step,
            lora_r=self._ranks,
            tokens=TOKENS,
            **self._region,
        )
        low, high = self._corner(ROWS[0], stretch.low, high=False), self._corner(rows, long, high=True)
        known = () if self._corners[low.shape][1].attention is Attention.EAGER else one_row
        reach = known[-1].tokens if known else 0
        try:
            piece, optimizer = derive(low, high, region, self._replayed(region, REPLAYED_ROWS, reach))
        except NoFormula:
            return []
        whole = replace(piece, overheads=known + piece.overheads)
        return [self._where_it_holds(whole, optimizer, stretch)]

    def _where_it_holds(self, piece: Piece, optimizer: OptimizerFootprint, stretch: _Stretch) -> Piece:
        """The piece, if it gives the trace of the stretch's first length; else without what is before the corner."""
        if stretch.first < stretch.low:
            corner = self._corner(piece.region.batch_size[0], stretch.first, high=False)
            if (
                not piece.with_optimizer(optimizer)
                .estimate(corner.shape, self._capability)
                .agrees_with(estimate_trace(corner.trace))
            ):
                return replace(piece, region=replace(piece.region, seq_len=(stretch.low, stretch.high)))
        return piece

    def _replayed(self, region: Region, rows: int, beyond: int) -> list[Shape]:
        """Shapes of the region of more tokens at which the caching allocator is replayed, in order of their tokens."""
        (shortest, longest), step = region.seq_len, region.seq_len_step
        least, most = max(rows * shortest, beyond + 1), min(region.tokens, region.batch_size[1] * longest)
        rank = min(max(REPLAYED_RANK, self._ranks[0]), self._ranks[1])
        shapes = []
        for tokens in (*(count for count in REPLAYED_TOKENS if least <= count < most), most):
            enough = max(rows, -(-tokens // longest))
            gpus = min(REPLAYED_GPUS, self._gpus[-1])
            shapes.append(Shape(enough, max(shortest, tokens // enough // step * step), rank, 1, gpus))
        return shapes

    def _corner(self, rows: int, length: int, *, high: bool) -> Corner:
        gpus = self._gpus[0] if high else self._gpus[-1]  # the more, the less of the model on each
        return self._traced(Shape(rows, length, self._ranks[high], self._accumulation[high], gpus))

    def _traced(self, shape: Shape) -> Corner:
        if shape not in self._corners:
            run = self._trace_at(shape)
            self._corners[shape] = Corner(run.trace, shape, self._capability, self._numbers), run
        return self._corners[shape][0]

    def _parameters(self, stretch: _Stretch) -> tuple[GroupFormula, ...]:
        ends = (stretch.low, False), (stretch.high, True)
        corners = [self._corners[self._corner(1, length, high=end).shape] for length, end in ends]
        formulas = []
        for groups in zip(*(run.parameters for _, run in corners), strict=True):
            values = [corner.values for corner, _ in corners]
            count = size_through(list(zip(values, (group.parameters for group in groups), strict=True)))
            size = size_through(list(zip(values, (group.bytes for group in groups), strict=True)))
            first = groups[0]
            formulas.append(
                GroupFormula(
                    storage=first.storage,
                    why=first.why,
                    trainable=first.trainable,
                    adapter=first.adapter,
                    parameters=count,
                    bytes=size,
                    example=first.example,
                )
            )
        return tuple(formulas)
