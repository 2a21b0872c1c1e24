"""The fit map: which batches of which lengths fit, with the point that is asked about."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive

from fitplan.fitmap import Cell, FitMap
from fitplan.setup import TrainingSetup
from fitplan.tui.look import QUIET, SIGNS, lines
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel, waiting
from fitplan.units import GIB

ASKED, NEAR, CURSOR, BOTH = "●", "○", "▸", "◆"
_LABEL, _LEAST, _MOST, _LARGEST = 6, 6, 9, 9
_HEAD = 1


class MapPanel(Panel, can_focus=True):
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

    def watch_has_focus(self, _: bool) -> None:
        """The cursor is drawn where the focus is."""
        self.refresh()

    def draw(self, view: View) -> Content:
        """The map, or what is missing for one."""
        found = view.fit_map
        if found is None:
            return Content.styled(view.later, QUIET) if view.later else waiting(view)
        width, height = self.room
        wide = self._cell_width()
        largest = width >= _LABEL + wide * len(found.cells[0]) + _LARGEST
        place, exact = place_of(found, view.setup)
        rows = [_header(found, wide, largest)]
        for number, row in enumerate(found.cells):
            pieces = [self._cell(cell, (number, at), place, exact, wide) for at, cell in enumerate(row)]
            most = found.largest_batch[row[0].seq_len]
            tail = Content(f"{most or 'none':>{_LARGEST}}" if largest else "")
            rows.append(Content.assemble((f"{_thousands(row[0].seq_len):>{_LABEL - 1}} ", "bold"), *pieces, tail))
        longest = "".join(f"{length or 'none':>{wide}}" for length in found.longest_seq.values())
        rows.append(Content.assemble(("most ".rjust(_LABEL), "bold"), longest))
        asked = f"{ASKED} asked" if exact else f"{NEAR} nearest to what is asked"
        rows.append(Content.styled(f"GiB allocated   {asked}   {CURSOR} cursor, Enter asks about it", QUIET))
        return lines(rows[:height])

    def _cell(self, cell: Cell, at: tuple[int, int], place: tuple[int, int], exact: bool, wide: int) -> Content:
        mark = (ASKED if exact else NEAR) if at == place else ""
        style = ""
        if self.has_focus and at == self.cursor:
            mark, style = (BOTH if mark else CURSOR), " reverse"
        if cell.peak_allocated_bytes is None or cell.verdict is None:
            return Content.styled(f"{mark}–".rjust(wide), QUIET + style)
        sign = SIGNS[cell.verdict.fit]
        size = cell.peak_allocated_bytes / GIB
        text = f"{mark}{size:.1f}" if size < 99.95 else f"{mark}{size:.0f}"
        bold = " bold" if mark else ""
        return Content.assemble(
            (f"{text:>{wide - 1}}{sign.mark}", sign.style.removeprefix("bold ") + bold + style),
        )

    def _cell_width(self) -> int:
        assert self.view is not None
        assert self.view.fit_map is not None
        room = self.room[0] - _LABEL
        columns = len(self.view.fit_map.cells[0])
        whole = (room - _LARGEST) // columns
        return min(_MOST, whole if whole >= _LEAST else max(_LEAST, room // columns))

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
        row, column = offset.y - _HEAD, (offset.x - _LABEL) // self._cell_width()
        if 0 <= row < len(cells) and 0 <= column < len(cells[0]) and offset.x >= _LABEL:
            self.cursor = (row, column)
            self.action_choose()


def place_of(found: FitMap, setup: TrainingSetup) -> tuple[tuple[int, int], bool]:
    """Row and column of the cell that is asked about, or of the nearest; and whether it is that very cell."""
    lengths = [row[0].seq_len for row in found.cells]
    batches = [cell.batch_size for cell in found.cells[0]]
    row = min(range(len(lengths)), key=lambda n: abs(lengths[n] - setup.seq_len))
    column = min(range(len(batches)), key=lambda n: abs(batches[n] - setup.batch_size))
    return (row, column), (lengths[row], batches[column]) == (setup.seq_len, setup.batch_size)


def _header(found: FitMap, wide: int, largest: bool) -> Content:
    batches = "".join(f"{'b' if wide < _MOST else 'batch '}{cell.batch_size}".rjust(wide) for cell in found.cells[0])
    return Content.styled(f"{'tokens':>{_LABEL}}{batches}{'most'.rjust(_LARGEST) if largest else ''}", QUIET)


def _thousands(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)
