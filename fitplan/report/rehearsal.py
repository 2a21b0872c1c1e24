"""A rehearsal on a terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.rehearsal.report import Rank, RehearsalReport
from fitplan.units import counted, gib

MOST_GROUPS = 8
BAR = 40


def print_rehearsal(report: RehearsalReport, console: Console) -> None:
    """The verdict, each rank, and what the peak is made of."""
    console.print(Text(headline(report), style="bold"))
    console.print(f"rehearsed on {gpus(report)}: the real CUDA libraries, no kernels", style="dim", highlight=False)
    if report.ranks:
        console.print()
        console.print(_ranks(report.ranks))
    fullest = report.fullest
    if fullest is not None:
        console.print()
        _print_peak(fullest, console)
    if report.out_of_memory:
        console.print()
        _print_out_of_memory(report, console)
    for remark in remarks(report):
        console.print(remark, style="yellow", highlight=False)


def gpus(report: RehearsalReport) -> str:
    """What was played."""
    count = f"{report.count} x " if report.count > 1 else ""
    world = f" (of {report.world} ranks, taken to be alike)" if report.world else ""
    return f"{count}{report.gpu.name}{world}, {gib(report.gpu.usable_bytes)} usable"


def headline(report: RehearsalReport) -> str:
    """The verdict in one line."""
    fullest = report.fullest
    if report.failed:
        return f"the program failed (exit code {report.exit_code}), which says nothing about its memory"
    if report.out_of_memory:
        asked = report.out_of_memory
        return f"does not fit: out of memory in {asked['phase']} of step {asked['step']}"
    if fullest is None:
        return "the program ended without using a GPU"
    left = gib(report.gpu.usable_bytes - fullest.device_bytes)
    steps = counted(fullest.steps, "optimizer step")
    if fullest.retries:
        return f"tight: {steps} ran, but the allocator had to give back memory {fullest.retries} times to find room"
    return f"fits, {left} left: {steps} ran"


def _ranks(ranks: Iterable[Rank]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "allocated", "reserved", "device", "peaks in"):
        table.add_column(name, justify="left" if name == "peaks in" else "right", no_wrap=True)
    for rank in ranks:
        table.add_row(
            str(rank.rank),
            gib(rank.peak_allocated_bytes),
            gib(rank.peak_reserved_bytes),
            gib(rank.device_bytes),
            f"{rank.peak.phase} of step {rank.peak.step}",
        )
    return table


def _print_peak(rank: Rank, console: Console) -> None:
    """The categories as bars, then the largest groups with the lines that made them."""
    whole = rank.peak_allocated_bytes or 1
    console.print(Text(f"at the peak, rank {rank.rank}", style="bold"))
    for category, bytes_ in rank.peak.categories.items():
        bar = "█" * max(1, round(BAR * bytes_ / whole))
        console.print(Text(f"  {category:<18} {gib(bytes_):>10}  {100 * bytes_ / whole:3.0f} %  {bar}"))
    console.print()
    table = Table(box=None, pad_edge=False)
    for name in ("the largest", "bytes", "blocks", "made in", "by"):
        table.add_column(name, justify="right" if name in ("bytes", "blocks") else "left", overflow="fold")
    for group in rank.peak.largest[:MOST_GROUPS]:
        table.add_row(f"  {group.category}", gib(group.bytes), str(group.count), group.phase, Text(group.where))
    console.print(table)


def _print_out_of_memory(report: RehearsalReport, console: Console) -> None:
    asked: Any = report.out_of_memory
    console.print(
        Text(
            f"rank {asked['rank']} asked for {gib(asked['asked_bytes'])} at {asked['where']}; "
            f"{gib(asked['free_bytes'])} were free, {gib(asked['allocated_bytes'])} allocated, "
            f"{gib(asked['reserved_bytes'])} reserved",
            style="red",
        )
    )
    for category, bytes_ in asked["held"].items():
        console.print(Text(f"  {category:<18} {gib(bytes_):>10}"))


def remarks(report: RehearsalReport) -> list[str]:
    """What could not be known."""
    return [f"not known here: {what} ({times} times)" for what, times in report.assumed.items()]
