"""What fits a GPU: models by methods, for a person at a terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.devices.device import Device
from fitplan.fitting import Fitting, Matrix
from fitplan.report.tables import print_table
from fitplan.report.terminal import METHOD_NAMES, VERDICT_STYLES
from fitplan.units import GIB, count, gib
from fitplan.verdict import Fit

MARKS = dict(zip(Fit, "+~?-", strict=True))

SORTS: dict[str, Callable[[Sequence[Fitting]], object]] = {
    "name": lambda row: row[0].model,
    "size": lambda row: row[0].parameters,
    "memory": lambda row: min(one.verdict.memory.bytes for one in row),
    "batch": lambda row: -max(one.largest_batch for one in row),
    "length": lambda row: -max(one.longest_seq for one in row),
}
"""How the models can be ordered: what comes first in each."""


def print_fits(found: Matrix, console: Console, *, sort: str = "size", everything: bool = False) -> None:
    """Print one table a GPU: a row for each model with something that fits, or for all of them."""
    for gpu in found.gpus:
        _print_one(found, gpu, console, sort=sort, everything=everything)
    marks = "  ".join(f"{MARKS[fit]} {VERDICT_STYLES[fit][0]}" for fit in Fit)
    console.print(Text(f"{marks}; GiB needed, x largest batch, longest sequence", style="dim"))
    if found.unknown:
        console.print(
            Text(f"{len(found.unknown)} setups are not answered without a trace: --json names them", style="dim")
        )


def _print_one(found: Matrix, gpu: Device, console: Console, *, sort: str, everything: bool) -> None:
    rows: dict[str, list[Fitting]] = {}
    for one in found.answers:
        if one.gpu == gpu:
            rows.setdefault(one.model, []).append(one)
    shown = [row for row in rows.values() if everything or any(one.verdict.fit is not Fit.DOES_NOT_FIT for one in row)]
    console.print(
        Text.assemble((gpu.name, "bold"), f", {gib(gpu.usable_bytes)} usable: {len(shown)} of {len(rows)} models")
    )
    if not shown:
        console.print()
        return
    setup = max((one.setup for row in shown for one in row), key=lambda setup: setup.seq_len)
    console.print(
        Text(f"batch {setup.batch_size} x {setup.seq_len} tokens, or as many as the model knows", style="dim")
    )
    methods = [method for method in METHOD_NAMES if any(one.setup.method is method for row in shown for one in row)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for method in methods:
        table.add_column(METHOD_NAMES[method], no_wrap=True)
    for row in sorted(shown, key=SORTS[sort]):  # type: ignore[arg-type]
        by_method = {one.setup.method: one for one in row}
        cells = [_cell(by_method.get(method)) for method in methods]
        table.add_row(row[0].model, count(row[0].parameters), *cells)
    print_table(table, console)
    console.print()


def _cell(one: Fitting | None) -> Text:
    if one is None:
        return Text("")
    fit = one.verdict.fit
    cell = Text(
        f"{MARKS[fit]} {one.verdict.memory.bytes / GIB:.1f}", style=VERDICT_STYLES[fit][1].removeprefix("bold ")
    )
    if fit is Fit.FITS:
        more = "+" if one.may_take_more else ""
        cell.append(f" x{one.largest_batch}{more} {_short(one.longest_seq)}", style="dim")
    return cell


def _short(length: int) -> str:
    """``"6.1k"`` tokens."""
    return f"{length / 1024:.1f}k" if length < 10 * 1024 else f"{length // 1024}k"
