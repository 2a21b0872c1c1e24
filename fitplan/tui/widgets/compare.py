"""Setups beside each other: one column each, the same facts in the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from fitplan.trace.events import Category
from fitplan.tui.knobs import KNOBS
from fitplan.tui.look import QUIET, bar, device_bytes_of, device_parts, lines, sign_of
from fitplan.tui.view import Stage, View
from fitplan.units import count, gib

_LABEL, _LEAST, _MOST = 18, 19, 44
_ANSWER = ["", "needs", "usable", "left", "on one scale"]
_FACTS = ["peak", "trains", "adapter on disk"]


@dataclass(frozen=True)
class Column:
    """One setup to compare."""

    title: str
    view: View


class CompareTable(Widget, can_focus=True):
    """Columns to go through with the arrow keys; Enter takes one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "left", show=False),
        Binding("right", "move(1)", "right", show=False),
        Binding("enter", "take", "take", show=False),
    ]
    columns: reactive[tuple[Column, ...]] = reactive(())
    cursor: reactive[int] = reactive(0)

    class Taken(Message):
        """A column was taken."""

        def __init__(self, column: Column) -> None:
            super().__init__()
            self.column = column

    def render(self) -> Content:
        """The columns that there is room for, with the one under the cursor among them."""
        first, number, wide = self._window()
        seen = self.columns[first : first + number]
        differing = [knob for knob in KNOBS if len({getattr(c.view.setup, knob.name) for c in self.columns}) > 1]
        scale = max((_reach(column.view) for column in seen), default=1)
        more = f"{'◂' if first else ' '} {'▸' if first + number < len(self.columns) else ' '}"
        sections = [
            [more, *_ANSWER],
            _names(seen),
            _FACTS,
            [knob.label for knob in differing],
        ]
        cells = [
            [
                [_title(column, here=first + place == self.cursor), *_answer(column.view, wide - 2, scale)],
                _parts(column.view),
                _facts(column.view),
                [Content(knob.shown(getattr(column.view.setup, knob.name))) for knob in differing],
            ]
            for place, column in enumerate(seen)
        ]
        rows = [
            [
                Content.assemble((label.ljust(_LABEL), QUIET), *(_fitted(column[part][at], wide) for column in cells))
                for at, label in enumerate(labels)
            ]
            for part, labels in enumerate(sections)
        ]
        roomy = sum(len(part) + 1 for part in rows) <= self.content_size.height
        return lines(row for part in rows for row in (*part, *[Content()] * roomy))

    def _window(self) -> tuple[int, int, int]:
        """The first column on the screen, how many there are, and how wide."""
        room = max(self.content_size.width - _LABEL, _LEAST)
        number = max(1, min(len(self.columns), room // _LEAST))
        first = min(max(0, self.cursor - number // 2), max(0, len(self.columns) - number))
        return first, number, min(_MOST, room // number)

    def action_move(self, by: int) -> None:
        """Go to another column."""
        self.cursor = min(max(self.cursor + by, 0), max(0, len(self.columns) - 1))

    def action_take(self) -> None:
        """Take the column under the cursor."""
        if self.columns:
            self.post_message(self.Taken(self.columns[self.cursor]))

    def on_click(self, event: events.Click) -> None:
        """A click goes to a column; a second one takes it."""
        offset = event.get_content_offset(self)
        first, number, wide = self._window()
        if offset is None or offset.x < _LABEL:
            return
        place = first + (offset.x - _LABEL) // wide
        if place == self.cursor:
            self.action_take()
        elif place < first + number:
            self.cursor = place


def _fitted(content: Content, wide: int) -> Content:
    short = content.truncate(wide - 2, ellipsis=True)
    return short.pad_right(wide - short.cell_length)


def _title(column: Column, *, here: bool) -> Content:
    return Content.styled(f"▸ {column.title}" if here else f"  {column.title}", "bold $primary" if here else "bold")


def _reach(view: View) -> int:
    if view.plan is None or view.device is None:
        return 1
    return max(device_bytes_of(view.plan, view.device), view.device.total_bytes)


def _names(columns: Sequence[Column]) -> list[str]:
    """The names of the parts, from any column that has an answer."""
    for column in columns:
        if column.view.plan is not None and column.view.device is not None:
            return [part.name for part in device_parts(column.view.plan)]
    return []


def _answer(view: View, wide: int, scale: int) -> list[Content]:
    """The cells that :data:`_ANSWER` names."""
    plan, device = view.plan, view.device
    if plan is None or device is None or plan.verdict is None:
        told = "! no answer" if view.stage is Stage.FAILED else "takes a trace: Enter"
        return [Content.styled(told, QUIET), *[Content()] * (len(_ANSWER) - 1)]
    slack = plan.verdict.slack_bytes
    return [
        sign_of(plan.verdict),
        Content(gib(device_bytes_of(plan, device))),
        Content(gib(device.usable_bytes)),
        Content.styled(f"{'−' if slack < 0 else ''}{gib(abs(slack))}", "bold"),
        bar(device_parts(plan), scale, wide, device.usable_bytes, device.total_bytes),
    ]


def _parts(view: View) -> list[Content]:
    if view.plan is None or view.device is None:
        return [Content()] * (len(Category) + 1)
    return [
        Content.assemble((f"{part.mark} ", part.style), gib(part.bytes) if part.bytes else ("–", QUIET))
        for part in device_parts(view.plan)
    ]


def _facts(view: View) -> list[Content]:
    """The cells that :data:`_FACTS` names."""
    plan = view.plan
    if plan is None:
        return [Content()] * len(_FACTS)
    disk = plan.adapter_checkpoint_bytes
    return [
        Content(plan.estimate.peak_moment),
        Content(count(plan.trainable_parameters)),
        Content(gib(disk) if disk is not None else "–"),
    ]
