"""Choose one of many: a line to type in, and what matches below it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from fitplan.tui.look import QUIET


@dataclass(frozen=True)
class Choice:
    """Something that can be chosen.

    Attributes:
        value: what it stands for; ``None`` for a heading.
        label: its name.
        detail: a remark beside it.

    """

    value: Any
    label: str
    detail: str = ""


SHORT = 12
"""Up to so many choices the dialog is as high as its list."""

Source = Callable[[str], Sequence[Choice]]


class Picker(ModalScreen[Any]):
    """Asks for one of the choices that ``source`` finds for what was typed; ``None`` if none is taken.

    Args:
        title: what is chosen.
        hint: what can be typed.
        source: the choices for a text.
        now: the value that is chosen now.

    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back"),
        Binding("down", "move(1)", "Down", show=False),
        Binding("up", "move(-1)", "Up", show=False),
        Binding("pagedown", "move(10)", "Page down", show=False),
        Binding("pageup", "move(-10)", "Page up", show=False),
    ]

    def __init__(self, title: str, hint: str, source: Source, now: Any = None) -> None:
        super().__init__()
        self._title, self._hint, self._source, self._now = title, hint, source, now
        self._choices: Sequence[Choice] = ()

    def compose(self) -> ComposeResult:
        """The line, the list, the keys."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Input(placeholder=self._hint, compact=True)
            yield OptionList(compact=True)
            yield Static("Enter take   ↑ ↓ move   Esc back", classes="keys")

    def on_mount(self) -> None:
        """All that there is, with what is chosen now under the cursor."""
        self.query_one(OptionList).can_focus = False
        self._find("")
        self.query_one(".dialog").set_class(len(self._choices) > SHORT, "-long")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as it is typed."""
        self._find(event.value)

    def _find(self, text: str) -> None:
        self._choices = self._source(text.strip())
        options = self.query_one(OptionList)
        options.clear_options()
        room = max((len(choice.label) for choice in self._choices if choice.value is not None), default=0)
        options.add_options(Option(_row(choice, room), disabled=choice.value is None) for choice in self._choices)
        values = [choice.value for choice in self._choices]
        first = next((n for n, value in enumerate(values) if value is not None), None)
        options.highlighted = values.index(self._now) if not text and self._now in values else first

    def action_move(self, by: int) -> None:
        """Move the cursor of the list, while the keys go to the line."""
        options = self.query_one(OptionList)
        for _ in range(abs(by)):
            if by > 0:
                options.action_cursor_down()
            else:
                options.action_cursor_up()

    def on_input_submitted(self) -> None:
        """Enter takes what is under the cursor."""
        place = self.query_one(OptionList).highlighted
        if place is not None and self._choices:
            self.dismiss(self._choices[place].value)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click takes what is under it."""
        self.dismiss(self._choices[event.option_index].value)

    def action_leave(self) -> None:
        """Take nothing."""
        self.dismiss(None)


def _row(choice: Choice, room: int) -> Content:
    if choice.value is None:
        return Content.styled(choice.label, f"bold {QUIET}")
    return Content.assemble(f"{choice.label:<{min(room, 34)}}  ", (choice.detail, QUIET))
