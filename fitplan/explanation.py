"""Why the peak is what it is: the formula of the highest moment, term by term."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.cuda import rounded
from fitplan.errors import InputError
from fitplan.estimator import estimate_of
from fitplan.footprint.footprint import CATEGORIES, Piece, Summit
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.size import LENGTHS, Lengths, Shape, lengths_of
from fitplan.footprint.store import SHIPPED, StoredFootprint, find_shipped
from fitplan.setup import TrainingSetup
from fitplan.trace.events import Category
from fitplan.verdict import DeviceMemory, device_memory

SCHEMA = "fitplan.explain/1"


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the formula.

    Attributes:
        category: what the memory holds.
        coefficient: bytes for one unit of the product of ``lengths``.
        lengths: what it is multiplied by, as in :data:`fitplan.footprint.size.LENGTHS`; none for a constant.
        bytes: its value.
        largest: module and operator of its largest part; empty for a constant.

    """

    category: Category
    coefficient: int
    lengths: Lengths
    bytes: int
    largest: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the peak does when one length grows.

    Attributes:
        name: the field of the setup.
        by: how far it grows.
        bytes: what that adds to what is allocated at the peak.
        device_bytes: what it adds to what the job takes of the device.

    """

    name: str
    by: int
    bytes: int
    device_bytes: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The formula of a job's peak.

    Attributes:
        model: the model.
        setup: every setting.
        moment: the moment that peaks.
        values: the lengths that occur, and their values.
        terms: largest first; their bytes and ``rounding_bytes`` sum to ``peak_bytes``.
        rounding_bytes: what the allocator adds to reach whole multiples of 512 bytes.
        memory: what the job takes of the device: the peak, and what is held beside it.
        changes: how the peak moves.
        is_for_one_rank: whether it holds for this rank only, as where an optimizer treats small parameters differently.
        source: ``"shipped"``, ``"cache"`` or ``"trace"``.
        versions: the libraries that were traced.
        warnings: what the reader should know of the numbers.

    """

    model: ModelConfig
    setup: TrainingSetup
    moment: str
    values: dict[str, int]
    terms: tuple[Term, ...]
    rounding_bytes: int
    memory: DeviceMemory
    changes: tuple[Change, ...]
    is_for_one_rank: bool
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def reach(self, term: Term) -> str:
        """How far a constant term holds, in words."""
        if self.is_for_one_rank and term.category is Category.OPTIMIZER_STATES:
            return f"at rank {self.setup.lora_r}"
        return "whatever the shape"

    @property
    def peak_bytes(self) -> int:
        """``peak_allocated_bytes`` of the same job."""
        return sum(term.bytes for term in self.terms) + self.rounding_bytes

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.explain/1`` document."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "setup": self.setup.to_dict(),
            "peak_allocated_bytes": self.peak_bytes,
            "peak_moment": self.moment,
            "lengths": {name: {"meaning": LENGTHS[name], "value": value} for name, value in self.values.items()},
            "terms": [
                {
                    "category": term.category,
                    "coefficient_bytes": term.coefficient,
                    "lengths": list(term.lengths),
                    "bytes": term.bytes,
                    "largest": term.largest,
                }
                for term in self.terms
            ],
            "rounding_bytes": self.rounding_bytes,
            "device_bytes": self.memory.bytes,
            "changes": [
                {"setting": c.name, "by": c.by, "bytes": c.bytes, "device_bytes": c.device_bytes} for c in self.changes
            ],
            "provenance": {"source": self.source, "versions": self.versions},
            "warnings": list(self.warnings),
        }


def explain_peak(job: TrainingJob, stored: StoredFootprint) -> Explanation:
    """The formula of the peak of a job, whose shape must lie in one of the footprint's regions."""
    piece = stored.piece(job.shape)
    assert piece is not None, "the shape lies in no region"
    summit = piece.summit(job.shape, job.capability)
    values = lengths_of(job.shape, job.capability, piece.numbers)
    terms = _terms(piece, summit, job.shape, values)
    used = {name for term in terms for name in term.lengths}
    memory = device_memory(estimate_of(piece, job), job.device)
    peak = memory.allocated_bytes
    return Explanation(
        model=job.model,
        setup=stored.resolved(job.setup),
        moment=summit.name,
        values={name: value for name, value in values.items() if name in used},
        terms=terms,
        rounding_bytes=peak - sum(term.bytes for term in terms),
        memory=memory,
        changes=_changes(job, stored, memory),
        is_for_one_rank=piece.region.lora_r[0] == piece.region.lora_r[1] > 0,
        source=stored.source,
        versions=stored.footprint.versions,
    )


def _terms(piece: Piece, summit: Summit, shape: Shape, values: dict[str, int]) -> tuple[Term, ...]:
    coefficients: dict[tuple[Category, Lengths], int] = {}
    largest: dict[tuple[Category, Lengths], tuple[int, str]] = {}
    for number, count in summit.live.blocks:
        block = piece.blocks[number]
        times = count * (shape.gradient_accumulation_steps - 1 if block.per_extra_batch else 1)
        key = (block.category, block.size.lengths)
        coefficients[key] = coefficients.get(key, 0) + times * block.size.coefficient
        share = times * rounded(block.size.at(values))
        largest[key] = max(largest.get(key, (0, "")), (share, block.what))
    terms = [
        Term(
            category=category,
            coefficient=c,
            lengths=lengths,
            bytes=_value(c, lengths, values),
            largest=largest[category, lengths][1],
        )
        for (category, lengths), c in coefficients.items()
        if c
    ]
    terms += [
        Term(category=c, coefficient=n, lengths=(), bytes=n, largest="")
        for c, n in zip(CATEGORIES, summit.live.constant, strict=True)
        if n
    ]
    return tuple(sorted(terms, key=lambda term: -term.bytes))


def _value(coefficient: int, lengths: Lengths, values: dict[str, int]) -> int:
    for name in lengths:
        coefficient *= values[name]
    return coefficient


def _changes(job: TrainingJob, stored: StoredFootprint, memory: DeviceMemory) -> tuple[Change, ...]:
    """One row more, 1024 tokens more, twice the rank, one micro-batch more; as far as footprints reach."""
    steps = {"batch_size": 1, "seq_len": 1024, "lora_r": job.shape.lora_r, "gradient_accumulation_steps": 1}
    found = []
    for name, by in steps.items():
        if not by:
            continue
        with suppress(InputError):  # more than any setup may have
            further = job.with_setup(job.setup.with_(**{name: getattr(job.setup, name) + by}))
            piece = _piece_of(further, stored)
            if piece is not None:
                grown = device_memory(estimate_of(piece, further), job.device)
                found.append(
                    Change(
                        name=name,
                        by=by,
                        bytes=grown.allocated_bytes - memory.allocated_bytes,
                        device_bytes=grown.bytes - memory.bytes,
                    )
                )
    return tuple(found)


def _piece_of(job: TrainingJob, stored: StoredFootprint) -> Piece | None:
    """The whole step of a setup that may differ in its rank, and with it in what ships for its optimizer."""
    if stored.source == SHIPPED:
        found = find_shipped(job)
        return found.piece(job.shape) if found else None
    return stored.piece(job.shape)
