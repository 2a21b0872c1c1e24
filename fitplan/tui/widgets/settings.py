"""The settings: a row for each, changed with the arrow keys, by typing or with the mouse."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive

from fitplan.tui.knobs import KNOBS, Knob, knob_of
from fitplan.tui.look import QUIET, lines, shortened, wrapped
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel

MODEL, GPU = "model", "gpu"
ROWS: tuple[str, ...] = (MODEL, GPU, *(knob.name for knob in KNOBS))
_LABELS = {MODEL: "model", GPU: "GPU"}
_BOLD = (MODEL, GPU, "method")
_VALUE = 15
"""The column in which values begin."""
LESS, MORE = "‹", "›"


class SettingsPanel(Panel[View], can_focus=True):
    """Up and down choose a row, left and right change it, Enter asks for a value."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "row(-1)", "row", show=False),
        Binding("down", "row(1)", "row", show=False),
        Binding("left", "step(-1)", "less", show=False),
        Binding("right", "step(1)", "more", show=False),
        Binding("shift+left", "step(-1, True)", "one less", show=False),
        Binding("shift+right", "step(1, True)", "one more", show=False),
        Binding("enter,space", "pick", "choose a value", show=False),
        Binding("home", "row(-99)", "first row", show=False),
        Binding("end", "row(99)", "last row", show=False),
    ]
    row: reactive[int] = reactive(2)

    class Stepped(Message):
        """A setting goes to its next value; from which one the screen knows, as keys may come faster than answers."""

        def __init__(self, knob: Knob, by: int, fine: bool) -> None:
            super().__init__()
            self.knob, self.by, self.fine = knob, by, fine

    class Asked(Message):
        """A value is to be picked."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def on_focus(self) -> None:
        """The cursor is drawn where the focus is."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor goes with the focus."""
        self.refresh()

    def draw(self, view: View) -> Content:
        """The rows, and what the chosen one does as far as there is room."""
        width, height = self.room
        first = self._first(height)
        rows = [self._row(number, view, width) for number in range(len(ROWS))][first : first + height]
        hint = [Content(), *wrapped(self._hint(), width - 2)]
        rows += [row.pad_left(1) for row in hint][: height - len(rows)]
        return lines(rows)

    def _first(self, height: int) -> int:
        """The first row on the screen, where there is no room for all."""
        return min(max(0, self.row - height + 1), max(0, len(ROWS) - height)) if height < len(ROWS) else 0

    def _hint(self) -> str:
        knob = knob_of(ROWS[self.row])
        return knob.help if knob is not None else "Enter to choose another"

    def _row(self, number: int, view: View, width: int) -> Content:
        name = ROWS[number]
        knob = knob_of(name)
        here = number == self.row
        applies = knob is None or knob.applies(view.setup)
        value = shortened(_value(name, view), width - _VALUE - 1)
        less, more = (LESS, MORE) if here and applies and knob is not None else (" ", "")
        cursor = "▸" if here and self.has_focus else " "
        style = "bold $primary" if here and self.has_focus else "" if applies else QUIET
        label = knob.label if knob is not None else _LABELS[name]
        return Content.assemble(
            (f"{cursor}{label:<{_VALUE - 2}}{less}", style or QUIET),
            (f"{value}{more}", style or ("bold" if name in _BOLD else "")),
        )

    def action_row(self, by: int) -> None:
        """Go to another row."""
        self.row = min(max(self.row + by, 0), len(ROWS) - 1)

    def action_step(self, by: int, fine: bool = False) -> None:
        """Change the value of the row."""
        view, name = self.view, ROWS[self.row]
        knob = knob_of(name)
        if view is None:
            return
        if knob is None:
            self.post_message(self.Asked(name))
        elif knob.applies(view.setup):
            self.post_message(self.Stepped(knob, by, fine))

    def action_pick(self) -> None:
        """Ask for a value of the row."""
        knob = knob_of(ROWS[self.row])
        if self.view is not None and (knob is None or knob.applies(self.view.setup)):
            self.post_message(self.Asked(ROWS[self.row]))

    def on_click(self, event: events.Click) -> None:
        """A click chooses a row; on the chosen one it steps at the arrows and asks for a value between them."""
        offset = event.get_content_offset(self)
        if offset is None or self.view is None:
            return
        row = offset.y + self._first(self.room[1])
        if row >= len(ROWS):
            return
        if row != self.row:
            self.row = row
            return
        end = _VALUE + len(shortened(_value(ROWS[row], self.view), self.room[0] - _VALUE - 1))
        if offset.x in (_VALUE - 2, _VALUE - 1):
            self.action_step(-1)
        elif offset.x in (end, end + 1):
            self.action_step(1)
        else:
            self.action_pick()

    def on_mouse_scroll_down(self) -> None:
        """The wheel goes through the rows."""
        self.action_row(1)

    def on_mouse_scroll_up(self) -> None:
        """The wheel goes through the rows."""
        self.action_row(-1)


def _value(name: str, view: View) -> str:
    if name == MODEL:
        return view.model.name if view.model is not None else view.question.model
    if name == GPU:
        return view.device.name if view.device is not None else view.question.gpu or view.question.vram or ""
    knob = knob_of(name)
    assert knob is not None, "every other row is a setting"
    value = getattr(view.setup, name)
    if value is None and knob.applies(view.setup):
        return "auto"
    return knob.shown(value)
