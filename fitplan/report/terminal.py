"""The report for a person at a terminal."""

import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fitplan.advice import Proposal
from fitplan.audit import ParameterGroup, unquantised_share
from fitplan.devices.device import Device
from fitplan.plan import CheckReport, Plan
from fitplan.report.command import flags
from fitplan.setup import SETTINGS, Method, TrainingSetup
from fitplan.trace.events import Category
from fitplan.units import count, gib
from fitplan.validation.records import Record
from fitplan.verdict import DeviceMemory, Fit

CATEGORY_NAMES = {
    Category.BASE_WEIGHTS: "base weights",
    Category.ADAPTER_WEIGHTS: "adapter weights",
    Category.GRADIENTS: "gradients",
    Category.OPTIMIZER_STATES: "optimizer states",
    Category.ACTIVATIONS: "activations",
    Category.LOGITS_AND_LOSS: "logits and loss",
    Category.TEMPORARIES: "temporaries",
    Category.WORKSPACES: "cuBLAS workspaces",
    Category.GATHERED_WEIGHTS: "gathered weights",
    Category.COMMUNICATION: "communication",
}
_COLOURS = {
    Category.BASE_WEIGHTS: "blue",
    Category.ADAPTER_WEIGHTS: "bright_blue",
    Category.GRADIENTS: "magenta",
    Category.OPTIMIZER_STATES: "cyan",
    Category.ACTIVATIONS: "green",
    Category.LOGITS_AND_LOSS: "yellow",
    Category.TEMPORARIES: "bright_black",
    Category.WORKSPACES: "white",
    Category.GATHERED_WEIGHTS: "bright_magenta",
    Category.COMMUNICATION: "bright_cyan",
}
VERDICT_STYLES = {
    Fit.FITS: ("fits", "bold green"),
    Fit.TIGHT: ("tight", "bold yellow"),
    Fit.DOES_NOT_FIT: ("does not fit", "bold red"),
}
_MARKS: dict[str, str] = {
    **dict(zip(Category, "█▓▒░▞▚▖▘▥▧", strict=True)),
    "kept": "▤",
    "context": "▪",
    "nccl": "▨",
}
LIKE = dict(zip("█▓▒░▞▚▖▘▤▪▥▧▨·│±", (*"#@%:/\\<>=+&*~", ".", "|", "+-"), strict=True))
"""What stands for a mark where the output cannot show it."""
BAR_WIDTH = 50
LOUD_SHARE = 0.5
"""Above this share of parameters left unquantised, quantisation is not what it seems."""


def print_check(report: CheckReport, console: Console) -> None:
    """Print the answer: one block for each setup."""
    gpu = report.gpu
    heading = Text(report.model.name, style="bold")
    heading.append(f"  {count(report.plans[0].base_parameters)} parameters", style="not bold")
    if gpu is not None:
        gpus = report.plans[0].setup.gpus
        several = f"{gpus} x " if gpus > 1 else ""
        each = ", each with" if gpus > 1 else ","
        heading.append(f"  on {several}{gpu.name}{each} {gib(gpu.usable_bytes)} usable", style="not bold")
    console.print(heading)
    for plan in report.plans:
        console.print()
        console.print(_plan(plan, gpu))
    console.print()
    console.print(_footnote(report), style="dim")


def _plan(plan: Plan, gpu: Device | None) -> RenderableType:
    parts: list[RenderableType] = [headline(plan)]
    parts.append(Padding(Text(describe(plan.setup), style="dim"), (0, 0, 0, 2)))
    parts.append(Padding(_bar(plan, gpu), (0, 0, 0, 2)))
    parts.append(Padding(_breakdown(plan), (0, 0, 0, 2)))
    parts.append(Padding(_facts(plan), (0, 0, 0, 2)))
    if plan.setup.method is Method.QLORA:
        parts.append(Padding(audit(plan.parameters), (0, 0, 0, 2)))
    if plan.evidence is not None:
        parts.append(Padding(_evidence(plan.evidence, plan.setup), (0, 0, 0, 2)))
    if plan.fix is not None:
        steps = "; ".join(step for step, _ in told_steps(plan.fix))
        needs = gib(plan.fix.verdict.memory.bytes)
        parts.append(Padding(Text(f"to make it fit: {steps} ({needs})"), (0, 0, 0, 2)))
    return Group(*parts)


def _evidence(record: Record, asked: TrainingSetup) -> Text:
    """What a run of much the same job measured, against what was predicted for it, and what it did otherwise."""
    peak, setup = record.peak, record.setup
    others = record.others(asked).items()
    told = ", ".join(f"{name} {ran}" for name, (ran, _) in others if name not in ("batch_size", "seq_len"))
    job = f"{setup['batch_size']} x {setup['seq_len']} tokens{' with ' if told else ''}{told}"
    job += f" on {record.device}, {record.date}"
    return Text(
        f"{record.grade}: {gib(peak.measured)} {peak.title} for {job}; "
        f"predicted then: {gib(peak.predicted)} ({peak.error:+.2f} %)"
    )


def told_steps(proposal: Proposal) -> list[tuple[str, str]]:
    """What is done, with the flags that do it, and its price; a lever that is pulled twice is told once."""
    told: dict[str, tuple[str, dict[str, object]]] = {}
    for step in proposal.steps:
        told.setdefault(step.name, (step.price, {}))[1].update(step.changes)
    return [(f"{name}: {shlex.join(flags(changes))}", price) for name, (price, changes) in told.items()]


def headline(plan: Plan) -> Text:
    """What the setup needs, and whether it fits."""
    line = Text(f"{METHOD_NAMES[plan.setup.method]:<6}", style="bold")
    line.append(f" {gib(plan.memory.bytes):>11}", style="bold")
    if plan.verdict is not None:
        word, style = VERDICT_STYLES[plan.verdict.fit]
        line.append("  ")
        line.append(word, style=style)
        slack = plan.verdict.slack_bytes
        line.append(f", {gib(slack)} left" if slack >= 0 else f", {gib(-slack)} too much", style="not bold")
        if plan.verdict.fit is Fit.TIGHT:
            line.append(f" ({plan.verdict.reason})", style="not bold")
    return line


METHOD_NAMES = {Method.FULL: "full", Method.LORA: "LoRA", Method.QLORA: "QLoRA"}


def describe(setup: TrainingSetup) -> str:
    """The setup in one line."""
    return f"batch {setup.batch_size} x {setup.seq_len} tokens, {describe_recipe(setup)}"


def describe_recipe(setup: TrainingSetup) -> str:
    """The setup without batch size and sequence length."""
    text = ""
    for one in SETTINGS.values():
        value = getattr(setup, one.name)
        words = "" if value is None else one.words(value)
        text += words if words.startswith(" ") or not (words and text) else f", {words}"
    return text


BESIDE_NAMES = {
    "kept": "allocator cache",
    "context": "CUDA context",
    "nccl": "NCCL",
}


def beside(memory: DeviceMemory) -> dict[str, int]:
    """What the device holds beside the breakdown of what is allocated, by the keys of :data:`BESIDE_NAMES`."""
    return {
        "kept": memory.unsplit_bytes + memory.cached_bytes,
        "context": memory.context.bytes,
        "nccl": memory.nccl_bytes,
    }


def _bar(plan: Plan, gpu: Device | None) -> Text:
    """The breakdown as a bar; of the device where there is one, else of the peak."""
    used = plan.memory.bytes
    full = max(used, gpu.usable_bytes) if gpu is not None else used
    drawn = max(1, round(used / full * BAR_WIDTH))
    parts = [(_MARKS[category], _COLOURS[category], size) for category, size in plan.estimate.breakdown.items()]
    parts += [(_MARKS[key], "white", size) for key, size in beside(plan.memory).items()]
    bar = Text()
    for (mark, colour, _), width in zip(parts, shared([size for *_, size in parts], drawn), strict=True):
        bar.append(mark * width, style=colour)
    bar.append("·" * (BAR_WIDTH - drawn), style="dim")
    if gpu is not None and used > gpu.usable_bytes:
        edge = round(gpu.usable_bytes / full * BAR_WIDTH)
        bar = Text.assemble(bar[:edge], ("│", "bold red"), bar[edge:])
        bar.append(f"  │ ends at {gib(gpu.usable_bytes)}", style="red")
    return bar


def shared(sizes: Sequence[int], cells: int) -> list[int]:
    """So many of ``cells`` for each size: whole ones first, the rest for the largest remainders.

    So the largest size has one if any has.
    """
    whole, remainders = zip(*(divmod(cells * size, sum(sizes)) for size in sizes), strict=True)
    by_remainder = sorted(range(len(sizes)), key=lambda place: -remainders[place])
    more = by_remainder[: cells - sum(whole)]
    return [width + (place in more) for place, width in enumerate(whole)]


def _breakdown(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    total = plan.memory.bytes
    allocated = [(item, CATEGORY_NAMES[item], _COLOURS[item], n) for item, n in plan.estimate.breakdown.items()]
    rows = [*allocated, *((item, BESIDE_NAMES[item], "white", size) for item, size in beside(plan.memory).items())]
    for item, name, colour, size in rows:
        if size >= _SMALL:
            table.add_row(Text(f"{_MARKS[item]} {name}", style=colour), gib(size), _share(size, total))
    rest = sum(size for *_, size in rows if size < _SMALL)
    if rest >= _SMALL:
        table.add_row("  other", gib(rest), _share(rest, total))
    return table


_SMALL = 2**20


def _share(size: int, total: int) -> Text:
    return Text(f"{100 * size / total:3.0f} %", style="dim")


def _facts(plan: Plan) -> Text:
    estimate = plan.estimate
    text = Text(f"peaks in: {estimate.peak_moment} ({gib(estimate.peak_allocated_bytes)} allocated)")
    text.append(f"\ntrains: {count(plan.trainable_parameters)} parameters")
    text.append(f" ({100 * plan.trainable_parameters / plan.base_parameters:.2f} %)")
    if plan.adapter_checkpoint_bytes is not None:
        text.append(f"; adapter on disk: {gib(plan.adapter_checkpoint_bytes)}")
    for one in plan.elsewhere:
        verdict = "" if one.fit is None else f", {one.fit.replace('-', ' ').replace('_', ' ')}"
        text.append(f"\nthe same job with {one.title} {one.version}: {gib(one.bytes)}{verdict}")
    return text


def audit(groups: Iterable[ParameterGroup]) -> Text:
    """The quantisation audit: one line where all is as expected, a warning where most of the model is left out."""
    groups = tuple(groups)
    share = unquantised_share(groups)
    left = sorted((g for g in groups if not g.quantised and not g.adapter), key=lambda g: -g.bytes)
    quantised = [g for g in groups if g.quantised]
    text = Text()
    if share > LOUD_SHARE:
        text.append(f"WARNING: {100 * share:.0f} % of the parameters are NOT quantised", style="bold red")
    else:
        kinds = ", ".join(f"{count(g.parameters)} in {g.storage} ({gib(g.bytes)})" for g in quantised)
        text.append(f"quantised: {kinds}; not: {100 * share:.1f} % of the parameters")
    for group in left:
        if group.bytes >= _SMALL:
            text.append(f"\n  {count(group.parameters)} stay {group.storage} ({gib(group.bytes)}): {group.why}")
    return text


def _footnote(report: CheckReport) -> Text:
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    measured = report.plans[0].memory.context.measured_on
    own = report.gpu is not None and report.gpu.name == measured
    where = f"measured on {measured}" if own else f"measured on {measured}, not on this GPU"
    spread = max(plan.memory.spread_bytes for plan in report.plans)
    return Text(f"Traced with {versions}. CUDA context: {where}. Totals may be up to {gib(spread)} higher.")
