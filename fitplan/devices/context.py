"""The CUDA context: what a process holds on a GPU beside PyTorch's allocator."""

from dataclasses import dataclass
from functools import cache

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
    """The context on a device: as measured on such a GPU, else the largest that was measured on any.

    It depends on the GPU, the driver and the kernels that have been loaded. The spread is the distance between the
    largest and the smallest measurement.
    """
    known = _measured()
    largest = max(known, key=lambda context: context.bytes)
    own = [context for context in known if device is not None and context.measured_on == device.name]
    return max(own, key=lambda context: context.bytes) if own else largest


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
