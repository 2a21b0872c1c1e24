"""What a program is told of the GPU that is not there."""

from dataclasses import dataclass

from fitplan.cuda import resident_threads
from fitplan.devices.context import context_on
from fitplan.devices.device import Device

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a multiprocessor of one compute capability has.

    Attributes:
        shared_bytes_per_block: shared memory that a block can be given.
        shared_bytes: shared memory in all.
        blocks: that can be resident on a multiprocessor.

    """

    shared_bytes_per_block: int
    shared_bytes: int
    blocks: int


def _limits(per_block: int, shared: int, blocks: int) -> Limits:
    return Limits(shared_bytes_per_block=per_block * KIB, shared_bytes=shared * KIB, blocks=blocks)


LIMITS = {
    (6, 0): _limits(48, 64, 32),
    (6, 1): _limits(48, 96, 32),
    (7, 0): _limits(96, 96, 32),
    (7, 5): _limits(64, 64, 16),
    (8, 0): _limits(163, 164, 32),
    (8, 6): _limits(99, 100, 16),
    (8, 9): _limits(99, 100, 24),
    (9, 0): _limits(227, 228, 32),
    (10, 0): _limits(227, 228, 32),
    (10, 3): _limits(227, 228, 32),
    (12, 0): _limits(99, 100, 24),
}
"""Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

DEFAULT_MULTIPROCESSORS = 108
"""As on an A100, where only the amount of memory is known."""


def environment_of(device: Device, *, count: int = 1) -> dict[str, str]:
    """The variables that the stand-ins read (``stand_ins/memory.c``): ``count`` GPUs like this one."""
    limits = LIMITS.get(device.capability) or LIMITS[max(one for one in LIMITS if one <= device.capability)]
    told = {
        "NAME": f"NVIDIA {device.name}",
        "USABLE_BYTES": device.usable_bytes,
        "TOTAL_BYTES": device.total_bytes,
        "CONTEXT_BYTES": context_on(device).bytes,
        "CAPABILITY": ".".join(map(str, device.capability)),
        "MULTIPROCESSORS": device.multiprocessors or DEFAULT_MULTIPROCESSORS,
        "SHARED_BYTES_PER_BLOCK": limits.shared_bytes_per_block,
        "SHARED_BYTES_PER_MULTIPROCESSOR": limits.shared_bytes,
        "THREADS_PER_MULTIPROCESSOR": resident_threads(device.capability),
        "BLOCKS_PER_MULTIPROCESSOR": limits.blocks,
        "COUNT": count,
    }
    return {f"FITPLAN_GPU_{name}": str(value) for name, value in told.items()}
