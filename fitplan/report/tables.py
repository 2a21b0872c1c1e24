"""Tables whose cells are never cut."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

NO_LIMIT = 10_000
LEAST_WIDTH = 16
"""Columns of the terminal that a column which may be wrapped has at the least."""


def print_table(table: Table, console: Console) -> None:
    """Print a table: over the edge of a terminal that is too narrow for what is not wrapped.

    What goes into a file or to another program is not wrapped at all: one row, one line.
    """
    before = console.width
    unlimited = console.options.update(max_width=NO_LIMIT)
    for column in table.columns:
        column.overflow = "fold"
        cells = (column.header, *column.cells)
        whole = max(Measurement.get(console, unlimited, cell).maximum for cell in cells)
        column.min_width = whole if column.no_wrap or not console.is_terminal else min(whole, LEAST_WIDTH)
    _, right, _, left = table.padding
    console.width = max(before, sum((column.min_width or 0) + left + right for column in table.columns))
    console.print(table)
    console.width = before
