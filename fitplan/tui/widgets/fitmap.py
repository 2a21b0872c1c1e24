"""The fit map: which batches of which lengths fit, with the point that is asked about."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive

from fitplan.fitmap import Cell, FitMap
from fitplan.setup import TrainingSetup
from fitplan.tui.look import QUIET, SIGNS, lines, wrapped
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel
from fitplan.units import GIB

ASKED, NEAR, CURSOR, BOTH = "●", "○", "▸", "◆"
_LABEL, _LEAST, _MOST, _LARGEST = 6, 6, 10, 8
_HEAD = 1


class MapPanel(Panel[View], can_focus=True):
    """Lengths downwards, batches across; the arrow keys move, Enter asks about the cell."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "length", show=False),
        Binding("down", "move(1, 0)", "length", show=False),
        Binding("left", "move(0, -1)", "batch", show=False),
        Binding("right", "move(0, 1)", "batch", show=False),
        Binding("enter", "choose", "ask about this point", show=False),
    ]
    cursor: reactive[tuple[int, int]] = reactive((0, 0))

    class Chosen(Message):
        """A point of the map was chosen."""

        def __init__(self, cell: Cell) -> None:
            super().__init__()
            self.cell = cell

    def watch_view(self, old: View | None, view: View | None) -> None:
        """The cursor goes to what is asked about, unless somebody is moving it."""
        if view is not None and view.fit_map is not None and (not self.has_focus or old is None or not old.fit_map):
            self.cursor = place_of(view.fit_map, view.setup)[0]

    def on_focus(self) -> None:
        """The cursor is drawn where the focus is."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor goes with the focus."""
        self.refresh()

    def draw(self, view: View) -> Content:
        """The map, or what is missing for one."""
        found = view.fit_map
        if found is None:
            return lines(wrapped(view.later or "not known yet", self.room[0]))
        height = self.room[1]
        shape = self._shape(found)
        place, exact = place_of(found, view.setup)
        rows = [_header(found, shape)]
        for number, row in enumerate(found.cells):
            cells = [self._cell(row[at], (number, at), place, exact, shape.wide) for at in shape.columns]
            most = found.largest_batch[row[0].seq_len]
            tail = f"{most or 'none':>{_LARGEST}}" if shape.largest else ""
            rows.append(Content.assemble((f"{_thousands(row[0].seq_len):>{_LABEL - 1}} ", "bold"), *cells, tail))
            rows += [Content()] * (shape.tall - 1)
        longest = list(found.longest_seq.values())
        last = "".join(f"{longest[at] or 'none':>{shape.wide}}" for at in shape.columns)
        rows.append(Content.assemble(("most ".rjust(_LABEL), "bold"), last))
        asked = f"{ASKED} asked" if exact else f"{NEAR} nearest"
        rows.append(Content.styled(f"GiB needed  {asked}  {CURSOR} Enter asks here", QUIET))
        return lines(rows[:height])

    def _cell(self, cell: Cell, at: tuple[int, int], place: tuple[int, int], exact: bool, wide: int) -> Content:
        mark = (ASKED if exact else NEAR) if at == place else ""
        style = ""
        if self.has_focus and at == self.cursor:
            mark, style = (BOTH if mark else CURSOR), " reverse"
        if cell.verdict is None:
            return Content.styled(f"{mark}–".rjust(wide), QUIET + style)
        sign = SIGNS[cell.verdict.fit]
        size = cell.verdict.memory.bytes / GIB
        text = f"{mark}{size:.1f}" if size < 99.95 else f"{mark}{size:.0f}"
        bold = " bold" if mark else ""
        return Content.assemble(
            (f"{text:>{wide - 1}}{sign.mark}", sign.style.removeprefix("bold ") + bold + style),
        )

    def _shape(self, found: FitMap) -> "_Shape":
        """How many columns there is room for, and how wide; the cursor is among them."""
        room = self.room[0] - _LABEL
        batches = len(found.cells[0])
        largest = room >= batches * _LEAST + _LARGEST
        number = max(1, min(batches, room // _LEAST))
        first = min(max(0, self.cursor[1] - number + 1), batches - number)
        wide = min(_MOST, (room - _LARGEST if largest else room) // number)
        return _Shape(range(first, first + number), wide, 2 if self.room[1] >= 2 * len(found.cells) + 4 else 1, largest)

    def action_move(self, down: int, right: int) -> None:
        """Move the cursor; it stops at the edges."""
        if self.view is None or self.view.fit_map is None:
            return
        cells = self.view.fit_map.cells
        row, column = self.cursor
        self.cursor = (
            min(max(row + down, 0), len(cells) - 1),
            min(max(column + right, 0), len(cells[0]) - 1),
        )

    def action_choose(self) -> None:
        """Ask about the cell under the cursor."""
        if self.view is not None and self.view.fit_map is not None:
            row, column = self.cursor
            self.post_message(self.Chosen(self.view.fit_map.cells[row][column]))

    def on_click(self, event: events.Click) -> None:
        """A click asks about the cell."""
        if self.view is None or self.view.fit_map is None:
            return
        offset = event.get_content_offset(self)
        cells = self.view.fit_map.cells
        if offset is None:
            return
        shape = self._shape(self.view.fit_map)
        row, column = (offset.y - _HEAD) // shape.tall, shape.columns.start + (offset.x - _LABEL) // shape.wide
        if 0 <= row < len(cells) and column in shape.columns:
            self.cursor = (row, column)
            self.action_choose()


@dataclass(frozen=True)
class _Shape:
    """The columns that are shown, the size of a cell, and whether the largest batch has a column."""

    columns: range
    wide: int
    tall: int
    largest: bool


def place_of(found: FitMap, setup: TrainingSetup) -> tuple[tuple[int, int], bool]:
    """Row and column of the cell that is asked about, or of the nearest; and whether it is that very cell."""
    lengths = [row[0].seq_len for row in found.cells]
    batches = [cell.batch_size for cell in found.cells[0]]
    row = min(range(len(lengths)), key=lambda n: abs(lengths[n] - setup.seq_len))
    column = min(range(len(batches)), key=lambda n: abs(batches[n] - setup.batch_size))
    return (row, column), (lengths[row], batches[column]) == (setup.seq_len, setup.batch_size)


def _header(found: FitMap, shape: _Shape) -> Content:
    name = "b" if shape.wide < _MOST else "batch "
    batches = "".join(f"{name}{found.cells[0][at].batch_size}".rjust(shape.wide) for at in shape.columns)
    return Content.styled(f"{'tokens':>{_LABEL}}{batches}{'most'.rjust(_LARGEST) if shape.largest else ''}", QUIET)


def _thousands(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)
