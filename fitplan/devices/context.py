"""The CUDA context: what a process holds on a GPU beside PyTorch's allocator."""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import platformdirs

from fitplan.devices.device import Device
from fitplan.resources import read_json
from fitplan.whole import left_out_if_damaged, read_whole


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
    rows: list[Any] = []
    with left_out_if_damaged(path, MEASURED_HERE):
        rows = read_rows(path)
    found = []
    for row in rows:
        with left_out_if_damaged(path, f"a row of {MEASURED_HERE}"):
            found.append(_context_in(row))
    return found


MEASURED_HERE = "what was measured of GPUs"


def read_rows(path: Path) -> list[Any]:
    """The rows of such a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no rows.

    """
    rows = json.loads(read_whole(path))
    if not isinstance(rows, list):
        raise ValueError("no list")
    return rows


def _context_in(row: Any) -> Context:
    size, gpu = row["bytes"], row["gpu"]
    if type(size) is not int or not 0 <= size < MOST_BYTES or not isinstance(gpu, str):
        raise ValueError("no context")
    return Context(size, 0, gpu, f"measured here, torch {row['torch']}, driver {row['driver']}")


MOST_BYTES = 2**40
"""A context is smaller than any GPU."""


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
