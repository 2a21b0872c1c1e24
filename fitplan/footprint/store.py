"""Where footprints are kept: those that ship with fitplan, and the user's cache."""

import contextlib
import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from fitplan.footprint.document import (
    FORMAT,
    footprint_from_dict,
    footprint_to_dict,
    optimizer_from_dict,
    optimizer_to_dict,
)
from fitplan.footprint.footprint import Footprint, OptimizerFootprint, Piece
from fitplan.footprint.recipe import Recipe, kernels_of, recipe_of
from fitplan.footprint.size import Shape
from fitplan.models.resolve import ModelConfig
from fitplan.resources import profiles
from fitplan.setup import Optim, TrainingSetup

SHIPPED_NAME = "footprints.json.xz"


@dataclass(frozen=True)
class StoredFootprint:
    """A footprint that was found, with its optimizer.

    Attributes:
        footprint: the step.
        optimizer: what the optimizer adds; ``None`` where the pieces hold it already.
        source: ``"shipped"`` or ``"cache"``.

    """

    footprint: Footprint
    optimizer: OptimizerFootprint | None
    source: str

    def piece(self, shape: Shape) -> Piece | None:
        """The whole step over a region that ``shape`` lies in, if there is one."""
        piece = self.footprint.piece(shape)
        return piece if piece is None or self.optimizer is None else piece.with_optimizer(self.optimizer)


# --- shipped ----------------------------------------------------------------------------------------------------------


def find_shipped(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int]) -> StoredFootprint | None:
    """The footprint that ships for this model and setup."""
    document = _shipped(model.name) if model.source == "shipped" else None
    if document is None or document["kernels"] != kernels_of(capability):
        return None
    wanted = recipe_of(setup)
    for entry in document["footprints"]:
        if _answers(entry, wanted):
            by_rank = document["optimizers"][entry["optimizers"]][str(setup.optim)]
            rank = setup.lora_r or 0
            added = next((part for least, most, part in by_rank if least <= rank <= most), None)
            if added is None:
                return None
            return StoredFootprint(
                footprint_from_dict(entry | {"versions": document["versions"]}), optimizer_from_dict(added), "shipped"
            )
    return None


def _answers(entry: Mapping[str, Any], wanted: Recipe) -> bool:
    """Where the recipe leaves the choice to the library, naming what it chooses is the same."""
    recipe = dict(entry["recipe"])
    for name, chosen in (("attn", entry["attention"]), ("task", entry["task"])):
        if recipe[name] is None and wanted[name] == chosen:
            recipe[name] = chosen
    return recipe == wanted


@cache
def _shipped(name: str) -> dict[str, Any] | None:
    path = profiles() / "models" / name / SHIPPED_NAME
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
    return document if document["format"] == FORMAT else None


def shipped_document(
    versions: Mapping[str, str],
    kernels: str,
    footprints: list[tuple[Recipe, str, Footprint]],
    optimizers: Mapping[str, Mapping[Optim, list[tuple[tuple[int, int], OptimizerFootprint]]]],
) -> bytes:
    """The content of a shipped file: (recipe, key of its optimizers, footprint), and the optimizers by key, name, rank."""
    document = {
        "format": FORMAT,
        "versions": dict(versions),
        "kernels": kernels,
        "footprints": [
            {"recipe": recipe, "optimizers": key, **footprint_to_dict(footprint), "versions": {}}
            for recipe, key, footprint in footprints
        ],
        "optimizers": {
            key: {
                str(name): [[*ranks, optimizer_to_dict(added)] for ranks, added in by_rank]
                for name, by_rank in by_name.items()
            }
            for key, by_name in optimizers.items()
        },
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)


def shipped_recipes(name: str) -> list[Recipe]:
    """The recipes that a shipped model has footprints for."""
    document = _shipped(name)
    return [entry["recipe"] for entry in document["footprints"]] if document else []


# --- the user's cache -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the user's footprints are kept."""
    return Path(platformdirs.user_cache_dir("fitplan", appauthor=False)) / "footprints"


def _cache_path(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], versions: dict[str, str]
) -> Path:
    key = [FORMAT, dict(model.settings), recipe_of(setup), str(setup.optim), kernels_of(capability), versions]
    text = json.dumps(key, sort_keys=True, default=str).encode()
    return cache_folder() / f"{hashlib.sha256(text).hexdigest()[:32]}.json"


def find_cached(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], versions: dict[str, str]
) -> StoredFootprint | None:
    """What was kept for this model and setup under these library versions; a damaged entry is as good as none."""
    try:
        document = json.loads(_cache_path(model, setup, capability, versions).read_bytes())
        return StoredFootprint(footprint_from_dict(document), None, "cache")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], footprint: Footprint) -> None:
    """Add the pieces of ``footprint``, which hold their optimizer, to what is kept.

    A file is written beside and moved into place, so that a reader never sees half of one. Where nothing can be
    written (a full disk, a read-only home) nothing is kept.
    """
    path = _cache_path(model, setup, capability, footprint.versions)
    before = find_cached(model, setup, capability, footprint.versions)
    regions = {piece.region for piece in footprint.pieces}
    older = [piece for piece in before.footprint.pieces if piece.region not in regions] if before else []
    footprint = replace(footprint, pieces=(*footprint.pieces, *older))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(footprint_to_dict(footprint), file, separators=(",", ":"))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
