"""The fit map: how large a batch and how long a sequence a GPU can take."""

from dataclasses import dataclass, field, replace
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import Device
from fitplan.estimator import estimate_of
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.store import StoredFootprint
from fitplan.memory import MemoryEstimate
from fitplan.search import LENGTH_STEP, largest
from fitplan.setup import TrainingSetup
from fitplan.verdict import Fit, Verdict, judge

SCHEMA = "fitplan.map/1"

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
GAP = 192
"""Lengths between two pieces of a formula, at most."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One batch size at one sequence length; ``None`` where no formula reaches."""

    batch_size: int
    seq_len: int
    peak_allocated_bytes: int | None
    verdict: Verdict | None

    @property
    def device_bytes(self) -> int | None:
        """What it takes of the device, as the verdict counts."""
        return self.verdict.memory.bytes if self.verdict else None


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
                    "device_bytes": cell.device_bytes,
                    "verdict": cell.verdict.fit if cell.verdict else None,
                }
                for row in self.cells
                for cell in row
            ],
            "provenance": {"source": self.source, "versions": self.versions},
            "warnings": list(self.warnings),
        }


class Reach:
    """How far one setup reaches on one device; of the job's shape only rank and accumulation matter."""

    def __init__(self, job: TrainingJob, stored: StoredFootprint, gpu: Device) -> None:
        self._job, self._gpu, optimizer = job, gpu, stored.optimizer
        self._pieces = [p if optimizer is None else p.with_optimizer(optimizer) for p in stored.footprint.pieces]
        self.most_rows = max(piece.region.batch_size[1] for piece in self._pieces)
        self.most_tokens = max(piece.region.seq_len[1] for piece in self._pieces)

    def estimate(self, batch_size: int, seq_len: int) -> MemoryEstimate | None:
        """What the job would need; ``None`` where no formula reaches."""
        at = replace(self._job.shape, batch_size=batch_size, seq_len=seq_len)
        piece = next((piece for piece in self._pieces if at in piece.region), None)
        return estimate_of(piece, self._job, at) if piece else None

    def _fits(self, batch_size: int, seq_len: int) -> bool:
        longer = range(seq_len, seq_len + GAP + 1, LENGTH_STEP)  # what fits with a longer row fits here
        found = next((e for s in longer if (e := self.estimate(batch_size, s)) is not None), None)
        return found is not None and judge(found, self._gpu).fit is Fit.FITS

    def largest_batch(self, seq_len: int) -> int:
        """The most rows of that length that fit, 0 if not one does."""
        return largest(lambda rows: self._fits(rows, seq_len), 0, self.most_rows)

    def longest_seq(self, batch_size: int) -> int:
        """The longest so many rows that fit, in multiples of :data:`LENGTH_STEP`; 0 if the shortest do not."""
        most = self.most_tokens // LENGTH_STEP
        return LENGTH_STEP * largest(lambda units: self._fits(batch_size, units * LENGTH_STEP), 0, most)


def draw_map(job: TrainingJob, stored: StoredFootprint, gpu: Device) -> FitMap:
    """The map of one setup on one device; of the job's shape only rank and accumulation matter."""
    reach = Reach(job, stored, gpu)
    lengths = [length for length in LENGTHS if length <= reach.most_tokens] or [reach.most_tokens]
    return FitMap(
        model=job.model,
        setup=stored.resolved(job.setup),
        gpu=gpu,
        cells=tuple(tuple(_cell(reach.estimate(b, s), b, s, gpu) for b in BATCHES) for s in lengths),
        largest_batch={length: reach.largest_batch(length) for length in lengths},
        longest_seq={rows: reach.longest_seq(rows) for rows in BATCHES},
        source=stored.source,
        versions=stored.footprint.versions,
    )


def _cell(estimate: MemoryEstimate | None, batch_size: int, seq_len: int, gpu: Device) -> Cell:
    if estimate is None:
        return Cell(batch_size=batch_size, seq_len=seq_len, peak_allocated_bytes=None, verdict=None)
    return Cell(
        batch_size=batch_size,
        seq_len=seq_len,
        peak_allocated_bytes=estimate.peak_allocated_bytes,
        verdict=judge(estimate, gpu),
    )
