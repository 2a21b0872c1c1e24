"""GPUs: what is known about them, and how people name them."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from fitplan.errors import DeviceNotFound, InputError
from fitplan.names import did_you_mean, plain
from fitplan.resources import read_json
from fitplan.units import GIB, MIB, gib, parse_size


@dataclass(frozen=True)
class Device:
    """A GPU, or just an amount of memory.

    Attributes:
        name: as people know it.
        total_bytes: what the driver reports.
        usable_bytes: what a CUDA process can have.
        capability: CUDA compute capability; decides which kernels run.
        source: where the memory figure was read.

    """

    name: str
    total_bytes: int
    usable_bytes: int
    capability: tuple[int, int]
    source: str
    is_here: bool = False
    """Whether it is a GPU of this machine, and usable what is free on it now."""
    is_usable_known: bool = True
    """Whether ``usable_bytes`` was read on such a GPU."""
    multiprocessors: int | None = None
    """CUDA cores in NVIDIA's specification of the GPU, by those of a multiprocessor of its compute capability."""

    def to_dict(self) -> dict[str, Any]:
        """What the documents say of it."""
        return {"name": self.name, "total_bytes": self.total_bytes, "usable_bytes": self.usable_bytes}


DEFAULT_CAPABILITY = (8, 0)
"""Taken for a device of which only the memory is known: kernels as on an A100."""


@cache
def known_devices() -> tuple[Device, ...]:
    """Every GPU in ``profiles/gpus/gpus.json``, by name."""
    return tuple(device for device, _, _ in _entries())


def find_device(name: str) -> Device:
    """The GPU of that name; spelling is lenient (``h100``, ``RTX 4090``, ``a100-80gb``).

    Raises:
        DeviceNotFound: no GPU is known under that name; the message says what can be given instead.

    """
    names = {spelling: device for device, _, spellings in _entries() for spelling in spellings}
    wanted = _normal(name)
    if wanted in names:
        return names[wanted]
    model, _, size = wanted.rpartition("-")
    if model in names and size.isdigit() and _is_sold_as(names[model], int(size) * GIB):
        return names[model]
    raise DeviceNotFound(_hint(name, names))


def _is_sold_as(device: Device, size: int) -> bool:
    """Whether ``size`` bytes are what the seller says of a GPU: the driver reports up to a tenth less."""
    return 0.9 * size <= device.total_bytes <= size


def _hint(name: str, names: Mapping[str, Device]) -> str:
    """Why no GPU is known under that name, as far as can be told, and what to give instead."""
    instead = "an amount of vram such as 24GiB can be given instead"
    counted = _COUNTED.fullmatch(name)
    if counted and (one := counted["before"] or counted["after"]) and _normal(one) in names:
        return f"{name!r} are several GPUs, and one is planned for; give its name without the count: {one}"
    with suppress(InputError):
        if (size := parse_size(name)) <= _LARGEST_ASKED:
            return f"{name!r} is an amount of memory ({gib(size)}), not the name of a GPU; give it as vram"
    if _OTHER_MAKERS.search(name):
        return f"only GPUs by NVIDIA are known, and {name!r} is not one; {instead}"
    keys = {spelling: key for _, key, spellings in _entries() for spelling in spellings}
    near = did_you_mean(_normal(name), keys, 3)
    return f"no GPU is known as {name!r}; {near + ' S' if near else 's'}ee fitplan gpus; {instead}"


_LARGEST_ASKED = 4096 * GIB
"""What is more, such as ``4090ti``, is no amount of memory that a GPU has."""
_COUNTED = re.compile(r"\s*\d+\s*[x×*]\s*(?P<after>.+?)\s*|\s*(?P<before>.+?)\s*[x×*]\s*\d+\s*", re.IGNORECASE)
_OTHER_MAKERS = re.compile(
    r"\b(amd|radeon|instinct|mi\d{2,3}[ax]?|[rw]x\W?\d{4}|w[67]\d00|7900\W?xtx?|apple|m[1-9](\W?(pro|max|ultra))?"
    r"|intel|arc|gaudi\W?\d?|ponte|tpu|trainium|inferentia|ascend)\b",
    re.IGNORECASE,
)


def device_of_size(total_bytes: int) -> Device:
    """A device of which only the memory is known."""
    return Device(f"{gib(total_bytes)} of memory", total_bytes, total_bytes, DEFAULT_CAPABILITY, "as given")


@cache
def _entries() -> tuple[tuple[Device, str, frozenset[str]], ...]:
    """Each GPU with its short name, and all spellings of its names.

    Where it is not known how much of a GPU a process can have, the driver is taken to keep what it keeps at most on a
    GPU of the same compute capability, or on any where there is none: an answer must not promise what may not be there.
    """
    rows = read_json("gpus/gpus.json")
    kept: dict[str, int] = {}
    for row in rows:
        if row.get("usable_mib"):
            for kind in (row["compute_capability"], _ANY):
                kept[kind] = max(kept.get(kind, 0), row["total_mib"] - row["usable_mib"])
    entries = []
    for row in rows:
        major, minor = row["compute_capability"].split(".")
        known = row.get("usable_mib")
        usable = known or row["total_mib"] - kept.get(row["compute_capability"], kept[_ANY])
        device = Device(
            row["name"],
            row["total_mib"] * MIB,
            usable * MIB,
            (int(major), int(minor)),
            row["total_source"],
            is_usable_known=bool(known),
            multiprocessors=row["multiprocessors"],
        )
        entries.append((device, row["key"], frozenset(_normal(s) for s in (row["name"], row["key"], *row["aliases"]))))
    return tuple(entries)


_ANY = "any"


def _normal(name: str) -> str:
    """The name without its makers' words, and with sizes as bare numbers: ``a100-40`` for ``NVIDIA A100 40GB``.

    Schedulers have words of their own: ``gpu:a100`` (Slurm), ``NVIDIA-A100-SXM4-40GB-SHARED`` (Kubernetes).
    """
    words = re.sub(r"^gpu:|-shared$", "", name.strip(), flags=re.IGNORECASE)
    words = re.sub(r"(^|-)(nvidia|geforce|tesla)(?=-|$)", "", plain(words)).strip("-")
    return re.sub(r"-(\d+)-?gi?b?(?=-|$)", r"-\1", words)
