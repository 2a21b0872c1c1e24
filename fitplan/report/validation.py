"""A validation for a person at a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.report.dossier import Series
from fitplan.report.tables import print_table
from fitplan.report.terminal import describe
from fitplan.units import MIB, counted, gib
from fitplan.validation.calibration import Calibration
from fitplan.validation.comparison import Difference, PhasePair, Quantity
from fitplan.validation.depths import DepthReport
from fitplan.validation.job import OutOfMemory
from fitplan.validation.limit import LimitReport
from fitplan.validation.report import Comparison, ValidationReport

_BAR = 24
_LISTED = 5


def print_validation(report: ValidationReport, console: Console) -> None:
    """Print what was predicted and what a run took, side by side."""
    measurement, grade = report.measurement, report.job.grade
    here = ", rehearsed: it is not there" if report.job.rehearsed else ""
    console.print(Text.assemble((report.model.name, "bold"), f"  on {measurement.device}{here}"))
    console.print(f"{report.setup.method}, {describe(report.setup)}", style="dim")
    console.print()
    if report.quantities:
        print_table(_quantities(report), console)
        console.print()
    print_table(_phases(report.phases, grade), console)
    if measurement.out_of_memory is not None:
        console.print()
        console.print(Text(told_end(measurement.out_of_memory), style="bold"))
    if report.differences:
        console.print()
        console.print("allocations that were not as predicted, what weighs most first:")
        for one in report.differences[:_LISTED]:
            console.print(f"  {told_difference(one, grade)}", highlight=False)
    if report.first_difference is not None:
        console.print(told_first(report.first_difference, grade))
    console.print()
    console.print(Text(told_verdict(report), style="bold green" if report.within else "bold red"))


def print_depths(report: DepthReport, console: Console) -> None:
    """Print both runs, and the full model."""
    for run in report.runs:
        print_validation(run, console)
        console.print()
    few, many, full = report.layers
    console.print(
        f"{report.model.name}, all {counted(full, 'layer')}, from {few} and {many}: "
        f"predicted {gib(report.predicted)}, expected {gib(report.expected)} ± {gib(report.spread)} "
        f"({report.error:+.2f} %)"
    )


def print_calibration(found: Calibration, console: Console, *, kept: bool = True) -> None:
    """Print what was measured on a GPU, and that ``check`` takes it if it was kept."""
    console.print(Text.assemble((found.gpu, "bold"), f"  torch {found.versions.get('torch', 'unknown')}"))
    if found.context_bytes is None:
        console.print("CUDA context: the driver does not tell what this process holds")
    else:
        taken = "; check takes it for this GPU from now on" if kept else ""
        console.print(f"CUDA context: {gib(found.context_bytes)}{taken}")
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("scratch memory")
    for name in ("assumed", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in found.kernels:
        told = "" if one.predicted == one.measured else f"{one.measured - one.predicted:+,} bytes"
        table.add_row(one.name, gib(one.predicted), gib(one.measured), told)
    print_table(table, console)
    for name, why in found.skipped.items():
        console.print(f"{name}: not on this GPU ({why})", style="dim", highlight=False)


def print_limit(report: LimitReport, console: Console) -> None:
    """Print the edge, and the runs on the way to it."""
    console.print(Text.assemble((report.model.name, "bold"), f"  {report.setup.method}, {describe(report.setup)}"))
    for trial in report.trials:
        outcome = "ran" if trial.ran else f"out of memory in {trial.phase}"
        console.print(f"  {report.axis} {trial.value}: {outcome}")
    console.print(f"largest {report.axis}: predicted {report.predicted}, measured {report.measured}")


def timelines(pairs: Iterable[PhasePair]) -> list[Series]:
    """Prediction and measurement over the phases, for a picture."""
    sizes = {f"{step_name(p.step)} step, {p.phase}": p.sizes for p in pairs}
    return [
        Series(name, {moment: pair[place] for moment, pair in sizes.items() if pair[place]})
        for place, name in enumerate(("predicted", "measured"))
    ]


def _quantities(report: ValidationReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("predicted", report.job.grade, "difference", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.quantities:
        table.add_row(one.title, *told_sizes(one))
    return table


def told_sizes(one: Quantity) -> tuple[str, str, str, str]:
    """Predicted, measured, their difference, the error."""
    difference = f"{(one.predicted - one.measured) / MIB:+.2f} MiB"
    return gib(one.predicted), gib(one.measured), difference, f"{one.error:+.3f} %"


def _phases(pairs: tuple[PhasePair, ...], grade: str) -> Table:
    """The timeline: what the run took as a bar, where the prediction ends as a mark."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "phase"):
        table.add_column(name)
    for name in ("predicted", grade):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"█ {grade}  │ predicted", no_wrap=True)
    rows = [(pair, *pair.sizes) for pair in pairs]
    most = max((size for _, *sizes in rows for size in sizes if size), default=1)
    for pair, predicted, measured in rows:
        table.add_row(
            step_name(pair.step),
            pair.phase,
            gib(predicted),
            gib(measured),
            _bar(predicted, measured, most),
        )
    return table


def _bar(predicted: int, measured: int, most: int) -> Text:
    width, mark = round(measured / most * _BAR), round(predicted / most * _BAR)
    cells = ["█"] * width + [" "] * (_BAR + 1 - width)
    cells[max(0, mark - 1)] = "│"
    return Text("".join(cells))


def step_name(step: int) -> str:
    """Of the first step, or of those after it, which are compared as one."""
    return "first" if step == 0 else "later"


def told_difference(one: Difference, grade: str = "measured") -> str:
    """One size that did not occur as often as predicted."""
    where = f"{one.phase} of step {one.step + 1}"
    who = one.measured_by or one.predicted_by
    return f"{gib(one.bytes)} in {where}: {one.predicted} predicted, {one.measured} {grade} ({who})"


def told_first(first: Difference, grade: str = "measured") -> str:
    """Where prediction and run part."""
    return (
        f"the first, in {first.phase} of step {first.step + 1}: "
        f"predicted {first.predicted_by}; {grade} {first.measured_by}"
    )


def told_end(failed: OutOfMemory) -> str:
    """Where a run ended, and what the allocator said."""
    return f"out of memory in {failed.phase} of step {failed.step + 1}: {failed.message}"


def told_verdict(found: Comparison) -> str:
    """Whether the prediction holds, in one sentence."""
    if found.measurement.out_of_memory is not None:
        return f"the run ended out of memory, {'as predicted' if found.within else 'which was not predicted'}"
    judged = found.judged
    if judged is None:
        return "nothing was measured"
    how = "within" if found.within else "beyond"
    return f"{judged.title} is {abs(judged.error):.3f} % off, {how} {found.tolerance:g} %"
