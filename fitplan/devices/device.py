"""GPUs: what is known about them, and how people name them."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from fitplan.errors import DeviceNotFound
from fitplan.resources import read_json
from fitplan.units import MIB, gib


@dataclass(frozen=True)
class Device:
    """A GPU, or just an amount of memory.

    Attributes:
        name: as people know it.
        total_bytes: what the driver reports.
        usable_bytes: what a CUDA process can have; the total where no figure is known.
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


DEFAULT_CAPABILITY = (8, 0)
"""Taken for a device of which only the memory is known: kernels as on an A100."""


@cache
def known_devices() -> tuple[Device, ...]:
    """Every GPU in ``profiles/gpus/gpus.json``, by name."""
    return tuple(device for device, _ in _entries())


def find_device(name: str) -> Device:
    """The GPU of that name; spelling is lenient (``h100``, ``RTX 4090``, ``a100-80gb``).

    Raises:
        DeviceNotFound: no GPU is known under that name; the nearest names are given.

    """
    wanted = _normal(name)
    names: dict[str, Device] = {}
    for device, spellings in _entries():
        for spelling in spellings:
            names[spelling] = device
    if wanted in names:
        return names[wanted]
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see the GPUs in profiles/gpus/gpus.json."
    raise DeviceNotFound(f"no GPU is known as {name!r}; {hint} A memory size such as 24GiB can be given instead")


def device_of_size(total_bytes: int) -> Device:
    """A device of which only the memory is known."""
    return Device(f"{gib(total_bytes)} of memory", total_bytes, total_bytes, DEFAULT_CAPABILITY, "as given")


@cache
def _entries() -> tuple[tuple[Device, frozenset[str]], ...]:
    entries = []
    for row in read_json("gpus/gpus.json"):
        major, minor = row["compute_capability"].split(".")
        total = row["total_mib"] * MIB
        usable = row["usable_mib"] * MIB if row.get("usable_mib") else total
        device = Device(row["name"], total, usable, (int(major), int(minor)), row["total_source"])
        entries.append((device, frozenset(_normal(s) for s in (row["name"], row["key"], *row["aliases"]))))
    return tuple(entries)


def _normal(name: str) -> str:
    words = re.sub(r"[\s_]+", "-", name.strip().lower())
    return re.sub(r"(^|-)(nvidia|geforce|tesla)(?=-|$)", "", words).strip("-")
