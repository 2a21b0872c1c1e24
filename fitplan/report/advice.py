"""Advice for a person at a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.advice import AdviceReport, Proposal
from fitplan.cuda import AMPERE
from fitplan.report.tables import print_table
from fitplan.report.terminal import VERDICT_STYLES, describe, said, told_devices, told_steps
from fitplan.setup import SETTINGS
from fitplan.units import gib
from fitplan.verdict import Fit


def print_advice(report: AdviceReport, console: Console, *, by_default: bool = False) -> None:
    """Print what fits, what would make it fit, each lever alone, and the best settings.

    Args:
        report: the advice.
        console: where it is printed.
        by_default: whether the method was not asked for.

    """
    advice, gpu = report.advice, report.gpu
    asked = advice.asked
    console.print(Text.assemble((report.model.name, "bold"), f"  on {gpu.name}, {gib(gpu.usable_bytes)} usable"))
    method = f"{asked.setup.method}{' (the default)' if by_default else ''}"
    console.print(f"as asked: {method}, {describe(asked.setup)}")
    console.print(_verdict(asked))
    if advice.fix is None:
        console.print()
        console.print("No change that is known here makes it fit.")
    elif advice.fix.steps:
        console.print()
        freed = f", if {' and '.join(advice.let_go)} may change" if advice.let_go else ""
        fits = advice.fix.verdict.fit is Fit.FITS
        heading = (
            "The smallest change that makes it fit" if fits else "No known change makes it fit; what comes closest"
        )
        console.print(Text(f"{heading}{freed}:", style="bold"))
        for name, price in told_steps(advice.fix):
            console.print(f"  {name} (price: {price})")
        console.print(Text.assemble("  ", _verdict(advice.fix)))
    if advice.largest:
        console.print()
        grown = [f"{SETTINGS[name].flag} up to {most:,}" for name, most in advice.largest.items()]
        console.print(f"There is room, each alone: {', '.join(grown)}.")
    if advice.best is not None:
        console.print()
        console.print(Text("The most of the model that this GPU can train, with the largest batch:", style="bold"))
        console.print(f"  {advice.best.setup.method}, {describe(advice.best.setup)}")
        console.print(Text.assemble("  ", _verdict(advice.best)))
    if advice.levers:
        console.print()
        print_table(_levers(advice.levers), console)
    console.print()
    where = told_devices(advice.devices) or "none of the known ones"
    generation = " before Ampere" if gpu.capability < AMPERE else ""
    console.print(f"The smallest GPUs{generation} on which it fits as asked: {where}")
    console.print("Every proposal was estimated as the question was.", style="dim")
    if advice.unknown:
        console.print(f"Not estimated: {', '.join(advice.unknown)}; --trace tries what takes a trace.", style="dim")


def _levers(levers: tuple[Proposal, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("each change alone")
    table.add_column("saves", justify="right", no_wrap=True)
    table.add_column("then", no_wrap=True)
    table.add_column("price", style="dim")
    for proposal in levers:
        ((step, price),) = told_steps(proposal)
        name, style = VERDICT_STYLES[proposal.verdict.fit]
        table.add_row(step, gib(proposal.saved_bytes), Text(name, style=style), price)
    return table


def _verdict(proposal: Proposal) -> Text:
    return Text.assemble((gib(proposal.verdict.memory.bytes), "bold"), "  ", *said(proposal.verdict))
