"""One setup beside others: method beside method, GPU beside GPU, or the setups that were held."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from fitplan.errors import FitplanError
from fitplan.setup import Method
from fitplan.tui.answers import Answers
from fitplan.tui.help import COMPARE_HELP
from fitplan.tui.knobs import METHOD_NAMES
from fitplan.tui.screens.dialogs import Help
from fitplan.tui.sources import nearby
from fitplan.tui.state import Question
from fitplan.tui.view import view_of
from fitplan.tui.widgets.compare import Column, CompareTable
from fitplan.tui.widgets.strip import Strip

AXES = ("Methods", "GPUs", "Held")
NAMES = ("methods", "GPUs", "held setups")


class CompareScreen(Screen[tuple[Question, tuple[Question, ...]]]):
    """Ends with the question of the column that was taken, and with the setups that are still held."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        *(Binding(str(n), f"axis({n - 1})", name) for n, name in enumerate(AXES, 1)),
        Binding("tab", "next_axis", "Next", show=False),
        Binding("delete,backspace", "let_go", "Let go", show=False),
        Binding("t", "app.turn_theme", "Theme"),
        Binding("escape,c,q", "leave", "Back"),
    ]

    def __init__(self, answers: Answers, now: Question, held: tuple[Question, ...]) -> None:
        super().__init__()
        self._answers, self._now, self.held = answers, now, held
        self._axis = 2 if held else 0

    def compose(self) -> ComposeResult:
        """The axes, and the table."""
        yield Strip(AXES, id="strip")
        yield CompareTable()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin with what was held, else with the methods."""
        self.query_one(CompareTable).focus()
        self.action_axis(self._axis)

    def action_axis(self, axis: int) -> None:
        """Compare along another axis."""
        self._axis = self.query_one(Strip).shown = axis
        table = self.query_one(CompareTable)
        questions = (self._methods, self._gpus, self._held)[axis]()
        table.border_title = f"{self._now.model}: {NAMES[axis]} beside each other"
        table.cursor = 0
        table.columns = tuple(Column(title, view_of(self._answers, question)) for title, question in questions)
        table.cursor = next((n for n, (_, question) in enumerate(questions) if question == self._now), 0)

    def action_next_axis(self) -> None:
        """The axes go round."""
        self.action_axis((self._axis + 1) % len(AXES))

    def _methods(self) -> list[tuple[str, Question]]:
        return [(METHOD_NAMES[method], self._now.change("method", method)) for method in Method]

    def _gpus(self) -> list[tuple[str, Question]]:
        try:
            here = self._answers.device(self._now)
        except FitplanError:
            return []
        return [
            (device.name, self._now if device is here else self._now.on(gpu=device.name)) for device in nearby(here)
        ]

    def _held(self) -> list[tuple[str, Question]]:
        others = [question for question in self.held if question != self._now]
        return [("now", self._now), *((f"held {n}", question) for n, question in enumerate(others, 1))]

    def action_let_go(self) -> None:
        """Let the held setup under the cursor go."""
        table = self.query_one(CompareTable)
        if self._axis == AXES.index("Held") and table.columns:
            gone = table.columns[table.cursor].view.question
            self.held = tuple(question for question in self.held if question != gone)
            self.action_axis(self._axis)

    def on_compare_table_taken(self, message: CompareTable.Taken) -> None:
        """A column was taken."""
        self.dismiss((message.column.view.question, self.held))

    def action_leave(self) -> None:
        """Back to the question as it was."""
        self.dismiss((self._now, self.held))

    def action_help(self) -> None:
        """What the keys do."""
        self.app.push_screen(Help("Help: compare", COMPARE_HELP))
