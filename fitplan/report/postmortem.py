"""How a run ended, for a person at a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.plan import CheckReport, Plan
from fitplan.postmortem import Autopsy, Cause
from fitplan.report.terminal import METHOD_NAMES, describe, said, told_steps
from fitplan.units import gib

RAN_MORE = 1.05
"""A run that had allocated so many times what was predicted was another job."""


def print_autopsy(found: Autopsy, plan: CheckReport | None, console: Console) -> None:
    """Print why it ended and what held the memory, what the plan says of the job, and what to do."""
    console.print(Text(f"{found.why[0].upper()}{found.why[1:]}.", style="bold"))
    if found.moment is not None:
        console.print(f"It ended in: {found.moment}.")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    for name, size in _held(found):
        if size is not None:
            table.add_row(Text(f"  {name}"), gib(size))
    console.print(table)
    for one in found.holders:
        console.print(Text(f"  {gib(one.bytes):>11}  {one.where}, {one.blocks} blocks"))
    if plan is not None:
        console.print()
        for each in plan.plans:
            for line in told_of(found, each):
                console.print(line)
    console.print()
    console.print(f"First: {found.advice}.")


def _held(found: Autopsy) -> list[tuple[str, int | None]]:
    gpu = "" if found.gpu is None else f" {found.gpu}"
    return [
        ("refused", found.requested_bytes),
        ("free, by the driver", found.free_bytes),
        ("allocated by PyTorch", found.allocated_bytes),
        ("reserved by PyTorch, in no use", found.unallocated_bytes),
        ("the largest piece of that", found.largest_hole_bytes),
        ("CUDA context and other libraries", found.outside_bytes),
        *((f"process {one.pid}", one.bytes) for one in found.others),
        (f"GPU{gpu} in all", found.total_bytes),
    ]


def told_of(found: Autopsy, plan: Plan) -> list[Text]:
    """What the plan says of the job, beside what the run had come to."""
    name = METHOD_NAMES[plan.setup.method]
    lines = [Text(f"As planned: {name}, {describe(plan.setup)}", style="dim")]
    predicted = plan.estimate.peak_allocated_bytes
    text = (
        f"needs {gib(plan.memory.bytes)} of the GPU, {gib(predicted)} of it allocated, in {plan.estimate.peak_moment}"
    )
    lines.append(Text(text))
    if plan.verdict is not None:
        lines.append(Text.assemble(*said(plan.verdict)))
    if found.allocated_bytes is not None and found.requested_bytes is not None:
        reached = found.allocated_bytes + found.requested_bytes
        if reached > RAN_MORE * predicted:
            lines.append(
                Text(f"the run asked for {gib(reached)} at once, more than this job ever does: it is another job")
            )
        elif found.cause is Cause.TOO_MUCH:
            lines.append(Text(f"the run asked for {gib(reached)} at once, as the plan says it must"))
    if plan.fix is not None:
        steps = "; ".join(step for step, _ in told_steps(plan.fix))
        lines.append(Text(f"to make it fit: {steps} ({gib(plan.fix.verdict.memory.bytes)})"))
    return lines
