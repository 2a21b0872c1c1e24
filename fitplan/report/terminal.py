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
from fitplan.units import GIB, count, gib
from fitplan.validation.records import Record
from fitplan.verdict import IN_DOUBT, DeviceMemory, Fit, Verdict

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
    Fit.ONLY_IF: ("only if", "bold yellow"),
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
TWO_COLUMNS = 76
"""Columns of a terminal that two columns of the breakdown take."""
LOUD_SHARE = 0.5
"""Above this share of parameters left unquantised, quantisation is not what it seems."""


def print_check(report: CheckReport, console: Console, *, verbose: bool = False) -> None:
    """Print the answer: of one setup all that is known; of several a line each, then where the best one's memory goes.

    Args:
        report: the answer.
        console: where it is printed.
        verbose: all that is known of each.

    """
    gpu = report.gpu
    heading = Text(report.model.name, style="bold")
    heading.append(f"  {count(report.plans[0].base_parameters)} parameters", style="not bold")
    if gpu is not None:
        gpus = report.plans[0].setup.gpus
        several = f"{gpus} x " if gpus > 1 else ""
        each = ", each with" if gpus > 1 else ","
        heading.append(f"  on {several}{gpu.name}{each} {gib(gpu.usable_bytes)} usable", style="not bold")
    console.print(heading)
    in_full = verbose or len(report.plans) == 1
    if len(report.plans) > 1:
        console.print()
        for plan in report.plans:
            console.print(headline(plan))
            if not in_full:
                console.print(Padding(_ways_out(plan), (0, 0, 0, 2)))
        if not in_full and (others := _elsewhere(report.plans)):
            console.print(others)
    for plan in report.plans if in_full else (best_of(report.plans),):
        console.print()
        console.print(_plan(plan, gpu, in_full=in_full, columns=2 if console.width >= TWO_COLUMNS else 1))
    console.print()
    console.print(_footnote(report), style="dim")
    if not in_full:
        console.print("More of each: -v, or --method.", style="dim")


def _elsewhere(plans: Sequence[Plan]) -> Text | None:
    """In one line what the same jobs take with the stacks that differ."""
    by_stack: dict[str, list[str]] = {}
    for plan in plans:
        for one in plan.elsewhere:
            told = f"{METHOD_NAMES[plan.setup.method]} {gib(one.bytes)}"
            by_stack.setdefault(f"{one.title} {one.version}", []).append(told)
    return Text("\n".join(f"with {stack}: {', '.join(told)}" for stack, told in by_stack.items())) if by_stack else None


def best_of(plans: Sequence[Plan]) -> Plan:
    """The best verdict, and of those the method that changes most of the model; without verdicts the least memory."""
    if any(plan.verdict is None for plan in plans):
        return min(plans, key=lambda plan: plan.memory.bytes)
    verdicts, methods = list(Fit), list(Method)
    return min(
        plans,
        key=lambda plan: (verdicts.index(plan.verdict.fit) if plan.verdict else 0, methods.index(plan.setup.method)),
    )


def _plan(plan: Plan, gpu: Device | None, *, in_full: bool, columns: int) -> RenderableType:
    title = headline(plan) if in_full else Text(METHOD_NAMES[plan.setup.method], style="bold")
    inside: list[RenderableType] = [Text(describe(plan.setup), style="dim"), _bar(plan, gpu)]
    if not in_full:
        inside += [_breakdown(plan, columns), _peak(plan)]
        return Group(title, Padding(Group(*inside), (0, 0, 0, 2)))
    inside += [_breakdown(plan), _facts(plan)]
    if plan.setup.method is Method.QLORA:
        inside.append(audit(plan.parameters))
    if plan.evidence is not None:
        inside.append(_evidence(plan.evidence, plan.setup))
    inside.append(_ways_out(plan))
    return Group(title, Padding(Group(*inside), (0, 0, 0, 2)))


def _ways_out(plan: Plan) -> RenderableType:
    """What decides, or what makes it fit, where it does not."""
    told = []
    if plan.undecided is not None:
        told.append(plan.undecided)
    if plan.fix is not None:
        steps = "; ".join(step for step, _ in told_steps(plan.fix))
        told.append(f"to make it fit: {steps} ({gib(plan.fix.verdict.memory.bytes)})")
    if plan.smallest_gpus:
        told.append(f"as it is, it fits {told_devices(plan.smallest_gpus)}")
    elif plan.verdict and plan.verdict.fit is not Fit.FITS and plan.fix is None:
        told.append("no single GPU that is known holds it: --gpu 8xH100 asks for several")
    return Group(*map(Text, told))


MOST_NAMES = 2


def told_devices(devices: Sequence[Device]) -> str:
    """GPUs of one size: ``"80 GiB: A100 80GB PCIe, A100-SXM4-80GB and 5 more"``."""
    if not devices:
        return ""
    rest = len(devices) - MOST_NAMES
    more = f" and {rest} more" if rest > 0 else ""
    return f"{devices[0].total_bytes / GIB:.0f} GiB: {', '.join(one.name for one in devices[:MOST_NAMES])}{more}"


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
    """What the setup needs, how much more it may be, and whether it fits."""
    line = Text(f"{METHOD_NAMES[plan.setup.method]:<6}", style="bold")
    line.append(f" {gib(plan.memory.bytes):>11}", style="bold")
    line.append(f" (up to {gib(plan.ask_for_bytes)})", style="not bold dim")
    if plan.verdict is not None:
        line.append("  ")
        for part, style in said(plan.verdict):
            line.append(part, style=style)
    return line


def said(verdict: Verdict) -> list[tuple[str, str]]:
    """A verdict in words, part by part with their styles."""
    word, style = VERDICT_STYLES[verdict.fit]
    if verdict.fit is Fit.ONLY_IF:
        rest = f" {verdict.reason}"
    else:
        rest = f", {slack_text(verdict)}{f': {verdict.reason}' if verdict.needs_words else ''}"
    return [(word, style), (rest, "not bold")]


def slack_text(verdict: Verdict) -> str:
    """What is left, or what is too much."""
    return f"{gib(abs(verdict.slack_bytes))} {slack_words(verdict)}"


def slack_words(verdict: Verdict) -> str:
    """What the difference of what there is and what is needed means."""
    if verdict.slack_bytes >= 0:
        return "left"
    return "to give back" if verdict.fit in IN_DOUBT else "too much"


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


def _breakdown(plan: Plan, columns: int = 1) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(columns):
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
    total = plan.memory.bytes
    allocated = [(item, CATEGORY_NAMES[item], _COLOURS[item], n) for item, n in plan.estimate.breakdown.items()]
    rows = [*allocated, *((item, BESIDE_NAMES[item], "white", size) for item, size in beside(plan.memory).items())]
    cells = [
        (Text(f"{_MARKS[item]} {name}", style=colour), gib(size), _share(size, total))
        for item, name, colour, size in rows
        if size >= _SMALL
    ]
    rest = sum(size for *_, size in rows if size < _SMALL)
    if rest >= _SMALL:
        cells.append((Text("  other"), gib(rest), _share(rest, total)))
    height = -(-len(cells) // columns)
    for row in range(height):
        table.add_row(*(part for cell in cells[row::height] for part in cell))
    return table


_SMALL = 2**20


def _share(size: int, total: int) -> Text:
    return Text(f"{100 * size / total:3.0f} %", style="dim")


def _peak(plan: Plan) -> Text:
    estimate = plan.estimate
    return Text(f"peaks in: {estimate.peak_moment} ({gib(estimate.peak_allocated_bytes)} allocated)")


def _facts(plan: Plan) -> Text:
    text = _peak(plan)
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
    return Text(f"Traced with {versions}. CUDA context: {where}.")
