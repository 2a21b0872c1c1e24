"""What fits this GPU: models, methods and GPUs against each other, from footprints alone.

>>> found = matrix(["llama-8b", "llama-70b"], gpu="4090")
>>> [(one.model, one.setup.method, one.verdict.fit) for one in found.answers]  # doctest: +SKIP
[('llama-3.1-8b', 'qlora', 'fits'), ('llama-3.1-8b', 'lora', 'fits'), ('llama-3.1-8b', 'full', 'does_not_fit'), ...]
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

from fitplan.configs.catalog import CatalogEntry, catalog, find_entries
from fitplan.devices.device import Device
from fitplan.errors import InputError
from fitplan.estimator import estimate_of
from fitplan.fitmap import Reach
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.store import StoredFootprint, find_shipped
from fitplan.given import OtherSettings
from fitplan.question import Question
from fitplan.setup import Method, TrainingSetup
from fitplan.verdict import Verdict, judge

SCHEMA = "fitplan.fits/1"


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """One model with one method on one GPU.

    Attributes:
        model: fitplan's name for it.
        parameters: of the model, tied ones once.
        gpu: the device.
        setup: every setting.
        verdict: whether it fits as asked.

    """

    model: str
    parameters: int
    gpu: Device
    setup: TrainingSetup
    verdict: Verdict
    _job: TrainingJob
    _stored: StoredFootprint

    @cached_property
    def _reach(self) -> Reach:
        return Reach(self._job, self._stored, self.gpu)

    @cached_property
    def largest_batch(self) -> int:
        """The most rows of the asked length that fit; 0 if not one does."""
        return self._reach.largest_batch(self.setup.seq_len)

    @property
    def may_take_more(self) -> bool:
        """Whether :attr:`largest_batch` is only as far as the formula is known."""
        return self.largest_batch == self._reach.most_rows

    @cached_property
    def longest_seq(self) -> int:
        """The longest sequence that fits with the asked batch size, in multiples of 64 tokens; 0 if none does."""
        return self._reach.longest_seq(self.setup.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; sizes are bytes."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "gpu": self.gpu.name,
            "method": self.setup.method,
            "verdict": self.verdict.fit,
            "device_bytes": self.verdict.memory.bytes,
            "slack_bytes": self.verdict.slack_bytes,
            "uncertainty_bytes": self.verdict.uncertainty_bytes,
            "largest_batch": self.largest_batch,
            "longest_seq": self.longest_seq,
        }


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The answer of :func:`matrix`.

    Attributes:
        gpus: the devices.
        answers: one for each model, method and device with a known footprint, in this order.
        unknown: model and method of those without.

    """

    gpus: tuple[Device, ...]
    answers: tuple[Fitting, ...]
    unknown: tuple[tuple[str, Method], ...]

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.fits/1`` document."""
        return {
            "schema": SCHEMA,
            "gpus": [gpu.to_dict() for gpu in self.gpus],
            "answers": [one.to_dict() for one in self.answers],
            "unknown": [{"model": model, "method": method} for model, method in self.unknown],
        }


def matrix(
    models: Iterable[str] = (),
    *,
    gpu: str | Device | Sequence[str | Device] = (),
    vram: str | int | None = None,
    method: Method | str | Sequence[Method | str] = (),
    **settings: Unpack[OtherSettings],
) -> Matrix:
    """Which of the shipped models fit which GPUs, and how far; nothing is traced, and torch is not needed.

    Args:
        models: names of shipped models, or parts of them; all if there are none.
        gpu: one GPU or several, as for :func:`fitplan.check`; ``"8xH100"`` is one of eight.
        vram: an amount of memory instead.
        method: one method or several; all three if there are none.
        settings: the other fields of :class:`TrainingSetup`, the same for all.

    Raises:
        InputError: a model, GPU or setting is not known, or no GPU is named.

    """
    gpus: list[Any] = [gpu] if isinstance(gpu, (str, Device)) else list(gpu)
    if not gpus and vram is None:
        raise InputError("what fits depends on the GPU; give one such as 4090, or an amount of vram such as 24GiB")
    methods: list[Any] = [method] if isinstance(method, str) else list(method)
    asked = tuple(settings.items())
    answers: list[Fitting] = []
    unknown: dict[tuple[str, Method], None] = {}
    with _no_collector():
        entries = [entry for name in models for entry in find_entries(name)] or list(catalog())
        named = [Question(entries[0].name, one, None if gpus else vram, None, asked) for one in gpus or [None]]
        on = [replace(one.opened, gpu=one.device, vram=None) for one in named]  # each GPU is looked up once
        for entry in dict.fromkeys(entries):
            for where in on:
                for one in methods or [None]:
                    question = replace(where, model=entry.name, method=one)
                    for which, plain in question.by_method():
                        found = _answer(entry, plain.job())
                        if found is None:
                            unknown[entry.name, which] = None
                        else:
                            answers.append(found)
    devices = dict.fromkeys(one.device for one in on if one.device is not None)
    return Matrix(gpus=tuple(devices), answers=tuple(answers), unknown=tuple(unknown))


def _answer(entry: CatalogEntry, job: TrainingJob) -> Fitting | None:
    """The answer for one job; ``None`` where no footprint ships that reaches it."""
    assert job.device is not None, "a device was named"
    stored = find_shipped(job)
    piece = stored.piece(job.shape) if stored else None
    if stored is None or piece is None:
        return None
    return Fitting(
        model=entry.name,
        parameters=entry.parameters,
        gpu=job.device,
        setup=stored.resolved(job.setup),
        verdict=judge(estimate_of(piece, job), job.device),
        _job=job,
        _stored=stored,
    )


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's cyclic collector, which takes a quarter of the time in which 86 files are read."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
