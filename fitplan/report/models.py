"""The shipped models, for a person at a terminal and for programs."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fitplan.footprint.store import shipped_recipes
from fitplan.models.catalog import CatalogEntry
from fitplan.units import count

SCHEMA = "fitplan.models/1"


def models_document(found: tuple[CatalogEntry, ...]) -> dict[str, Any]:
    """The ``fitplan.models/1`` document; ``setups`` are those that are answered without torch."""
    return {
        "schema": SCHEMA,
        "models": [
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "hub_ids": list(entry.hub_ids),
                "parameters": entry.parameters,
                "setups": shipped_recipes(entry.name),
            }
            for entry in found
        ],
    }


def print_models(found: tuple[CatalogEntry, ...], console: Console) -> None:
    """Print the models with the number of setups that are answered without torch."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("setups", justify="right")
    table.add_column("also known as", overflow="fold", style="dim")
    for entry in found:
        names = ", ".join((*entry.aliases, *entry.hub_ids))
        table.add_row(entry.name, count(entry.parameters), str(len(shipped_recipes(entry.name)) or "none"), names)
    console.print(table)
