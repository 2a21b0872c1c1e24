"""Short dialogs: help, and what can be taken away."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from fitplan.tui.look import QUIET, lines

Keys = Sequence[tuple[str, str]]


class Help(ModalScreen[None]):
    """What the keys of a screen do, and how to read it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "dismiss", "Back")]

    def __init__(self, title: str, sections: Sequence[tuple[str, Keys]]) -> None:
        super().__init__()
        self._title, self._sections = title, sections

    def compose(self) -> ComposeResult:
        """The sections, one under the other."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            with VerticalScroll():
                yield Static(lines(row for title, keys in self._sections for row in _section(title, keys)))
            yield Static("↑ ↓ scroll   Esc back", classes="keys")


def _section(title: str, keys: Keys) -> list[Content]:
    heading = Content.styled(title, "bold $primary")
    return [heading, *(Content.assemble((f"  {key:<14}", "bold"), what) for key, what in keys), Content()]


class TakeAway(ModalScreen[None]):
    """A text that was copied, for terminals that do not let programs copy."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q,y,Y", "dismiss", "Back")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """The text, and how to get it where copying is not allowed."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            with VerticalScroll():
                yield Static(Content(self._text), classes="code")
            yield Static(
                Content.styled(
                    "Copied, if the terminal allows it (OSC 52); else select it with Shift and the mouse.", QUIET
                )
            )
            yield Static("Esc back", classes="keys")
