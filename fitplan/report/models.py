"""The shipped models, for a person at a terminal."""

from rich.console import Console
from rich.table import Table

from fitplan.models.catalog import CatalogEntry
from fitplan.units import count


def print_models(found: list[tuple[CatalogEntry, int]], console: Console) -> None:
    """Print the models with the number of setups that are answered without torch."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("setups", justify="right")
    table.add_column("also known as", overflow="fold", style="dim")
    for entry, setups in found:
        table.add_row(
            entry.name, count(entry.parameters), str(setups or "none"), ", ".join((*entry.aliases, *entry.hub_ids))
        )
    console.print(table)
