"""The app: its screens, its themes."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from fitplan.devices.detect import Machine
from fitplan.tui.answers import Answers
from fitplan.tui.harmless import Harmless
from fitplan.tui.look import DARK, LIGHT
from fitplan.tui.screens.plan import PlanScreen
from fitplan.tui.state import Question


class FitplanApp(App[None]):
    """One question at a time, answered as it is changed.

    Args:
        question: what is asked first.
        machine: the GPUs of this machine.
        to_choose: the rows of the settings that are to be chosen first.
        answers: where answers come from.

    """

    CSS_PATH = Path(__file__).with_name("app.tcss")
    TITLE = "fitplan"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q", "quit", "Quit", show=False, priority=True)]

    def __init__(
        self,
        question: Question,
        machine: Machine,
        *,
        to_choose: tuple[str, ...] = (),
        answers: Answers | None = None,
    ) -> None:
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.animation_level = "none"
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = LIGHT.name if light_terminal(os.environ.get("COLORFGBG", "")) else DARK.name
        self._first = PlanScreen(question, answers or Answers(), machine, to_choose=to_choose)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What names of models and folders hold only shows."""
        return [*super().get_line_filters(), Harmless()]

    def get_default_screen(self) -> Screen[None]:
        """The first question."""
        return self._first

    def on_ready(self) -> None:
        """What lives as long as the app is not looked through for garbage while a key waits for its answer."""
        if not self.is_headless:
            gc.freeze()

    def tell(self, message: str) -> None:
        """What is left out as damaged; from any thread."""
        self.notify(message, severity="warning", markup=False, timeout=10)

    def action_turn_theme(self) -> None:
        """From dark to light and back."""
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name

    def action_help_quit(self) -> None:
        """Ctrl+C ends a program."""
        self.exit()


def light_terminal(colours: str) -> bool:
    """Whether a terminal says that its background is light (``COLORFGBG``: ``"0;15"``)."""
    return colours.rpartition(";")[2] in ("7", "15")
