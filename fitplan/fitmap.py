"""The fit map: how large a batch and how long a sequence a GPU can take."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fitplan.devices.device import Device
from fitplan.estimator import estimate_of
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.store import StoredFootprint
from fitplan.memory import MemoryEstimate
from fitplan.models.resolve import ModelConfig
from fitplan.setup import TrainingSetup
from fitplan.verdict import Fit, Verdict, judge

SCHEMA = "fitplan.map/1"

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTH_STEP = 64
"""The longest sequence is told in multiples of this."""
GAP = 192
"""Lengths between two pieces of a formula, at most."""


@dataclass(frozen=True)
class Cell:
    """One batch size at one sequence length; ``None`` where no formula reaches."""

    batch_size: int
    seq_len: int
    peak_allocated_bytes: int | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class FitMap:
    """What fits a device.

    Attributes:
        model: the model.
        setup: the settings that stay the same.
        gpu: the device.
        cells: rows by sequence length, columns by batch size.
        largest_batch: for each sequence length the largest batch that fits; 0 where none does.
        longest_seq: for each batch size the longest sequence that fits; 0 where none does.
        source: ``"shipped"``, ``"cache"`` or ``"trace"``.
        versions: the libraries that were traced.
        warnings: what the reader should know of the numbers.

    """

    model: ModelConfig
    setup: TrainingSetup
    gpu: Device
    cells: tuple[tuple[Cell, ...], ...]
    largest_batch: dict[int, int]
    longest_seq: dict[int, int]
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.map/1`` document."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "gpu": self.gpu.to_dict(),
            "setup": self.setup.to_dict(),
            "largest_batch": [{"seq_len": s, "batch_size": b} for s, b in self.largest_batch.items()],
            "longest_seq": [{"batch_size": b, "seq_len": s} for b, s in self.longest_seq.items()],
            "cells": [
                {
                    "batch_size": cell.batch_size,
                    "seq_len": cell.seq_len,
                    "peak_allocated_bytes": cell.peak_allocated_bytes,
                    "verdict": cell.verdict.fit if cell.verdict else None,
                }
                for row in self.cells
                for cell in row
            ],
            "provenance": {"source": self.source, "versions": self.versions},
            "warnings": list(self.warnings),
        }


def draw_map(job: TrainingJob, stored: StoredFootprint, gpu: Device) -> FitMap:
    """The map of one setup on one device; of the job's shape only rank and accumulation matter."""
    pieces = [p if stored.optimizer is None else p.with_optimizer(stored.optimizer) for p in stored.footprint.pieces]

    def estimate(batch_size: int, seq_len: int) -> MemoryEstimate | None:
        at = replace(job.shape, batch_size=batch_size, seq_len=seq_len)
        piece = next((piece for piece in pieces if at in piece.region), None)
        return estimate_of(piece, job, at) if piece else None

    reach = max(piece.region.seq_len[1] for piece in pieces)

    def fits(batch_size: int, seq_len: int) -> bool:
        longer = range(seq_len, seq_len + GAP + 1, LENGTH_STEP)  # what fits with a longer row fits here
        found = next((e for s in longer if (e := estimate(batch_size, s)) is not None), None)
        return found is not None and judge(found, gpu).fit is Fit.FITS

    def fits_units(batch_size: int, units: int) -> bool:
        return fits(batch_size, units * LENGTH_STEP)

    lengths = [length for length in LENGTHS if length <= reach] or [reach]
    most = max(piece.region.batch_size[1] for piece in pieces)
    cells = tuple(tuple(_cell(estimate(b, s), b, s, gpu) for b in BATCHES) for s in lengths)
    return FitMap(
        model=job.model,
        setup=stored.resolved(job.setup),
        gpu=gpu,
        cells=cells,
        largest_batch={length: _most(partial(fits, seq_len=length), most) for length in lengths},
        longest_seq={rows: LENGTH_STEP * _most(partial(fits_units, rows), reach // LENGTH_STEP) for rows in BATCHES},
        source=stored.source,
        versions=stored.footprint.versions,
    )


def _cell(estimate: MemoryEstimate | None, batch_size: int, seq_len: int, gpu: Device) -> Cell:
    if estimate is None:
        return Cell(batch_size, seq_len, None, None)
    return Cell(batch_size, seq_len, estimate.peak_allocated_bytes, judge(estimate, gpu))


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, 0 if none does; what is larger never fits if less does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
