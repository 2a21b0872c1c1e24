"""Answers that never change, so that pictures of the screens change only when the screens do."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from fitplan.advice import Advice, Proposal, Step
from fitplan.audit import ParameterGroup
from fitplan.configs.resolve import ModelConfig
from fitplan.devices.context import Context
from fitplan.devices.device import Device
from fitplan.errors import InputError
from fitplan.fitmap import Cell, FitMap
from fitplan.memory import MemoryEstimate, MemoryMoment
from fitplan.plan import CheckReport, Plan
from fitplan.setup import Attention, Task, TrainingSetup
from fitplan.trace.events import Category
from fitplan.tui.answers import Answers
from fitplan.tui.child import Answer, ChildFailed
from fitplan.tui.state import Question
from fitplan.units import GIB
from fitplan.validation.job import Expectation, PhaseMemory
from fitplan.verdict import DeviceMemory, Fit, Verdict

CONTEXT = GIB // 2
MODEL = ModelConfig(
    "canned-8b", "shipped", {"model_type": "llama", "max_position_embeddings": 131_072, "num_hidden_layers": 32}
)
GPU = Device("Canned 24GB", 24 * GIB, 23 * GIB, (8, 9), "made up")
VERSIONS = {"torch": "2.13.0"}
UNKNOWN, BAD = "owner/unknown", "bad"
"""Models of which nothing is known without a trace, and nothing at all."""


def _moment(name: str, *gibs: float) -> MemoryMoment:
    of_one_gpu = zip(list(Category)[: len(gibs)], gibs, strict=True)
    return MemoryMoment(name, dict.fromkeys(Category, 0) | {c: round(size * GIB) for c, size in of_one_gpu})


def estimate(setup: TrainingSetup) -> MemoryEstimate:
    """Weights by method, activations and logits by tokens."""
    weights = {"full": 15.0, "lora": 15.0, "qlora": 7.0}[setup.method]
    adapters = 0.0 if setup.method == "full" else 0.1
    gradients = 15.0 if setup.method == "full" else 0.1
    states = 2 * gradients
    tokens = setup.batch_size * setup.seq_len / 2048
    peak = _moment("backward of the loss", weights, adapters, gradients, states, tokens, 2 * tokens, 0.001, 0.02)
    moments = (
        _moment("loading the model", weights, 0, 0, 0, 0, 0, 0.2, 0),
        _moment("forward of layer 31", weights, adapters, 0, states, tokens, 0, 0.4, 0.02),
        peak,
        _moment("recompute of layer 31", weights, adapters, gradients, states, 1.4 * tokens, 0, 0.05, 0.02),
        _moment("optimizer step", weights, adapters, gradients, states, 0, 0, 0.001, 0.02),
    )
    return MemoryEstimate(peak, moments, 3)


def verdict(found: MemoryEstimate) -> Verdict:
    """Tight within one GiB."""
    slack = GPU.usable_bytes - found.peak_allocated_bytes - CONTEXT
    fit = Fit.DOES_NOT_FIT if slack < 0 else Fit.TIGHT if slack < GIB else Fit.FITS
    reason = "what is left is less than what allocator and context may add" if fit is Fit.TIGHT else "as counted"
    context = Context(CONTEXT, GIB, "Canned 24GB", "canned")
    return Verdict(
        fit=fit,
        slack_bytes=slack,
        memory=DeviceMemory(
            allocated_bytes=found.peak_allocated_bytes,
            unsplit_bytes=0,
            cached_bytes=0,
            context=context,
            paged_bytes=0,
            spread_bytes=GIB,
        ),
        reason=reason,
    )


class Canned(Answers):
    """Answers without the library."""

    def model(self, question: Question) -> ModelConfig | None:
        if question.model == BAD:
            raise InputError("no model is known as 'bad'; give a hub id (owner/name), a folder or a config.json")
        return None if question.model == UNKNOWN else MODEL

    def device(self, question: Question) -> Device:
        return GPU

    def report(self, question: Question) -> CheckReport | None:
        if self.model(question) is None:
            return None
        setup = question.setup(MODEL).with_(attn=Attention.SDPA, task=Task.CAUSAL_LM)
        groups = (
            ParameterGroup(
                storage="nf4",
                why="quantised",
                trainable=False,
                adapter=False,
                parameters=7 * 10**9,
                bytes=4 * GIB,
                example="model.layers.0.self_attn.q_proj",
            ),
            ParameterGroup(
                storage="float32",
                why="embedding",
                trainable=False,
                adapter=False,
                parameters=10**9,
                bytes=4 * GIB,
                example="model.embed_tokens",
            ),
            ParameterGroup(
                storage="float32",
                why="adapter",
                trainable=True,
                adapter=True,
                parameters=42 * 10**6,
                bytes=GIB // 6,
                example="lora_A",
            ),
        )
        found = estimate(setup)
        judged = verdict(found)
        plan = Plan(
            setup=setup,
            estimate=found,
            memory=judged.memory,
            parameters=groups,
            verdict=judged,
            source="shipped",
            versions=VERSIONS,
        )
        return CheckReport(model=MODEL, gpu=GPU, plans=(plan,), installed=VERSIONS)

    def advice(self, question: Question, wanted: Callable[[], bool] = lambda: True) -> Advice | None:
        report = self.report(question)
        if report is None:
            return None
        plan = report.plans[0]
        levers = []
        for name, price, changes in (
            ("8-bit AdamW", "close to 32-bit quality", {"optim": "adamw_8bit"}),
            ("half the rank", "less capacity of the adapters", {"lora_r": 8}),
            ("half the sequence length", "the model sees less context", {"seq_len": plan.setup.seq_len // 2}),
        ):
            if name != "half the rank" or plan.setup.lora_r:
                levers.append(_proposal((Step(name, price, "", changes),), plan.setup.with_(**changes), plan.estimate))
        asked = _proposal((), plan.setup, plan.estimate)
        fix = asked if asked.verdict.fit is Fit.FITS else next((p for p in levers if p.verdict.fit is Fit.FITS), None)
        return Advice(
            asked=asked,
            fix=fix,
            let_go=(),
            levers=tuple(levers),
            unknown=(),
            best=None,
            largest={},
            devices=(Device("Canned 48GB", 48 * GIB, 48 * GIB, (8, 9), ""),),
        )

    def fit_map(self, question: Question) -> FitMap | None:
        report = self.report(question)
        if report is None:
            return None
        setup = report.plans[0].setup
        lengths, batches = (512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32, 64)
        cells = tuple(tuple(_cell(setup, b, s) for b in batches) for s in lengths)
        return FitMap(
            model=MODEL,
            setup=setup,
            gpu=GPU,
            cells=cells,
            largest_batch=dict.fromkeys(lengths, 3),
            longest_seq=dict.fromkeys(batches, 4096),
            source="shipped",
        )


def _cell(setup: TrainingSetup, batch_size: int, seq_len: int) -> Cell:
    if batch_size * seq_len > 2**17:
        return Cell(batch_size=batch_size, seq_len=seq_len, peak_allocated_bytes=None, verdict=None)
    found = estimate(setup.with_(batch_size=batch_size, seq_len=seq_len))
    return Cell(
        batch_size=batch_size,
        seq_len=seq_len,
        peak_allocated_bytes=found.peak_allocated_bytes,
        verdict=verdict(found),
    )


def _proposal(steps: tuple[Step, ...], setup: TrainingSetup, before: MemoryEstimate) -> Proposal:
    found = estimate(setup)
    return Proposal(
        steps=steps,
        setup=setup,
        estimate=found,
        verdict=verdict(found),
        saved_bytes=before.peak_allocated_bytes - found.peak_allocated_bytes,
    )


# --- runs -------------------------------------------------------------------------------------------------------------

_STEP = (("forward", 11.0), ("backward", 13.4), ("clip", 7.5), ("optimizer", 7.7), ("zero_grad", 7.4))
PREDICTED = [("load", 0, 7.0), ("prepare", 0, 7.2), *((phase, step, gibs) for step in (0, 1) for phase, gibs in _STEP)]
"""Phase, step, GiB allocated."""
DIFFERENCES = [
    {
        "phase": "backward", "step": 1, "bytes": 536_870_912, "predicted": 0, "measured": 2,
        "predicted_by": "", "measured_by": "modeling_llama.py:101 matmul",
    },
    {
        "phase": "forward", "step": 0, "bytes": 4_194_304, "predicted": 3, "measured": 1,
        "predicted_by": "model.layers.0.mlp: aten.mm.default", "measured_by": "",
    },
]  # fmt: skip
FIRST = {
    "phase": "forward", "step": 0, "bytes": 4_194_304, "predicted": 1, "measured": 0,
    "predicted_by": "model.layers.0.mlp: aten.mm.default, 4194304 bytes", "measured_by": "nothing",
}  # fmt: skip


def phase(name: str, step: int, gibs: float) -> PhaseMemory:
    """A phase on a GPU."""
    size = round(gibs * GIB)
    return PhaseMemory(name, step, size - 2**20, size, size + GIB // 4, size + GIB)


def run_document(factor: float, *, out_of_memory: bool = False) -> dict[str, Any]:
    """What ``fitplan validate`` says of a run that took ``factor`` of what was predicted."""
    measured = [phase(name, step, factor * gibs) for name, step, gibs in PREDICTED]
    measured = measured[:4] if out_of_memory else measured
    pairs = [
        {
            "phase": one.phase,
            "step": one.step,
            "predicted": phase(name, step, gibs).to_dict(),
            "measured": one.to_dict(),
        }
        for one, (name, step, gibs) in zip(measured, PREDICTED, strict=False)
    ]
    quantities = [
        {
            "name": f"{name}_bytes",
            "predicted": round((13.4 + more) * GIB),
            "measured": round((factor * 13.4 + more) * GIB),
        }
        for name, more in (("peak_requested", -0.001), ("peak_allocated", 0), ("peak_reserved", 0.25), ("device", 0.7))
    ]
    ended = {"phase": "backward", "step": 0, "message": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    return {
        "quantities": [] if out_of_memory else quantities,
        "phases": pairs,
        "differences": DIFFERENCES if abs(factor - 1) > 0.02 else [],
        "first_difference": FIRST if abs(factor - 1) > 0.02 else None,
        "runs_on_paper": True,
        "tolerance_percent": 2.0,
        "measurement": {
            "phases": [one.to_dict() for one in measured],
            "device": "Canned 24GB",
            "versions": {},
            "out_of_memory": ended if out_of_memory else None,
        },
    }


class Runs:
    """Stands in for the process of a run: it tells some phases, then ends as it is told to.

    Args:
        ending: the document, or why there is none; without any it never ends.
        complaint: what could not be done beside it.

    """

    def __init__(self, ending: dict[str, Any] | str | None = None, complaint: str = "") -> None:
        self.asked: list[list[str]] = []
        self.ended = 0
        self._ending, self._complaint = ending, complaint

    async def ask(
        self,
        arguments: Sequence[str],
        progress: Callable[[str], None],
        watch: Callable[[Expectation | PhaseMemory], None],
    ) -> Answer:
        """As :func:`fitplan.tui.child.ask`."""
        self.asked.append(list(arguments))
        if isinstance(self._ending, str):
            raise ChildFailed(self._ending)
        progress("starting the run")
        watch(Expectation(tuple(phase(*one) for one in PREDICTED)))
        for name, step, gibs in PREDICTED[:4]:
            progress(f"step {step + 1}, {name}: {gibs:.2f} GiB")
            watch(phase(name, step, 0.99 * gibs))
        try:
            await asyncio.sleep(3600 if self._ending is None else 0)
        finally:
            self.ended += 1
        return Answer(self._ending, self._complaint)
