"""fitplan as tools for language models, over the Model Context Protocol: ``fitplan mcp`` (the official SDK, an extra).

Each answer is a short document with sizes in bytes, and names the basis of its numbers: shipped or kept formulas, or a
trace. Nothing is run for real by any tool.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from fitplan import api
from fitplan.advice import Proposal
from fitplan.difference import diff as compare
from fitplan.errors import FitplanError
from fitplan.fitting import matrix
from fitplan.plan import CheckReport, Plan
from fitplan.postmortem import autopsy as read
from fitplan.report.terminal import told_steps
from fitplan.verdict import Fit

Settings = dict[str, Any]

INSTRUCTIONS = (
    "Predicts the GPU memory of fine-tuning language models, by the real training step recorded without memory. Sizes "
    "are bytes. 'settings' are those of `fitplan check --help` with underscores: seq_len, batch_size, lora_r, optim, "
    "stack, gpus, strategy, ... Tell the user the uncertainty and the basis beside each number."
)


def make_server() -> MCPServer:
    """The server with its tools."""
    server = MCPServer("fitplan", instructions=INSTRUCTIONS)
    for tool in (check, advise, fits, diff, autopsy):
        server.tool()(_told(tool))
    return server


def _told(tool: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """What makes no sense, or cannot be answered, is one sentence to the model."""

    @wraps(tool)
    def run(*arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return tool(*arguments, **named)
        except FitplanError as error:
            raise ToolError(str(error)) from error
        except TypeError as error:
            raise ToolError(f"settings: {error}") from error

    return run


def check(
    model: str,
    gpu: str | None = None,
    vram: str | None = None,
    method: str | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Whether fine-tuning a model fits a GPU, and where the memory goes: full, lora and qlora unless a method is named.

    model: an alias (llama-8b), a hub id, or a folder. gpu: h100, 4090, 8xH100, ...; or vram: 24GiB.
    """
    report = api.check(model, gpu=gpu, vram=vram, method=method, **(settings or {}))
    return {
        "model": report.model.name,
        "gpu": report.gpu and report.gpu.to_dict(),
        "answers": [_plan(report, plan) for plan in report.plans],
        "notes": list(report.warnings),
    }


def _plan(report: CheckReport, plan: Plan) -> dict[str, Any]:
    verdict = plan.verdict
    return {
        "method": plan.setup.method,
        "verdict": verdict and verdict.fit,
        "why": verdict and verdict.reason,
        "device_bytes": plan.memory.bytes,
        "uncertainty_bytes": plan.memory.spread_bytes,
        "memory_to_ask_for_bytes": plan.ask_for_bytes,
        "peak_allocated_bytes": plan.estimate.peak_allocated_bytes,
        "peak_moment": plan.estimate.peak_moment,
        "breakdown": {str(category): size for category, size in plan.estimate.breakdown.items() if size},
        "to_make_it_fit": plan.fix and _proposal(plan.fix),
        "smallest_gpus": [device.name for device in plan.smallest_gpus],
        "settings": {name: value for name, value in plan.setup.to_dict().items() if value is not None},
        "basis": _basis(plan.source, report.versions),
    }


def _proposal(proposal: Proposal) -> dict[str, Any]:
    return {
        "steps": [{"what": what, "price": price} for what, price in told_steps(proposal)],
        "device_bytes": proposal.verdict.memory.bytes,
        "verdict": proposal.verdict.fit,
    }


_BASES = {"shipped": "a shipped formula, derived from traces", "cache": "a trace that was kept", "trace": "a trace"}


def _basis(source: str, versions: dict[str, str]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"predicted, not measured: {_BASES[source]} with {libraries}"


def advise(
    model: str, gpu: str | None = None, vram: str | None = None, method: str = "qlora", settings: Settings | None = None
) -> dict[str, Any]:
    """What to change so that a fine-tune fits, or makes better use of a GPU: what is in settings stays as it is."""
    found = api.advise(model, gpu=gpu, vram=vram, method=method, **(settings or {}))
    advice = found.advice
    return {
        "model": found.model.name,
        "gpu": found.gpu.to_dict(),
        "as_asked": {"verdict": advice.asked.verdict.fit, "device_bytes": advice.asked.verdict.memory.bytes},
        "smallest_change": advice.fix and {**_proposal(advice.fix), "let_go": list(advice.let_go)},
        "each_change_alone": [{**_proposal(one), "saved_bytes": one.saved_bytes} for one in advice.levers],
        "most_of_the_model": advice.best and {"settings": advice.best.setup.to_dict(), **_proposal(advice.best)},
        "room_for": advice.largest,
        "smallest_gpus": [device.name for device in advice.devices],
        "notes": list(found.warnings),
        "basis": _basis(found.source, found.versions),
    }


def fits(
    gpu: str, models: list[str] | None = None, method: str | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Which of the shipped models can be fine-tuned on a GPU, with the largest batch and longest sequence."""
    found = matrix(models or (), gpu=gpu, method=method or (), **(settings or {}))
    fitting = tuple(one for one in found.answers if one.verdict.fit is not Fit.DOES_NOT_FIT)
    return {
        **replace(found, answers=fitting).to_dict(),
        "basis": "predicted, not measured: shipped formulas, derived from traces",
    }


def diff(
    model: str,
    changes: Settings,
    gpu: str | None = None,
    vram: str | None = None,
    method: str = "qlora",
    settings: Settings | None = None,
) -> dict[str, Any]:
    """What changes when settings do (or the model: {"model": ...}): which part of the memory grows, in which moment."""
    asked: dict[str, Any] = {"model": model, "gpu": gpu, "vram": vram, "method": method, **(settings or {})}
    before, after = api.check(**asked), api.check(**{**asked, **changes})
    return {**compare(before, after).to_dict(), "basis": _basis(after.source, after.versions)}


def autopsy(file: str) -> dict[str, Any]:
    """Why a run ended: reads its log, a snapshot of torch.cuda.memory, or the output of nvidia-smi."""
    return {**read(file).to_dict(), "basis": "read in the file; nothing of it was run"}
