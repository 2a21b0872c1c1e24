"""A validation run: how far it is, and what came of it."""

from collections.abc import Sequence

from textual.content import Content

from fitplan.report.validation import step_name, told_difference, told_end, told_first, told_sizes, told_verdict
from fitplan.tui.look import EDGE, MEASURED, QUIET, Part, badge, bar, lines, wrapped
from fitplan.tui.run import Row, Run, Stage
from fitplan.tui.widgets.panel import Panel
from fitplan.units import gib
from fitplan.validation.report import Comparison

_BADGES = {
    Stage.READY: ("▸", "ready", "$primary"),
    Stage.RUNNING: ("…", "running", "$primary"),
    Stage.STOPPING: ("…", "stopping", "$primary"),
    Stage.FAILED: ("!", "failed", "$error"),
}
_PLACE, _SIZE, _NUMBER = 20, 12, 14
"""Columns: of a step and its phase, or of a quantity; of a size beside a bar; of a number in a table."""


class RunPanel(Panel[Run]):
    """How far the run is, its highest memory beside the predicted peak, and the command that does it."""

    def draw(self, view: Run) -> Content:
        """A badge with a sentence, the bar, the command; each as far as there is room."""
        width, height = self.room
        sign = _badge(view)
        indent = " " * (sign.cell_length + 2)
        first, *more = wrapped(indent + _sentence(view), width, "bold") or [Content()]
        rows = [sign + first[sign.cell_length :], *more]
        predicted, measured = view.peaks
        if predicted:
            so_far = "measured" if view.stage is Stage.DONE else "so far"
            rows.append(_bar(predicted, measured, max(predicted, measured), width))
            rows.append(
                Content.styled(f"{MEASURED} {gib(measured)} {so_far}   {EDGE} {gib(predicted)} predicted", QUIET)
            )
        return lines([*rows, *wrapped(view.command, width, QUIET if predicted else "")][:height])


def _badge(view: Run) -> Content:
    outcome = view.outcome
    if view.stage is not Stage.DONE or outcome is None:
        return badge(*_BADGES[view.stage])
    ended = outcome.measurement.out_of_memory is not None
    word = "out of memory" if ended else "holds" if outcome.within else "missed"
    return badge("✓" if outcome.within else "✗", word, "$success" if outcome.within else "$error")


def _sentence(view: Run) -> str:
    match view.stage:
        case Stage.READY:
            return "; ".join(filter(None, (view.told, f"Enter runs it on {view.place.name}")))
        case Stage.RUNNING:
            return f"{view.told}   {view.seconds} s"
        case Stage.DONE if view.outcome is not None:
            failed = view.outcome.measurement.out_of_memory
            end = told_end(failed) if failed is not None else ""
            return "; ".join(filter(None, (told_verdict(view.outcome), end, view.told)))
        case _:
            return view.told


def _bar(predicted: int, measured: int, full: int, width: int) -> Content:
    return bar([Part(MEASURED, "$primary", "measured", measured)], full, width, predicted)


class PhasesPanel(Panel[Run]):
    """A bar for each phase, with a mark where the prediction ends."""

    def draw(self, view: Run) -> Content:
        """A line for each phase, twice as thick where there is room; before there is any, what will be done."""
        width, height = self.room
        if not view.rows:
            return lines([line for text in _before(view) for line in (*wrapped(text, width, ""), Content())][:height])
        full = max(max(row.predicted, row.measured or 0) for row in view.rows)
        names = f"{'step':<7}{'phase':<{_PLACE - 7}}{'predicted':>{_SIZE}}{'measured':>{_SIZE}}  "
        head = Content.styled(f"{names}{MEASURED} measured  {EDGE} predicted", QUIET)
        thick = 2 if height > 2 * len(view.rows) else 1
        rows = [line for row in view.rows for line in _phase(row, full, width - len(names))[:thick]]
        return lines([head, *rows][:height])


def _before(view: Run) -> Sequence[str]:
    if view.stage is Stage.FAILED:
        return ("Nothing was measured.",)
    if view.stage is not Stage.READY:
        return ("The step is traced first; its phases come here with what each is predicted to take.",)
    place = view.place
    told = (
        f"Enter runs the training step for real on {place.name}: in a process of its own, for three optimizer steps, "
        "with random weights. It takes the memory and the time that the job takes; Esc ends it."
    )
    kept = "What it measures is kept: fitplan check and the saved report show it as evidence."
    return tuple(filter(None, (place.why, told, "" if place.is_shortened else kept)))


def _phase(row: Row, full: int, width: int) -> list[Content]:
    """The line of a phase, and its bar once more for where there is room to make it thick."""
    name = f"{step_name(row.step):<7}{row.phase:<{_PLACE - 7}}"
    measured = "–" if row.measured is None else gib(row.measured)
    told = f"{name}{gib(row.predicted):>{_SIZE}}{measured:>{_SIZE}}  "
    drawn = _bar(row.predicted, row.measured or 0, full, max(1, width))
    return [Content.assemble((told, QUIET if row.measured is None else ""), drawn), drawn.pad_left(len(told))]


class PeaksPanel(Panel[Run]):
    """The peaks of the whole run: predicted, measured, their difference, the error."""

    def draw(self, view: Run) -> Content:
        """A line for each quantity, and which one was judged."""
        width, height = self.room
        if view.outcome is None:
            return _later()
        if not view.outcome.quantities:
            return lines(wrapped("a run that ended out of memory has no peaks to compare", width)[:height])
        head = "".join(f"{name:>{_NUMBER}}" for name in ("predicted", "measured", "difference", "error"))
        rows = [Content.styled(" " * _PLACE + head, QUIET)]
        for one in view.outcome.quantities:
            told = "".join(f"{text:>{_NUMBER}}" for text in told_sizes(one))
            rows.append(Content.styled(f"{one.title:<{_PLACE}}{told}", "bold" if one == view.outcome.judged else ""))
        return lines(rows[:height])


class DifferencesPanel(Panel[Run]):
    """The allocations that were not as predicted."""

    def draw(self, view: Run) -> Content:
        """What weighs most first, then where prediction and run part; as far as there is room."""
        width, height = self.room
        return _later() if view.outcome is None else lines(_differences(view.outcome, width)[:height])


def _differences(found: Comparison, width: int) -> list[Content]:
    if found.first_difference is None and not found.differences:
        return wrapped("none: as far as they were compared, the allocations are those that were predicted", width)
    told = [f"▪ {told_difference(one)}" for one in found.differences]
    told += [told_first(found.first_difference)] if found.first_difference is not None else []
    return [line for text in told for line in wrapped(text, width, "")]


def _later() -> Content:
    return Content.styled("known once a run has ended", QUIET)
