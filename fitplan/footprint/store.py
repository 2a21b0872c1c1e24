"""Where footprints are kept: those that ship with fitplan, and the user's cache."""

import contextlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from fitplan.cuda import AMPERE
from fitplan.errors import InputError
from fitplan.footprint.document import (
    FORMAT,
    footprint_from_dict,
    footprint_to_dict,
    optimizer_from_dict,
    optimizer_to_dict,
)
from fitplan.footprint.footprint import Footprint, OptimizerFootprint, Piece, Region
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.recipe import Recipe, completed
from fitplan.footprint.size import Shape
from fitplan.resources import profiles
from fitplan.setup import LIGER_PACKAGE, Attention, Optim, Task, TrainingSetup
from fitplan.whole import left_out_if_damaged, read_whole, write_whole

SHIPPED, CACHE = "shipped", "cache"
"""Where a footprint was found."""

SHIPPED_NAMES = {"sm80": "footprints.json.xz", "sm50": "footprints-sm50.json.xz"}
"""By class of kernels."""


@dataclass(frozen=True)
class StoredFootprint:
    """A footprint that was found, with its optimizer.

    Attributes:
        footprint: the step, for the ranks that its optimizer is known for.
        optimizer: what the optimizer adds; ``None`` where the pieces hold it already.
        source: :data:`SHIPPED` or :data:`CACHE`.

    """

    footprint: Footprint
    optimizer: OptimizerFootprint | None
    source: str
    _whole: dict[Region, Piece] = field(default_factory=dict, compare=False, repr=False)

    def resolved(self, setup: TrainingSetup) -> TrainingSetup:
        """The setup with the attention and the task that the model chose."""
        return setup.with_(attn=Attention(self.footprint.attention), task=Task(self.footprint.task))

    def reaches(self, shape: Shape) -> bool:
        """Whether there is a piece for ``shape``; which is quicker than to make it."""
        return self.footprint.piece(shape) is not None

    def piece(self, shape: Shape) -> Piece | None:
        """The whole step over a region that ``shape`` lies in, if there is one."""
        piece = self.footprint.piece(shape)
        if piece is None or self.optimizer is None:
            return piece
        if piece.region not in self._whole:
            self._whole[piece.region] = piece.with_optimizer(self.optimizer)
        return self._whole[piece.region]


# --- shipped ----------------------------------------------------------------------------------------------------------


def find_shipped(job: TrainingJob) -> StoredFootprint | None:
    """The footprint that ships for this model and setup."""
    if job.model.source != "shipped":
        return None
    with left_out_if_damaged(_shipped_path(job.model.name, job.kernels), "what ships of the model"):
        return _find_shipped(job)
    return None


def _find_shipped(job: TrainingJob) -> StoredFootprint | None:
    name, optim = job.model.name, job.setup.optim
    for place, entry in enumerate(_header(name, job.kernels)["footprints"], 1):
        if _answers(entry, job.recipe):
            key = entry["optimizers"]
            by_rank = _optimizers(name, job.kernels, key, optim)
            part = next((n for n, (least, most, _) in enumerate(by_rank) if least <= job.shape.lora_r <= most), None)
            return None if part is None else _stored(name, job.kernels, place, key, optim, part)
    return None


@cache
def _stored(name: str, kernels: str, place: int, key: str, optim: Optim, part: int) -> StoredFootprint:
    """The footprint in one line of a model's file, with one part of what is known of an optimizer."""
    least, most, added = _optimizers(name, kernels, key, optim)[part]
    footprint = _footprint(name, kernels, place).for_ranks(least, most)
    with_liger = _header(name, kernels)["footprints"][place - 1]["recipe"]["use_liger_kernel"]
    versions = {library: v for library, v in footprint.versions.items() if library != LIGER_PACKAGE or with_liger}
    return StoredFootprint(replace(footprint, versions=versions), added, SHIPPED)


def _answers(entry: Mapping[str, Any], wanted: Recipe) -> bool:
    """Where the recipe leaves the choice to the library, naming what it chooses is the same."""
    recipe = dict(entry["recipe"])
    for name, chosen in (("attn", entry["attention"]), ("task", entry["task"])):
        if recipe[name] is None and wanted[name] == chosen:
            recipe[name] = chosen
    return recipe == wanted


def why_not_shipped(job: TrainingJob) -> str:
    """What of a job no shipped footprint is for, in words."""
    model, setup, wanted = job.model, job.setup, job.recipe
    if model.source != "shipped":
        return f"{model.name} is no shipped model"
    recipes = shipped_recipes(model.name, job.kernels)
    if not recipes:
        where = "" if job.capability >= AMPERE else " and GPUs before Ampere"
        return f"no formulas ship for {model.name}{where}"

    def others(recipe: Recipe) -> list[str]:
        return [name for name, value in recipe.items() if value != wanted[name]]

    differ = min((others(recipe) for recipe in recipes), key=lambda names: ("method" in names, len(names)))
    values = {name: getattr(setup, name) for name in differ}
    if not values and model.positions is not None and setup.seq_len > model.positions:
        return f"seq_len {setup.seq_len} is more than the {model.positions} positions that {model.name} was made for"
    if not values:
        names = ("optim", "lora_r", "batch_size", "seq_len", "gradient_accumulation_steps")
        values = {name: getattr(setup, name) for name in names if getattr(setup, name) is not None}
    shown = (f"{name} {','.join(v) if isinstance(v, tuple) else v}" for name, v in values.items() if v is not None)
    return f"no formula of {model.name} ships for {', '.join(shown)}"


@cache
def _shipped(name: str, kernels: str) -> list[bytes] | None:
    """The lines of a model's file: a header, then one footprint each."""
    path = _shipped_path(name, kernels)
    return _lines(path) if path.exists() else None


def _shipped_path(name: str, kernels: str) -> Path:
    return profiles() / "models" / name / SHIPPED_NAMES[kernels]


@cache
def _footprint(name: str, kernels: str, place: int) -> Footprint:
    """The footprint in one line of a model's file."""
    lines = _shipped(name, kernels) or []
    return footprint_from_dict(json.loads(lines[place]) | {"versions": _header(name, kernels)["versions"]})


@cache
def _optimizers(name: str, kernels: str, key: str, optim: Optim) -> tuple[tuple[int, int, OptimizerFootprint], ...]:
    """What an optimizer adds: from rank, to rank, footprint."""
    by_rank = _header(name, kernels)["optimizers"][key][str(optim)]
    return tuple((least, most, optimizer_from_dict(part)) for least, most, part in by_rank)


@cache
def _header(name: str, kernels: str) -> dict[str, Any]:
    with left_out_if_damaged(_shipped_path(name, kernels), "what ships of the model"):
        lines = _shipped(name, kernels)
        header: dict[str, Any] = json.loads(lines[0]) if lines else {}
        if header.get("format") == FORMAT:
            for entry in header["footprints"]:
                entry["recipe"] = completed(entry["recipe"])
            return header
    return {"footprints": []}


@dataclass
class ShippedFile:
    """The content of a shipped file.

    Attributes:
        versions: of the libraries that were traced.
        kernels: the class of kernels it is for.
        step: a digest of the step that it was made from.
        footprints: recipe, key of its optimizers, footprint without its optimizer.
        optimizers: by key, name and ranks.

    """

    versions: dict[str, str]
    kernels: str
    step: str
    footprints: list[tuple[Recipe, str, Footprint]]
    optimizers: dict[str, dict[Optim, list[tuple[tuple[int, int], OptimizerFootprint]]]]

    @classmethod
    def read(cls, path: Path) -> "ShippedFile":
        """The file at ``path``, which has this format; what else it may be, :func:`read_if_of` minds."""
        header, *lines = (json.loads(line) for line in _lines(path))
        return cls(
            header["versions"],
            header["kernels"],
            header["step"],
            [
                (
                    completed(entry["recipe"]),
                    entry["optimizers"],
                    footprint_from_dict(line | {"versions": header["versions"]}),
                )
                for entry, line in zip(header["footprints"], lines, strict=True)
            ],
            {
                key: {
                    Optim(name): [((least, most), optimizer_from_dict(added)) for least, most, added in by_rank]
                    for name, by_rank in by_name.items()
                }
                for key, by_name in header["optimizers"].items()
            },
        )

    def to_bytes(self) -> bytes:
        """The inverse of :meth:`read`."""
        header = {
            "format": FORMAT,
            "versions": self.versions,
            "kernels": self.kernels,
            "step": self.step,
            "footprints": [
                {"recipe": recipe, "attention": footprint.attention, "task": footprint.task, "optimizers": key}
                for recipe, key, footprint in self.footprints
            ],
            "optimizers": {
                key: {
                    str(name): [[*ranks, optimizer_to_dict(added)] for ranks, added in by_rank]
                    for name, by_rank in by_name.items()
                }
                for key, by_name in self.optimizers.items()
            },
        }
        documents = [header, *(footprint_to_dict(footprint) for _, _, footprint in self.footprints)]
        text = "\n".join(json.dumps(document, separators=(",", ":")) for document in documents)
        return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def read_if_of(path: Path, step: str | None) -> "ShippedFile | None":
    """A shipped file, if it was made from the step with that digest, or with ``None`` from any; if it is whole.

    One that is damaged is left out, and told.
    """
    with left_out_if_damaged(path, "what ships of the model"):
        header = json.loads(_lines(path)[0])
        if header["format"] == FORMAT and step in (None, header["step"]):
            return ShippedFile.read(path)
    return None


MOST_UNPACKED = 64 * 2**20
"""Bytes; the largest file that ships has a fortieth of it."""


def _lines(path: Path) -> list[bytes]:
    """The lines of a packed file.

    Raises:
        InputError: it is none, or unpacks to more than :data:`MOST_UNPACKED`.

    """
    unpacking = lzma.LZMADecompressor(memlimit=4 * MOST_UNPACKED)
    try:
        text = unpacking.decompress(read_whole(path), MOST_UNPACKED)
    except (lzma.LZMAError, OSError) as error:
        raise InputError(f"{path} is no file of footprints ({error}); move it away") from error
    if not unpacking.eof:
        raise InputError(f"{path} is cut off, or too large to be a file of footprints; move it away")
    return text.splitlines()


def shipped_recipes(name: str, kernels: str = "sm80") -> list[Recipe]:
    """The recipes that a shipped model has footprints for, on GPUs that run these kernels."""
    return [entry["recipe"] for entry in _header(name, kernels)["footprints"]]


# --- the user's cache -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the user's footprints are kept."""
    return Path(platformdirs.user_cache_dir("fitplan", appauthor=False)) / "footprints"


_CHOICES = ("attn", "task")
"""What a setup may leave to the libraries; one file holds a model's steps with all of their choices."""

_Asked = tuple[str | None, str | None]


def _cache_path(job: TrainingJob, versions: dict[str, str]) -> Path:
    recipe = {name: value for name, value in job.recipe.items() if name not in _CHOICES}
    key = [FORMAT, dict(job.model.settings), recipe, str(job.setup.optim), job.kernels, versions]
    text = json.dumps(key, sort_keys=True, default=str).encode()
    return cache_folder() / f"{_digest(text)[:32]}.json"


def _read(path: Path) -> list[tuple[set[_Asked], Footprint]]:
    """What a file holds: the choices that ask for a footprint, and the footprint; nothing if it is damaged.

    Its first line is a digest of the rest: what was changed by another hand, or cut off, is not believed.
    """
    with left_out_if_damaged(path, "what was kept of earlier traces"):
        digest, _, text = read_whole(path).partition(b"\n")
        if digest.decode() != _digest(text):
            raise ValueError("its digest is another")
        return [
            ({(attn, task) for attn, task in entry["asked"]}, footprint_from_dict(entry["footprint"]))
            for entry in json.loads(text)
        ]
    return []


def _digest(text: bytes) -> str:
    import hashlib

    return hashlib.sha256(text).hexdigest()


def find_cached(job: TrainingJob, versions: dict[str, str]) -> StoredFootprint | None:
    """What was kept for this model and setup under these library versions; a damaged entry is as good as none."""
    known, choices = _read(_cache_path(job, versions)), (job.setup.attn, job.setup.task)
    found = next((footprint for asked, footprint in known if choices in asked), None)
    return StoredFootprint(found, None, CACHE) if found else None


def keep(job: TrainingJob, footprint: Footprint) -> None:
    """Add the pieces of ``footprint``, which hold their optimizer, to what is kept.

    Where nothing can be written (a full disk, a read-only home) nothing is kept.
    """
    path = _cache_path(job, footprint.versions)
    asked, kept = _asked_by(job.setup, footprint), []
    for before, older in _read(path):
        if (older.attention, older.task) == (footprint.attention, footprint.task):
            regions = {piece.region for piece in footprint.pieces}
            pieces = [piece for piece in older.pieces if piece.region not in regions]
            asked, footprint = asked | before, replace(footprint, pieces=(*footprint.pieces, *pieces))
        else:
            kept.append((before, older))
    document = [
        {"asked": sorted(choices, key=str), "footprint": footprint_to_dict(one)}
        for choices, one in [(asked, footprint), *kept]
    ]
    text = json.dumps(document, separators=(",", ":")).encode()
    with contextlib.suppress(OSError):
        write_whole(path, _digest(text).encode() + b"\n" + text)


def _asked_by(setup: TrainingSetup, footprint: Footprint) -> set[_Asked]:
    """The choices that are this step: as it was asked, by name, and open where transformers is known to choose so.

    It takes SDPA wherever a model has it (transformers ``modeling_utils.py``, ``get_correct_attn_implementation``).
    """
    attn = None if footprint.attention == Attention.SDPA else setup.attn
    return {(setup.attn, setup.task), (footprint.attention, footprint.task), (attn, setup.task)}
