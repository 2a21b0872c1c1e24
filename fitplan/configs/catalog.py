"""The models that fitplan ships configs for."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from fitplan.errors import ModelNotFound
from fitplan.names import plain
from fitplan.resources import read_json


@dataclass(frozen=True)
class CatalogEntry:
    """A shipped model.

    Attributes:
        name: fitplan's name for it.
        hub_ids: Hugging Face ids with these very dimensions; the first is the model itself.
        aliases: short names.
        parameters: exact count, tied weights once.
        is_text_of_more: whether it was published as a part of a model that reads more than text.

    """

    name: str
    hub_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    parameters: int
    is_text_of_more: bool

    @property
    def spellings(self) -> tuple[str, ...]:
        """Everything that it is called."""
        return self.name, *self.aliases, *self.hub_ids

    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        return dict(read_json(f"models/{self.name}/config.json"))

    def published(self, spelling: str) -> str | None:
        """The hub id that ``spelling`` is, with its owner or without, else that of the model itself.

        ``None`` if it was never published.
        """
        wanted = plain(spelling)
        named = [one for one in self.hub_ids if plain(one) == wanted]
        if wanted not in map(plain, (self.name, *self.aliases)):
            named += [one for one in self.hub_ids if _without_owner(one) == wanted]
        return next(iter((*named, *self.hub_ids)), None)


@cache
def catalog() -> tuple[CatalogEntry, ...]:
    """Every shipped model, by name."""
    return tuple(
        CatalogEntry(
            row["name"],
            tuple(hub_id for hub_id in (row.get("hub_id"), *row.get("also", ())) if hub_id),
            tuple(row["aliases"]),
            row["parameters"],
            row.get("text_of_more", False),
        )
        for row in read_json("models/catalog.json")
    )


@cache
def spellings() -> dict[str, CatalogEntry]:
    """Every name, alias and hub id, :func:`plain`; and hub ids without their owner, where that names one model only."""
    short: dict[str, list[CatalogEntry]] = {}
    for entry in catalog():
        for name in dict.fromkeys(map(_without_owner, entry.hub_ids)):
            short.setdefault(name, []).append(entry)
    unambiguous = {name: entries[0] for name, entries in short.items() if len(entries) == 1}
    return unambiguous | {plain(spelling): entry for entry in catalog() for spelling in reversed(entry.spellings)}


def _without_owner(hub_id: str) -> str:
    return plain(hub_id.rpartition("/")[2])


def family(text: str) -> tuple[str, ...]:
    """The shipped models whose names go on where ``text`` ends, as ``qwen3-8b`` does after ``qwen3``; smallest first.

    Each by the first of its names, aliases and hub ids that does so.
    """
    begun = re.compile(re.escape(plain(text)) + r"[^a-z0-9]")
    by_size = sorted(catalog(), key=lambda entry: entry.parameters)
    names = ((*map(plain, (entry.name, *entry.aliases)), *map(_without_owner, entry.hub_ids)) for entry in by_size)
    first = (next(filter(begun.match, of_one), None) for of_one in names)
    return tuple(filter(None, first))


def find_entries(text: str) -> tuple[CatalogEntry, ...]:
    """The shipped models with ``text`` in a name, alias or hub id, however it is spelled.

    Raises:
        ModelNotFound: there is none.

    """
    wanted = plain(text)
    found = tuple(entry for entry in catalog() if any(wanted in plain(one) for one in entry.spellings))
    if not found:
        raise ModelNotFound(f"no shipped model is named like {text!r}; fitplan models lists them all")
    return found
