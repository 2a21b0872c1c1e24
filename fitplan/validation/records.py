"""Records of validation runs: those of the project, and the user's own."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from fitplan.errors import InputError
from fitplan.resources import profiles
from fitplan.settings import Decides
from fitplan.setup import SETTINGS, TrainingSetup
from fitplan.whole import left_out_if_damaged, read_whole, write_whole

if TYPE_CHECKING:  # most models have no record, and an answer is to come at once
    from fitplan.validation.comparison import PhasePair, Quantity


@dataclass(frozen=True)
class Record:
    """What a run of much the same job measured.

    Attributes:
        model: name of the model.
        device: name of the device.
        setup: its settings.
        quantities: peaks of the whole run, predicted and measured; at least one.
        phases: the same, phase by phase.
        created: when, in UTC, as ISO 8601.
        rehearsed: whether the GPU was one that is not there.

    """

    model: str
    device: str
    setup: dict[str, Any]
    quantities: "tuple[Quantity, ...]"
    phases: "tuple[PhasePair, ...]"
    created: str
    rehearsed: bool = False

    @property
    def grade(self) -> str:
        """What its figures are called: ``"measured"`` or ``"rehearsed"``."""
        from fitplan.validation.job import grade

        return grade(rehearsed=self.rehearsed)

    @property
    def peak(self) -> "Quantity":
        """The quantity that the run was judged by."""
        from fitplan.validation.comparison import judged

        return judged(self.quantities) or self.quantities[0]

    def others(self, asked: TrainingSetup) -> dict[str, tuple[Any, Any]]:
        """The settings that are not those asked about and take memory, as they ran and as they were asked."""
        wanted = asked.to_dict()
        ran = TrainingSetup.from_dict(self.setup).to_dict()
        return {
            name: (value, wanted[name])
            for name, value in ran.items()
            if value != wanted[name] and SETTINGS[name].decides is not Decides.NOTHING
        }

    @property
    def date(self) -> str:
        """The day of the run: ``"2026-01-31"``."""
        return self.created[:10]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the phases; sizes are bytes."""
        return {
            "model": self.model,
            "device": self.device,
            "setup": self.setup,
            "quantities": {one.name: [one.predicted, one.measured] for one in self.quantities},
            "grade": self.grade,
            "created": self.created,
        }


def own_records() -> Path:
    """The user's folder of records."""
    return platformdirs.user_data_path("fitplan", appauthor=False) / "records"


def write_record(document: dict[str, Any], folder: Path | None = None, label: str = "") -> Path:
    """Keep a ``fitplan.validate/1`` document, under the time of the run or a label; where it went.

    Raises:
        InputError: it cannot be written.

    """
    folder = folder or own_records()
    stamp = label or re.sub(r"[^0-9T]", "", document["created"])
    path = folder / f"{plain_name(document['model']['name'])}--{document['setup']['method']}--{stamp}.json"
    try:
        write_whole(path, json.dumps(document, indent=1))
    except OSError as error:
        raise InputError(f"the record {path} cannot be written: {error.strerror or error}") from error
    return path


def nearest(model: str, setup: TrainingSetup) -> Record | None:
    """The record of the same model, method and number of GPUs that differs in the fewest other settings.

    Of these, what was measured before what was rehearsed, in tokens least, and of the same job the newest.
    """
    tokens = math.log(setup.batch_size * setup.seq_len)

    def distance(record: Record) -> tuple[int, bool, float]:
        settings = record.others(setup).keys() - _BESIDE_SETTINGS
        return (
            len(settings),
            record.rehearsed,
            abs(math.log(record.setup["batch_size"] * record.setup["seq_len"]) - tokens),
        )

    records = _records(model, str(setup.method), setup.gpus)
    return min(sorted(records, key=lambda record: record.created, reverse=True), key=distance, default=None)


_BESIDE_SETTINGS = {"batch_size", "seq_len"}
"""How many tokens there are is compared by itself."""


def _records(model: str, method: str, gpus: int) -> Iterator[Record]:
    for path, text in _texts(model, method):
        record = None
        with left_out_if_damaged(path, "the record"):
            found = _record(json.loads(text))
            if found is not None and found.setup["method"] == method and found.setup.get("gpus", 1) == gpus:
                record = found
        if record is not None:
            yield record


def _texts(model: str, method: str) -> Iterator[tuple[Path, bytes]]:
    """The project's records, one a line in a file for each model, then the user's, one a file; with their files."""
    shipped = shipped_records(model)
    for path in (shipped, *sorted(own_records().glob(f"{plain_name(model)}--{method}--*.json"))):
        texts: list[bytes] = []
        with left_out_if_damaged(path, "the record"):
            text = read_whole(path)
            texts = text.splitlines() if path == shipped else [text]
        yield from ((path, text) for text in texts)


def shipped_records(model: str) -> Path:
    """Where the project's own runs of a model are."""
    return profiles() / "measured" / f"{plain_name(model)}.jsonl"


def _record(document: dict[str, Any]) -> Record | None:
    """The record of a run; ``None`` if the run did not come to its end."""
    from fitplan.validation.report import read_comparison

    if document["quantities"] == []:
        return None
    TrainingSetup.from_dict(document["setup"])  # or it is of another version
    found = read_comparison(document)
    if not found.quantities:
        raise ValueError("nothing is compared")
    record = Record(
        document["model"]["name"],
        found.measurement.device,
        document["setup"],
        found.quantities,
        found.phases,
        document["created"],
        bool(document.get("run", {}).get("rehearsed")),
    )
    for text in (record.model, record.device, record.created, *(one.name for one in record.quantities)):
        if not isinstance(text, str):
            raise TypeError("a name is no text")
    sizes = [size for one in record.quantities for size in (one.predicted, one.measured)]
    sizes += [size for pair in record.phases for size in pair.sizes]
    if not all(type(size) is int and 0 <= size < _MOST_BYTES for size in sizes):
        raise ValueError("a size is no number of bytes")
    if not all(type(record.setup[name]) is int for name in ("batch_size", "seq_len")):
        raise TypeError("a record is of one shape")
    return record


_MOST_BYTES = 2**50


def plain_name(name: str) -> str:
    """A model's name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)
