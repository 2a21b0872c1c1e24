"""What to change: a search over what was left open, the changes that hurt least first.

Every proposal is estimated by the same estimator as the question itself; a lever has no effect of its own on paper.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import Device
from fitplan.errors import InputError
from fitplan.footprint.recipe import kernels_of
from fitplan.memory import MemoryEstimate
from fitplan.search import LENGTH_STEP, largest
from fitplan.setup import (
    SHARDED,
    TENSOR_CORES_FOR_BFLOAT16,
    Attention,
    Dtype,
    Method,
    Optim,
    Quant,
    Strategy,
    TrainingSetup,
    settings_for,
    with_defaults,
)
from fitplan.units import GIB
from fitplan.verdict import Fit, Verdict, device_memory, judge

SCHEMA = "fitplan.advise/1"

MOST_TRIED = 400
"""Setups that a search looks at before it gives up."""

LARGEST_BATCH = 64
SHORTEST_SEQ = 256
GROWS = {"batch_size": (1, 1024), "seq_len": (LENGTH_STEP, 131_072), "lora_r": (8, 512)}
"""What a job that fits may have more of: in which steps, and up to where it is looked for."""
LEAST_RANK = 8

_COMFORT = ("attn", "use_liger_kernel", "kbit_prepare", "dtype", "lora_r", "double_quant", "expandable_segments")
LET_GO = (
    ("batch_size", "gradient_accumulation_steps"),
    ("gradient_checkpointing", "optim"),
    ("method",),
    ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optim", *_COMFORT),
    ("batch_size", "gradient_accumulation_steps", "method"),
    ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optim", *_COMFORT, "seq_len"),
    ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optim", *_COMFORT, "method", "seq_len"),
)
"""What is let go, in this order, where nothing that was left open makes it fit: what hurts least first."""


@dataclass(frozen=True)
class Lever:
    """One thing that can be changed.

    Attributes:
        name: what is done, in words.
        pain: how much it hurts, against the others; levers are tried in this order, and their pains add up.
        price: what it costs.
        why: where the memory is saved.
        changes: the settings that it changes, from a setup; ``None`` where it does not apply.

    """

    name: str
    pain: int
    price: str
    why: str
    changes: Callable[[TrainingSetup], dict[str, Any] | None]


@dataclass(frozen=True)
class Step:
    """A lever that was pulled, with the settings that it changed."""

    name: str
    price: str
    why: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A changed setup, estimated.

    Attributes:
        steps: what was changed, in order.
        setup: every setting.
        estimate: what it needs.
        verdict: whether it fits.
        saved_bytes: how much less of the device it takes than the setup that was asked about.

    """

    steps: tuple[Step, ...]
    setup: TrainingSetup
    estimate: MemoryEstimate
    verdict: Verdict
    saved_bytes: int


def _unless(setting: str, value: Any) -> Callable[[TrainingSetup], dict[str, Any] | None]:
    """Set it to ``value`` where it means something and is another."""
    return lambda setup: None if getattr(setup, setting) in (None, value) else {setting: value}


def _to_8bit(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"optim": Optim.ADAMW_8BIT} if setup.optim in (Optim.ADAMW_TORCH, Optim.ADAMW_TORCH_FUSED) else None


def _to_fused(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"optim": Optim.ADAMW_TORCH_FUSED} if setup.optim is Optim.ADAMW_TORCH else None


def _to_paged(setup: TrainingSetup) -> dict[str, Any] | None:
    adam = (Optim.ADAMW_TORCH, Optim.ADAMW_TORCH_FUSED, Optim.ADAMW_8BIT)
    return {"optim": Optim.PAGED_ADAMW_8BIT} if setup.optim in adam else None


def _to_bfloat16(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"dtype": Dtype.BFLOAT16} if setup.dtype is Dtype.FLOAT32 else None


def _to_sdpa(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"attn": Attention.SDPA} if setup.attn is Attention.EAGER else None


def _halve_batch(setup: TrainingSetup) -> dict[str, Any] | None:
    if setup.batch_size < 2:
        return None
    half = setup.batch_size // 2
    times = -(-setup.batch_size // half)
    return {"batch_size": half, "gradient_accumulation_steps": setup.gradient_accumulation_steps * times}


def _halve_rank(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"lora_r": setup.lora_r // 2} if setup.lora_r and setup.lora_r >= 2 * LEAST_RANK else None


def _halve_length(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"seq_len": setup.seq_len // 2} if setup.seq_len >= 2 * SHORTEST_SEQ else None


def _to_lora(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"method": Method.LORA} if setup.method is Method.FULL else None


def _to_qlora(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"method": Method.QLORA} if setup.method is Method.LORA else None


def _to_fsdp2(setup: TrainingSetup) -> dict[str, Any] | None:
    if setup.strategy is not Strategy.DDP:
        return None
    return {"strategy": Strategy.FSDP2, "gradient_as_bucket_view": None}


def _to_sharded_quantised(setup: TrainingSetup) -> dict[str, Any] | None:
    if setup.strategy not in SHARDED or setup.quant not in (Quant.NF4, Quant.FP4) or setup.quant_storage is not None:
        return None
    return {"quant_storage": Dtype.BFLOAT16, "kbit_prepare": False}


MOST_GPUS = 64


def _to_more_gpus(setup: TrainingSetup) -> dict[str, Any] | None:
    return {"gpus": 2 * setup.gpus} if setup.strategy in SHARDED and 2 * setup.gpus <= MOST_GPUS else None


LEVERS = (
    Lever(
        "expandable segments",
        0,
        "none where the driver knows them: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        "one segment grows page by page, and less of what is reserved lies idle",
        lambda setup: None if setup.expandable_segments else {"expandable_segments": True},
    ),
    Lever("fused AdamW", 0, "none", "the foreach kernels keep copies of all states while they run", _to_fused),
    Lever("SDPA attention", 0, "none", "eager attention keeps a matrix of all pairs of positions", _to_sdpa),
    Lever(
        "quantise the scales again",
        1,
        "a little time",
        "the scales of the 4-bit blocks shrink from 32 to 8 bits",
        _unless("double_quant", True),
    ),
    Lever(
        "FSDP2 instead of DDP",
        2,
        "weights travel between the GPUs in every step",
        "each GPU holds a part of weights, gradients and optimizer states",
        _to_fsdp2,
    ),
    Lever(
        "4-bit weights in a type that can be sharded",
        3,
        "none but that norms and head stay in 16 bits",
        "FSDP leaves weights in uint8 whole on each GPU",
        _to_sharded_quantised,
    ),
    Lever(
        "smaller batch, accumulated",
        3,
        "slower: the same effective batch in smaller pieces",
        "activations, logits and loss grow with the rows of a micro-batch",
        _halve_batch,
    ),
    Lever(
        "gradient checkpointing",
        4,
        "about a third more computation: each layer's forward is run twice",
        "only the inputs of layers are kept until backward",
        _unless("gradient_checkpointing", True),
    ),
    Lever(
        "Liger kernels",
        4,
        "one more package: pip install liger-kernel",
        "the loss is computed in pieces, and the logits of all tokens are never there",
        _unless("use_liger_kernel", True),
    ),
    Lever(
        "8-bit AdamW",
        5,
        "close to 32-bit quality (Dettmers et al., 2022, arXiv 2110.02861)",
        "two states of 1 byte a parameter instead of its own type's",
        _to_8bit,
    ),
    Lever(
        "bfloat16 weights",
        6,
        "small updates are lost in rounding",
        "weights, gradients and states take two bytes a number instead of four",
        _to_bfloat16,
    ),
    Lever(
        "paged 8-bit AdamW",
        7,
        "as 8-bit AdamW, and slower while pages move",
        "the states live in memory that can move to the host",
        _to_paged,
    ),
    Lever(
        "no k-bit preparation",
        8,
        "norms and head train in 16 bits; gradients may be less stable",
        "embedding, head and norms are not cast to float32",
        _unless("kbit_prepare", False),
    ),
    Lever("lower rank", 9, "less capacity of the adapters", "adapters, gradients and states halve", _halve_rank),
    Lever(
        "QLoRA instead of LoRA",
        12,
        "slower: weights are dequantised in every product",
        "frozen weights in 4 bits instead of 16",
        _to_qlora,
    ),
    Lever(
        "LoRA instead of full fine-tuning",
        16,
        "fewer parameters learn",
        "gradients and optimizer states of the adapters only",
        _to_lora,
    ),
    Lever(
        "more GPUs",
        18,
        "more GPUs",
        "each holds half as much of weights, gradients and optimizer states",
        _to_more_gpus,
    ),
    Lever("shorter sequences", 20, "the model sees less context", "activations, logits and loss", _halve_length),
)
"""In the order of their pains. What the pains say is an order that can be argued about, not a measurement."""


def _fits(verdict: Verdict) -> bool:
    return verdict.fit is Fit.FITS


def _runs(verdict: Verdict) -> bool:
    """Whether it fits, or is tight."""
    return verdict.fit is not Fit.DOES_NOT_FIT


Evaluate = Callable[[TrainingSetup], MemoryEstimate | None]


class Advisor:
    """Advice for one question.

    Args:
        asked: the setup that was asked about.
        fixed: the settings that must stay as they are.
        evaluate: the estimate of a setup, ``None`` where it is not known.
        device: what it must fit.

    """

    def __init__(self, asked: TrainingSetup, fixed: frozenset[str], evaluate: Evaluate, device: Device) -> None:
        self._asked, self._fixed, self._device = asked, fixed, device
        self._evaluate = evaluate
        estimate = evaluate(asked)
        if estimate is None:
            raise InputError("the setup that is asked about has no estimate")
        self._asked_bytes = device_memory(estimate, device).bytes
        self.as_asked = self._proposal((), asked, estimate)

    def single_levers(self) -> tuple[tuple[Proposal, ...], tuple[str, ...]]:
        """Each lever alone, as far as it saves something, what hurts least first; and those that are not known."""
        found = [(step, self._tried((step,), setup)) for step, setup in self._steps(self._asked)]
        known = tuple(p for _, p in found if p is not None and p.saved_bytes > 0)
        return known, tuple(step.name for step, p in found if p is None)

    def smallest_fix(self, enough: Callable[[Verdict], bool] = _fits) -> Proposal | None:
        """The changes that hurt least and are enough for it to fit; ``None`` if none is found."""
        leanest = self._evaluate(self._leanest())
        if leanest is not None and not enough(judge(leanest, self._device)):
            return None
        order = itertools.count()
        waiting: list[tuple[int, int, TrainingSetup, tuple[Step, ...]]] = [(0, next(order), self._asked, ())]
        seen = {self._asked}
        for _ in range(MOST_TRIED):
            if not waiting:
                return None
            pain, _, setup, steps = heapq.heappop(waiting)
            proposal = self._tried(steps, setup)
            if proposal is not None and enough(proposal.verdict):
                return self._with_longest_rows(proposal, enough)
            for step, changed in self._steps(setup):
                if changed not in seen:
                    seen.add(changed)
                    lever = next(lever for lever in LEVERS if lever.name == step.name)
                    heapq.heappush(waiting, (pain + lever.pain, next(order), changed, (*steps, step)))
        return None

    def _with_longest_rows(self, proposal: Proposal, enough: Callable[[Verdict], bool]) -> Proposal:
        """Where rows were halved until it was enough: as long as they may be."""
        shortest, asked = proposal.setup.seq_len, self._asked.seq_len
        if shortest == asked:
            return proposal
        steps = tuple(step for step in proposal.steps if "seq_len" not in step.changes)
        last = next(step for step in reversed(proposal.steps) if "seq_len" in step.changes)

        def longer(units: int) -> Proposal | None:
            changes = {**last.changes, "seq_len": units * LENGTH_STEP}
            setup = self._changed(proposal.setup, changes)
            found = self._tried((*steps, replace(last, changes=changes)), setup) if setup is not None else None
            return found if found is not None and enough(found.verdict) else None

        return _last_that(longer, shortest // LENGTH_STEP, (asked - 1) // LENGTH_STEP) or proposal

    def largest(self) -> dict[str, int]:
        """How far one setting can grow, alone and all else as asked, until it would no longer fit."""
        found = {}
        for name, (step, most) in GROWS.items():
            now = getattr(self._asked, name)
            if now is None:
                continue

            def grown(units: int, name: str = name, step: int = step) -> Proposal | None:
                setup = self._changed(self._asked, {name: units * step})
                return self._fitting(setup) if setup is not None else None

            last = _last_that(grown, now // step, most // step)
            if last is not None and getattr(last.setup, name) > now:
                found[name] = getattr(last.setup, name)
        return found

    def _leanest(self) -> TrainingSetup:
        """The setup with every lever pulled as far as it is known: if that does not fit, nothing between does."""
        setup = self._asked
        while (further := self._leaner(setup)) is not None:
            setup = further
        return setup

    def _leaner(self, setup: TrainingSetup) -> TrainingSetup | None:
        return next((changed for _, changed in self._steps(setup) if self._evaluate(changed) is not None), None)

    def best_settings(self) -> Proposal | None:
        """The method that changes most of the model, with what it takes to fit, then the largest batch."""
        methods = [self._asked.method] if "method" in self._fixed else [Method.FULL, Method.LORA, Method.QLORA]
        for method in methods:
            found = next((p for s in self._ways(method) if (p := self._fitting(s)) is not None), None)
            if found is not None:
                return self._with_largest_batch(found)
        return None

    def _ways(self, method: Method) -> Iterator[TrainingSetup]:
        """The setup with one row, from what is fastest to what is leanest."""
        single = {} if "batch_size" in self._fixed else {"batch_size": 1}
        plain = self._changed(self._asked, {"method": method, **single})
        lean = ({"gradient_checkpointing": False}, {"gradient_checkpointing": True})
        for checkpointing in lean:
            for optim in ({}, {"optim": Optim.ADAMW_8BIT}, {"optim": Optim.PAGED_ADAMW_8BIT}):
                changes = {**checkpointing, **optim}
                if plain is not None and not self._fixed & set(changes):
                    changed = self._changed(plain, changes)
                    if changed is not None:
                        yield changed
        if plain is not None:
            yield plain

    def _with_largest_batch(self, proposal: Proposal) -> Proposal:
        """With the largest batch up to :data:`LARGEST_BATCH`: what is larger never fits if less does not."""
        if "batch_size" in self._fixed:
            return proposal

        def larger(rows: int) -> Proposal | None:
            setup = self._changed(proposal.setup, {"batch_size": rows})
            return self._fitting(setup) if setup is not None else None

        return _last_that(larger, proposal.setup.batch_size, LARGEST_BATCH) or proposal

    def _fitting(self, setup: TrainingSetup) -> Proposal | None:
        proposal = self._tried((), setup)
        return proposal if proposal is not None and proposal.verdict.fit is Fit.FITS else None

    def _steps(self, setup: TrainingSetup) -> Iterator[tuple[Step, TrainingSetup]]:
        """Every lever that applies and leaves alone what is fixed."""
        for lever in LEVERS:
            changes = lever.changes(setup)
            if changes is None or self._fixed & set(changes):
                continue
            changed = self._changed(setup, changes)
            if changed is not None:
                yield Step(lever.name, lever.price, lever.why, changes), changed

    def _changed(self, setup: TrainingSetup, changes: Mapping[str, Any]) -> TrainingSetup | None:
        """The setup with some settings changed; those that mean nothing for a new method are left out."""
        settings = setup.to_dict() | dict(changes)
        method = Method(settings["method"])
        if self._device.capability < TENSOR_CORES_FOR_BFLOAT16:
            if changes.get("dtype") is Dtype.BFLOAT16:
                return None
            if method is not setup.method and not self._fixed & {"dtype", "mixed_precision"}:
                settings = _with_dtype_for(method, settings, self._device.capability)
        try:
            return TrainingSetup.from_dict(settings_for(method, settings))
        except InputError:
            return None

    def _tried(self, steps: tuple[Step, ...], setup: TrainingSetup) -> Proposal | None:
        estimate = self._evaluate(setup)
        return None if estimate is None else self._proposal(steps, setup, estimate)

    def _proposal(self, steps: tuple[Step, ...], setup: TrainingSetup, estimate: MemoryEstimate) -> Proposal:
        verdict = judge(estimate, self._device)
        return Proposal(
            steps=steps,
            setup=setup,
            estimate=estimate,
            verdict=verdict,
            saved_bytes=self._asked_bytes - verdict.memory.bytes,
        )


def _last_that(found: Callable[[int], Proposal | None], low: int, high: int) -> Proposal | None:
    """What is found for the largest number from ``low`` to ``high``, itself left out; larger ones find nothing."""
    last = largest(lambda number: found(number) is not None, low, high)
    return found(last) if last > low else None


def _with_dtype_for(method: Method, settings: Mapping[str, Any], capability: tuple[int, int]) -> dict[str, Any]:
    """The settings with the types that another method takes on this GPU."""
    rest = {
        name: value for name, value in settings.items() if name not in ("dtype", "mixed_precision", "compute_dtype")
    }
    return with_defaults(rest, method=method, positions=None, capability=capability)


def smallest_devices(estimate: MemoryEstimate, asked: Device, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """The devices with the least memory on which it fits, of those that run the same kernels as the one asked about.

    They are all of one size, in whole GiB; prices are not known here, memory stands for them. By name.
    """
    large = (device for device in devices if device.usable_bytes >= estimate.peak_allocated_bytes)
    alike = (device for device in large if kernels_of(device.capability) == kernels_of(asked.capability))
    able = [device for device in alike if judge(estimate, device).fit is Fit.FITS]
    least = min((_size(device) for device in able), default=0)
    return tuple(sorted((device for device in able if _size(device) == least), key=lambda device: device.name))


def _size(device: Device) -> int:
    """In GiB, as people speak of it: drivers report a little less."""
    return round(device.total_bytes / GIB)


def proposal_document(proposal: Proposal) -> dict[str, Any]:
    """A proposal as JSON-ready values."""
    return {
        "steps": [
            {"name": step.name, "price": step.price, "why": step.why, "changes": dict(step.changes)}
            for step in proposal.steps
        ],
        "setup": proposal.setup.to_dict(),
        "peak_allocated_bytes": proposal.estimate.peak_allocated_bytes,
        "device_bytes": proposal.verdict.memory.bytes,
        "saved_bytes": proposal.saved_bytes,
        "verdict": proposal.verdict.fit,
        "slack_bytes": proposal.verdict.slack_bytes,
    }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What can be changed.

    Attributes:
        asked: the setup as it was asked about.
        fix: the changes that hurt least and make it fit, or tight where nothing that is open does more; no steps where
            it fits already, ``None`` if none is found.
        let_go: settings that were fixed and had to be changed for it.
        levers: each lever alone, what hurts least first.
        unknown: levers whose effect is not known without a trace, or not at all.
        best: the method that changes most of the model and fits, with the largest batch.
        largest: how far batch size, sequence length and rank can grow, each alone, where it fits as asked.
        devices: the smallest known GPUs on which it fits as it is, all of one size, of those that run the same kernels.

    """

    asked: Proposal
    fix: Proposal | None
    let_go: tuple[str, ...]
    levers: tuple[Proposal, ...]
    unknown: tuple[str, ...]
    best: Proposal | None
    largest: dict[str, int]
    devices: tuple[Device, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; every proposal was estimated as the question was."""
        return {
            "asked": proposal_document(self.asked),
            "fix": proposal_document(self.fix) if self.fix else None,
            "let_go": list(self.let_go),
            "levers": [proposal_document(proposal) for proposal in self.levers],
            "unknown": list(self.unknown),
            "best": proposal_document(self.best) if self.best else None,
            "largest": self.largest,
            "smallest_gpu": self.devices[0].name if self.devices else None,
            "smallest_gpus": [device.name for device in self.devices],
        }


def advise_on(
    asked: TrainingSetup,
    fixed: frozenset[str],
    evaluate: Evaluate,
    device: Device,
    devices: tuple[Device, ...],
    settled: frozenset[str] = frozenset(),
) -> Advice:
    """All advice for one question; what is ``settled`` is so by the model, and is not let go."""
    fixed, chosen = fixed | settled, fixed - settled
    advisor = Advisor(asked, fixed, evaluate, device)
    fix = advisor.smallest_fix()
    let_go: tuple[str, ...] = ()
    for names in LET_GO:
        if fix is None and chosen & set(names):
            fix = Advisor(asked, fixed - chosen.intersection(names), evaluate, device).smallest_fix()
            let_go = tuple(sorted(chosen & set(names))) if fix else ()
    if fix is None and advisor.as_asked.verdict.fit is Fit.DOES_NOT_FIT:
        fix = advisor.smallest_fix(_runs)
    levers, unknown = advisor.single_levers()
    return Advice(
        asked=advisor.as_asked,
        fix=fix,
        let_go=let_go,
        levers=levers,
        unknown=unknown,
        best=advisor.best_settings(),
        largest=advisor.largest() if advisor.as_asked.verdict.fit is Fit.FITS else {},
        devices=smallest_devices(advisor.as_asked.estimate, device, devices),
    )


@dataclass(frozen=True, kw_only=True)
class AdviceReport:
    """The answer of :func:`fitplan.advise`.

    Attributes:
        model: the model.
        gpu: the device.
        advice: what can be changed.
        source: where the estimate of the setup as asked comes from.
        versions: the libraries that were traced.
        warnings: what the reader should know of the numbers.

    """

    model: ModelConfig
    gpu: Device
    advice: Advice
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.advise/1`` document."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "gpu": self.gpu.to_dict(),
            **self.advice.to_dict(),
            "provenance": {"source": self.source, "versions": self.versions},
            "warnings": list(self.warnings),
        }
