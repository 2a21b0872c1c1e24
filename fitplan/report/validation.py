"""A validation for a person at a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.report.dossier import Series
from fitplan.report.terminal import describe
from fitplan.units import MIB, gib
from fitplan.validation.calibration import Calibration
from fitplan.validation.comparison import Difference, PhasePair
from fitplan.validation.depths import DepthReport
from fitplan.validation.limit import LimitReport
from fitplan.validation.report import ValidationReport

_BAR = 24
_LISTED = 5


def print_validation(report: ValidationReport, console: Console) -> None:
    """Print what was predicted and measured, side by side."""
    measurement = report.measurement
    console.print(Text.assemble((report.model.name, "bold"), f"  on {measurement.device}"))
    console.print(f"{report.setup.method}, {describe(report.setup)}", style="dim")
    console.print()
    if report.quantities:
        console.print(_quantities(report))
        console.print()
    console.print(_phases(report.phases))
    if measurement.out_of_memory is not None:
        failed = measurement.out_of_memory
        console.print()
        console.print(
            Text(f"out of memory in {failed.phase} of step {failed.step + 1}: {failed.message}", style="bold")
        )
    if report.differences:
        console.print()
        console.print("allocations that were not as predicted, what weighs most first:")
        for one in report.differences[:_LISTED]:
            console.print(f"  {_told(one)}", highlight=False)
    if report.first_difference is not None:
        first = report.first_difference
        console.print(
            f"the first, in {first.phase} of step {first.step + 1}: "
            f"predicted {first.predicted_by}; measured {first.measured_by}"
        )
    console.print()
    console.print(_verdict(report))


def print_depths(report: DepthReport, console: Console) -> None:
    """Print both runs, and the full model."""
    for run in report.runs:
        print_validation(run, console)
        console.print()
    few, many, full = report.layers
    console.print(
        f"{report.model.name}, all {full} layers, from {few} and {many}: "
        f"predicted {gib(report.predicted)}, expected {gib(report.expected)} ± {gib(report.spread)} "
        f"({report.error:+.2f} %)"
    )


def print_calibration(found: Calibration, console: Console) -> None:
    """Print what was measured on a GPU."""
    console.print(Text.assemble((found.gpu, "bold"), f"  torch {found.versions.get('torch', 'unknown')}"))
    if found.context_bytes is None:
        console.print("CUDA context: the driver does not tell what this process holds")
    else:
        console.print(f"CUDA context: {gib(found.context_bytes)}; check takes it for this GPU from now on")
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("scratch memory")
    for name in ("assumed", "measured"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in found.kernels:
        told = "" if one.predicted == one.measured else f"{one.measured - one.predicted:+,} bytes"
        table.add_row(one.name, gib(one.predicted), gib(one.measured), told)
    console.print(table)
    for name, why in found.skipped.items():
        console.print(f"{name}: not on this GPU ({why})", style="dim", highlight=False)


def print_limit(report: LimitReport, console: Console) -> None:
    """Print the edge, and the runs on the way to it."""
    console.print(Text.assemble((report.model.name, "bold"), f"  {report.setup.method}, {describe(report.setup)}"))
    for trial in report.trials:
        outcome = "ran" if trial.ran else f"out of memory in {trial.phase}"
        console.print(f"  {report.axis} {trial.value}: {outcome}")
    console.print(f"largest {report.axis}: predicted {report.predicted}, measured {report.measured}")


def timelines(report: ValidationReport | DepthReport) -> list[Series]:
    """Prediction and measurement over the phases, for a picture; of two depths the deeper one's."""
    shown = report.runs[1] if isinstance(report, DepthReport) else report
    sizes = {f"{'first' if p.step == 0 else 'later'} step, {p.phase}": _sizes(p) for p in shown.phases}
    return [
        Series(name, {moment: pair[place] for moment, pair in sizes.items() if pair[place]})
        for place, name in enumerate(("predicted", "measured"))
    ]


def _quantities(report: ValidationReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("predicted", "measured", "difference", "error"):
        table.add_column(name, justify="right")
    for one in report.quantities:
        table.add_row(
            one.name.removesuffix("_bytes").replace("_", " "),
            gib(one.predicted),
            gib(one.measured),
            f"{(one.predicted - one.measured) / MIB:+.2f} MiB",
            f"{one.error:+.3f} %",
        )
    return table


def _phases(pairs: tuple[PhasePair, ...]) -> Table:
    """The timeline: what was measured as a bar, where the prediction ends as a mark."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "phase"):
        table.add_column(name)
    for name in ("predicted", "measured"):
        table.add_column(name, justify="right")
    table.add_column("█ measured  │ predicted", no_wrap=True)
    rows = [(pair, *_sizes(pair)) for pair in pairs]
    most = max((size for _, *sizes in rows for size in sizes if size), default=1)
    for pair, predicted, measured in rows:
        table.add_row(
            "first" if pair.step == 0 else "later",
            pair.phase,
            gib(predicted),
            gib(measured),
            _bar(predicted, measured, most),
        )
    return table


def _sizes(pair: PhasePair) -> tuple[int, int]:
    """Predicted and measured bytes of the same kind: allocated where that was measured, else requested."""
    kind = "requested_bytes" if pair.measured.allocated_bytes is None else "allocated_bytes"
    return getattr(pair.predicted, kind), getattr(pair.measured, kind)


def _bar(predicted: int, measured: int, most: int) -> Text:
    width, mark = round(measured / most * _BAR), round(predicted / most * _BAR)
    cells = ["█"] * width + [" "] * (_BAR + 1 - width)
    cells[max(0, mark - 1)] = "│"
    return Text("".join(cells))


def _told(one: Difference) -> str:
    where = f"{one.phase} of step {one.step + 1}"
    who = one.measured_by or one.predicted_by
    return f"{gib(one.bytes)} in {where}: {one.predicted} predicted, {one.measured} measured ({who})"


def _verdict(report: ValidationReport) -> Text:
    if report.measurement.out_of_memory is not None:
        outcome, style = ("as predicted", "bold green") if report.within else ("which was not predicted", "bold red")
        return Text(f"the run ended out of memory, {outcome}", style=style)
    judged = report.judged
    if judged is None:
        return Text("nothing was measured", style="bold")
    name = judged.name.removesuffix("_bytes").replace("_", " ")
    how = "within" if report.within else "beyond"
    style = "bold green" if report.within else "bold red"
    return Text(f"{name} is {abs(judged.error):.3f} % off, {how} {report.tolerance:g} %", style=style)
