"""The CUDA context: what a process holds on a GPU beside PyTorch's allocator."""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import platformdirs

from fitplan.devices.device import Device
from fitplan.resources import read_json


@dataclass(frozen=True)
class Context:
    """What a CUDA context is taken to hold.

    Attributes:
        bytes: of device memory.
        spread_bytes: how much more it may be.
        measured_on: the GPU of the measurement.
        source: who measured it, with which versions.

    """

    bytes: int
    spread_bytes: int
    measured_on: str
    source: str


def context_on(device: Device | None) -> Context:
    """The context on a device: as the user measured it, as measured on such a GPU, else the largest on any.

    It depends on the GPU, the driver and the kernels that have been loaded. The spread is the distance between the
    largest and the smallest measurement.
    """
    here = [context for context in _measured_here() if device is not None and context.measured_on == device.name]
    if here:
        return here[-1]
    known = _measured()
    largest = max(known, key=lambda context: context.bytes)
    own = [context for context in known if device is not None and context.measured_on == device.name]
    return max(own, key=lambda context: context.bytes) if own else largest


def own_contexts() -> Path:
    """The user's own measurements, in the form of ``profiles/gpus/contexts.json``."""
    return platformdirs.user_data_path("fitplan", appauthor=False) / "contexts.json"


def _measured_here() -> list[Context]:
    """The user's own measurements; a damaged file holds none. It is read again where it has changed."""
    path = own_contexts()
    try:
        state = path.stat()
    except OSError:
        return []
    return _contexts_in(path, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=1)
def _contexts_in(path: Path, _: tuple[int, int]) -> list[Context]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Context(int(row["bytes"]), 0, row["gpu"], f"measured here, torch {row['torch']}, driver {row['driver']}")
            for row in rows
        ]
    return []


@cache
def _measured() -> tuple[Context, ...]:
    """The records in ``profiles/gpus/contexts.json``."""
    rows = read_json("gpus/contexts.json")
    sizes = [row["bytes"] for row in rows]
    spread = max(sizes) - min(sizes)
    return tuple(
        Context(row["bytes"], spread, row["gpu"], f"{row['source']} (torch {row['torch']}, {row['what']})")
        for row in rows
    )
