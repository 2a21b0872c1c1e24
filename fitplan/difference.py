"""What differs between two answers: which part grew, in which moment, and which settings and versions are not the same.

    >>> found = diff(check("llama-8b", method="qlora"), check("llama-8b", method="qlora", use_liger_kernel=True))
    ... # doctest: +SKIP
    >>> [(part.name, part.after - part.before) for part in found.parts][:1]  # doctest: +SKIP
    [('logits_and_loss', -4198498304)]

Answers are compared as documents (``fitplan.check/1``), so that one may come from another environment, or from before
an upgrade.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitplan.errors import InputError
from fitplan.plan import SCHEMA as CHECK_SCHEMA
from fitplan.plan import CheckReport
from fitplan.whole import read_whole

SCHEMA = "fitplan.diff/1"

BESIDE = {"kept": ("unsplit_bytes", "cached_bytes"), "context": ("context_bytes",), "nccl": ("nccl_bytes",)}
"""What is held beside the categories of what is allocated, and of which keys of a plan's device it is the sum."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One name, and what it is in the first answer and in the second."""

    name: str
    before: Any
    after: Any

    @property
    def grew_bytes(self) -> int:
        """How much larger it is in the second."""
        return int(self.after - self.before)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"name": self.name, "before": self.before, "after": self.after}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between two plans.

    Attributes:
        models: their names.
        methods: their methods.
        device: bytes of device memory.
        allocated: bytes allocated at the peak.
        peak: the moments that peak.
        verdict: what the GPU says.
        parts: of the device memory at each peak, what grew or shrank most first.
        moments: bytes allocated in each moment that both have or one, what moved most first; 0 where it has none.
        settings: those that differ.
        versions: of the libraries that were traced, as far as they differ.

    """

    models: Pair
    methods: Pair
    device: Pair
    allocated: Pair
    peak: Pair
    verdict: Pair
    parts: tuple[Pair, ...]
    moments: tuple[Pair, ...]
    settings: tuple[Pair, ...]
    versions: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.diff/1`` document; sizes are bytes."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name).to_dict() for name in ("models", "methods", "device", "allocated", "peak")},
            "verdict": self.verdict.to_dict(),
            **{
                name: [one.to_dict() for one in getattr(self, name)]
                for name in ("parts", "moments", "settings", "versions")
            },
        }


Answer = CheckReport | Mapping[str, Any] | str | Path


def diff(before: Answer, after: Answer) -> Difference:
    """What differs between two answers of :func:`fitplan.check`; of several methods the first that both have.

    Args:
        before: a report, its document, or a file with its document.
        after: the same.

    Raises:
        InputError: a file or document is none.

    """
    first, second = _document(before), _document(after)
    one, other = _plans(first, second)
    return Difference(
        models=Pair(name="model", before=first["model"]["name"], after=second["model"]["name"]),
        methods=Pair(name="method", before=one["setup"]["method"], after=other["setup"]["method"]),
        device=_pair("device_bytes", one["estimate"], other["estimate"]),
        allocated=_pair("peak_allocated_bytes", one["estimate"], other["estimate"]),
        peak=_pair("peak_moment", one["estimate"], other["estimate"]),
        verdict=_pair("verdict", one, other),
        parts=_moved(_parts(one), _parts(other)),
        moments=_moved(_moments(one), _moments(other)),
        settings=_unlike(one["setup"], other["setup"]),
        versions=_unlike(first["provenance"]["versions"], second["provenance"]["versions"]),
    )


def _document(answer: Answer) -> Mapping[str, Any]:
    if isinstance(answer, CheckReport):
        return answer.to_dict()
    if isinstance(answer, Mapping):
        document, where = answer, "the document"
    else:
        where = str(answer)
        try:
            document = json.loads(read_whole(Path(answer)))
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no document of fitplan check --json ({error})") from error
    kind = document.get("schema") if isinstance(document, Mapping) else None
    if kind != CHECK_SCHEMA or not document.get("plans"):
        raise InputError(f"{where} is no document of fitplan check --json with an answer in it")
    return document


def _plans(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    by_method = {plan["setup"]["method"]: plan for plan in second["plans"]}
    one = next((plan for plan in first["plans"] if plan["setup"]["method"] in by_method), first["plans"][0])
    return one, by_method.get(one["setup"]["method"], second["plans"][0])


def _parts(plan: Mapping[str, Any]) -> dict[str, int]:
    device = plan["estimate"]["device"]
    return {**plan["estimate"]["breakdown"], **{n: sum(device.get(k, 0) for k in keys) for n, keys in BESIDE.items()}}


def _moments(plan: Mapping[str, Any]) -> dict[str, int]:
    """The highest of each kind, whatever the layer: the last one has another number in another model."""
    found: dict[str, int] = {}
    for moment in plan["estimate"]["moments"]:
        name = re.sub(r"layer \d+", "a layer", moment["name"])
        found[name] = max(moment["bytes"], found.get(name, 0))
    return found


def _pair(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Pair:
    return Pair(name=name, before=before[name], after=after[name])


def _moved(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[Pair, ...]:
    """Sizes that are not the same, what moved most first."""
    names = dict.fromkeys((*before, *after))
    pairs = (Pair(name=name, before=before.get(name, 0), after=after.get(name, 0)) for name in names)
    return tuple(sorted((pair for pair in pairs if pair.grew_bytes), key=lambda pair: -abs(pair.grew_bytes)))


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Pair, ...]:
    names = dict.fromkeys((*before, *after))
    pairs = (Pair(name=name, before=before.get(name), after=after.get(name)) for name in names)
    return tuple(pair for pair in pairs if pair.before != pair.after)
