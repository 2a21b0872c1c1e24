"""Two answers beside each other, for a person at a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.difference import Difference, Pair
from fitplan.report.formula import signed
from fitplan.report.tables import print_table
from fitplan.report.terminal import BESIDE_NAMES, CATEGORY_NAMES, METHOD_NAMES, VERDICT_STYLES
from fitplan.setup import Method
from fitplan.units import MIB, gib
from fitplan.verdict import Fit

MOST_MOMENTS = 5


def print_difference(found: Difference, console: Console) -> None:
    """Print what differs: the job, then its memory part by part, then the moments that moved."""
    unlike = [one for one in (found.models, *found.settings, *found.versions) if one.before != one.after]
    for one in unlike:
        console.print(Text(f"{one.name}: {_told(one.before)} -> {_told(one.after)}"))
    if not unlike:
        console.print("The job and the versions are the same.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("at the peak")
    for name in ("before", "after", "grew by"):
        table.add_column(name, justify="right", no_wrap=True)
    _row(table, Pair(name="device memory", before=found.device.before, after=found.device.after), "bold")
    _row(table, Pair(name="allocated", before=found.allocated.before, after=found.allocated.after), "bold")
    for part in found.parts:
        if abs(part.grew_bytes) >= MIB:
            _row(table, Pair(name=f"  {_NAMES.get(part.name, part.name)}", before=part.before, after=part.after))
    console.print()
    print_table(table, console)
    console.print()
    console.print(f"peaks in: {' -> '.join(dict.fromkeys((found.peak.before, found.peak.after)))}")
    if found.verdict.before is not None and found.verdict.after is not None:
        before, after = (VERDICT_STYLES[Fit(fit)][0] for fit in (found.verdict.before, found.verdict.after))
        console.print(f"{before} -> {after}" if before != after else f"{before}, both")
    for moment in found.moments[:MOST_MOMENTS]:
        console.print(Text(f"  {signed(moment.grew_bytes):>12}  in {moment.name}", style="dim"))


_NAMES: dict[str, str] = {**{str(category): name for category, name in CATEGORY_NAMES.items()}, **BESIDE_NAMES}


def _row(table: Table, pair: Pair, style: str = "") -> None:
    table.add_row(pair.name, gib(pair.before), gib(pair.after), signed(pair.grew_bytes), style=style)


def _told(value: Any) -> str:
    if value in list(Method):
        return METHOD_NAMES[Method(value)]
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
