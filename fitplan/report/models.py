"""The shipped models, for a person at a terminal and for programs."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.configs.catalog import CatalogEntry
from fitplan.cuda import AMPERE, BEFORE_AMPERE
from fitplan.footprint.recipe import kernels_of, settings_of
from fitplan.footprint.store import shipped_recipes
from fitplan.installing import install
from fitplan.report.tables import print_table
from fitplan.report.terminal import METHOD_NAMES
from fitplan.units import count

SCHEMA = "fitplan.models/1"

_LEGEND = "full, LoRA, QLoRA: how many setups are answered without torch; --json tells each. Any other takes a trace"


def models_document(found: tuple[CatalogEntry, ...]) -> dict[str, Any]:
    """The ``fitplan.models/1`` document.

    ``setups`` are those that are answered without torch, ``setups_before_ampere`` the same for GPUs such as the T4;
    each can be given to :func:`fitplan.check` as it is.
    """
    return {
        "schema": SCHEMA,
        "models": [
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "hub_ids": list(entry.hub_ids),
                "parameters": entry.parameters,
                "setups": _setups(entry.name, AMPERE),
                "setups_before_ampere": _setups(entry.name, BEFORE_AMPERE),
            }
            for entry in found
        ],
    }


def _setups(name: str, capability: tuple[int, int]) -> list[dict[str, Any]]:
    return [settings_of(recipe) for recipe in shipped_recipes(name, kernels_of(capability))]


def print_models(found: tuple[CatalogEntry, ...], console: Console) -> None:
    """Print the models, with how many setups of each method are answered without torch."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for name in METHOD_NAMES.values():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("also known as", style="dim")
    for entry in found:
        shipped = Counter(recipe["method"] for recipe in shipped_recipes(entry.name))
        setups = [str(shipped[method] or "-") for method in METHOD_NAMES]
        table.add_row(entry.name, count(entry.parameters), *setups, ", ".join((*entry.aliases, *entry.hub_ids)))
    print_table(table, console)
    console.print(Text(f"{_LEGEND}, which needs {install('torch')}.", style="dim"))
