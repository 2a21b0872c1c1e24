"""The models that fitplan ships configs for."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from fitplan.errors import ModelNotFound
from fitplan.resources import read_json


@dataclass(frozen=True)
class CatalogEntry:
    """A shipped model.

    Attributes:
        name: fitplan's name for it.
        hub_ids: Hugging Face ids with these very dimensions; the first is the model itself.
        aliases: short names.
        parameters: exact count, tied weights once.

    """

    name: str
    hub_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    parameters: int

    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        return dict(read_json(f"models/{self.name}/config.json"))

    def published(self, spelling: str) -> str | None:
        """The hub id that ``spelling`` is, else that of the model itself; ``None`` if it was never published."""
        return next((one for one in self.hub_ids if one.lower() == spelling.lower()), next(iter(self.hub_ids), None))


@cache
def catalog() -> tuple[CatalogEntry, ...]:
    """Every shipped model, by name."""
    return tuple(
        CatalogEntry(
            row["name"],
            tuple(hub_id for hub_id in (row.get("hub_id"), *row.get("also", ())) if hub_id),
            tuple(row["aliases"]),
            row["parameters"],
        )
        for row in read_json("models/catalog.json")
    )


@cache
def spellings() -> dict[str, CatalogEntry]:
    """Every name, alias and hub id, in lower case."""
    return {spelling.lower(): entry for entry in catalog() for spelling in (*entry.aliases, *entry.hub_ids, entry.name)}


def find_entries(text: str) -> tuple[CatalogEntry, ...]:
    """The shipped models with ``text`` in a name, alias or hub id, whatever its case.

    Raises:
        ModelNotFound: there is none.

    """
    wanted = text.lower()
    found = tuple(e for e in catalog() if any(wanted in s.lower() for s in (e.name, *e.aliases, *e.hub_ids)))
    if not found:
        raise ModelNotFound(f"no shipped model is named like {text!r}; fitplan models lists them all")
    return found
