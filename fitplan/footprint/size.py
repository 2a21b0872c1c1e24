"""The size of an allocation as a formula: a whole number of bytes times the lengths that its shape is made of."""

import math
from dataclasses import dataclass
from itertools import product

from fitplan.cuda import EMBEDDING_PART, EMBEDDING_SORTS_BEYOND, GRANULE, cublas_workspace


@dataclass(frozen=True)
class Shape:
    """What a footprint is a function of.

    Attributes:
        batch_size: rows in a micro-batch.
        seq_len: tokens in a row.
        lora_r: rank of the adapters; 0 where there are none.
        gradient_accumulation_steps: micro-batches in an optimizer step.
        gpus: GPUs that each hold a part of the model; 2 where several hold all of it, however many they are.

    """

    batch_size: int
    seq_len: int
    lora_r: int = 0
    gradient_accumulation_steps: int = 1
    gpus: int = 1

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch."""
        return self.batch_size * self.seq_len


@dataclass(frozen=True)
class Numbers:
    """Numbers of a model that lengths depend on; 0 where there is no such thing.

    Attributes:
        loss_pieces: into how many pieces Liger cuts the loss (:func:`loss_piece`).
        tile_tokens: of how many tokens the fused output head has the logits at a time at most.
        vocabulary: rows of the embedding of tokens.
        positions: rows of the embedding of positions, of which each token looks one up.
        types: rows of the embedding of token types.
        buckets: rows of the embedding of relative positions, of which each pair of positions looks one up.

    """

    loss_pieces: int = 0
    tile_tokens: int = 0
    vocabulary: int = 0
    positions: int = 0
    types: int = 0
    buckets: int = 0


NO_NUMBERS = Numbers()


PARTS = 64
"""Into so many parts a model is cut in formulas; numbers of GPUs that divide it each hold some of them whole."""

_ROUNDINGS = (8, 16, 32, 64, 128)

LENGTHS = {
    "b": "batch size",
    "s": "sequence length",
    "r": "rank",
    "g": "accumulation steps",
    "s-1": "sequence length - 1",
    "s+1": "sequence length + 1",
    **{f"s{multiple}": f"sequence length, rounded up to {multiple}" for multiple in _ROUNDINGS},
    **{
        sign: f"{what}, where {looking_up} are sorted"
        for sign, what, looking_up in (
            ("n", "tokens", "tokens"),
            ("n10", "tenths of the tokens", "tokens"),
            ("q", "pairs of positions", "they"),
            ("q10", "tenths of the pairs of positions", "they"),
        )
    },
    **{
        f"{table}{part}": f"{what} {of}"
        for table, of in (("n", "tokens"), ("m", "positions"), ("t", "token types"), ("q", "relative positions"))
        for part, what in (("d", "most distinct"), ("p", "parts of the sums over"))
    },
    "k": "tokens in a piece of Liger's loss",
    "f": "tokens in a tile of the fused output head",
    "w": "cuBLAS workspace",
    "p": f"{PARTS}ths of the model on a GPU",
}
"""The lengths that sizes are made of, and what they are called. What embeddings look up is sorted beyond 3072."""


def loss_piece(tokens: int, pieces: int) -> int:
    """Tokens of which Liger has the logits at a time; ``pieces`` is vocabulary / hidden size, rounded up.

    Source: liger-kernel ``ops/fused_linear_cross_entropy.py``, ``fused_linear_cross_entropy_forward``.
    """
    least = -(-tokens // pieces)
    return min(1 << (least - 1).bit_length(), tokens)


def _sorted(sign: str, count: int, **tables: int) -> dict[str, int]:
    """Lengths of what the gradients of embeddings take that look up ``count`` rows of tables of so many rows.

    ``embedding_backward_scratch`` of the kernels' rules has the source.
    """
    count = count if count > EMBEDDING_SORTS_BEYOND else 0
    distinct = {table: min(count, rows) for table, rows in tables.items()}
    return {
        sign: count,
        f"{sign}10": -(-count // EMBEDDING_PART),
        **{f"{table}d": rows for table, rows in distinct.items()},
        **{f"{table}p": count // EMBEDDING_PART + rows for table, rows in distinct.items()},
    }


def _sorted_lengths(shape: Shape, numbers: Numbers) -> dict[str, int]:
    return {
        **_sorted("n", shape.tokens, n=numbers.vocabulary, m=numbers.positions, t=numbers.types),
        **_sorted("q", shape.seq_len**2, q=numbers.buckets),
    }


def lengths_of(shape: Shape, capability: tuple[int, int], numbers: Numbers = NO_NUMBERS) -> dict[str, int]:
    """The value of every length."""
    s = shape.seq_len
    return {
        "b": shape.batch_size,
        "s": s,
        "r": shape.lora_r,
        "g": shape.gradient_accumulation_steps,
        "s-1": s - 1,
        "s+1": s + 1,
        **{f"s{multiple}": -(-s // multiple) * multiple for multiple in _ROUNDINGS},
        **_sorted_lengths(shape, numbers),
        "k": loss_piece(shape.tokens, numbers.loss_pieces) if numbers.loss_pieces else 0,
        "f": min(shape.batch_size * (s - 1), numbers.tile_tokens),
        "w": cublas_workspace(capability),
        "p": PARTS // shape.gpus,
    }


Lengths = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """``coefficient`` times the product of ``lengths``; no lengths make a constant."""

    coefficient: int
    lengths: Lengths = ()

    def at(self, values: dict[str, int]) -> int:
        """The size for these values of the lengths."""
        return math.prod((values[name] for name in self.lengths), start=self.coefficient)

    @property
    def is_aligned(self) -> bool:
        """Whether it is a multiple of the allocator's granule whatever the lengths are."""
        return self.coefficient % GRANULE == 0 and "w" not in self.lengths

    def __str__(self) -> str:
        return " ".join([str(self.coefficient), *self.lengths])

    @classmethod
    def parse(cls, text: str) -> "Size":
        """The inverse of ``str``."""
        coefficient, *lengths = text.split(" ")
        return cls(int(coefficient), tuple(lengths))


def _products() -> list[Lengths]:
    batch: list[Lengths] = [(), ("b",)]
    rounded = [f"s{multiple}" for multiple in _ROUNDINGS]
    length: list[Lengths] = [(), ("s",), ("s-1",), ("s+1",), *((name,) for name in rounded)]
    length += [("s", "s"), ("s", "s+1"), *(("s", name) for name in rounded)]
    rank: list[Lengths] = [(), ("r",)]
    others: list[Lengths] = [(name,) for name in (*_sorted_lengths(Shape(0, 0), NO_NUMBERS), "g", "k", "f")]
    return [r + b + s for b, s, r in product(batch, length, rank)] + [("p",), ("r", "p"), *others]


def _intricacy(lengths: Lengths) -> tuple[int, int]:
    """How much a product supposes: its factors, and those that are not plain."""
    return len(lengths), sum(name not in "bsrgkfp" for name in lengths)


_PRODUCTS = sorted(_products(), key=_intricacy)

_LEAST_SORTED = 4
"""Bytes: what sorting takes are float32 numbers and int64 positions."""


class NoFormula(Exception):
    """A size is no product of the known lengths."""


def size_through(points: list[tuple[dict[str, int], int]]) -> Size:
    """The simplest formula that gives each of these sizes for these values of the lengths.

    Raises:
        NoFormula: there is none, or more than one as simple.

    """
    sizes = [size for _, size in points]
    if len(set(sizes)) == 1:
        return Size(sizes[0])
    found = [Size(c, lengths) for lengths in _PRODUCTS if (c := _coefficient(lengths, points))]
    simplest = [size for size in found if _intricacy(size.lengths) == _intricacy(found[0].lengths)]
    if 0 in sizes:  # what is sorted only beyond a threshold shows at one point, where the lengths exceed any dimension
        whole = [size for size in simplest if size.coefficient % _LEAST_SORTED == 0]
        simplest = [min(whole, key=lambda size: size.coefficient)] if whole else []
    if len(simplest) != 1:
        raise NoFormula(f"sizes {sizes}: {', '.join(map(str, found)) or 'no product of the known lengths'}")
    return simplest[0]


def _coefficient(lengths: Lengths, points: list[tuple[dict[str, int], int]]) -> int | None:
    """The whole number that ``lengths`` must be multiplied by to give all sizes, if there is one."""
    unit = Size(1, lengths)
    pairs = [(unit.at(values), size) for values, size in points]
    coefficient = next((size // product for product, size in pairs if product and size), 0)
    return coefficient if all(coefficient * product == size for product, size in pairs) else None
