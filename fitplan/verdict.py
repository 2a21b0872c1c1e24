"""Does it fit? The judgement of an estimate against a device."""

from dataclasses import dataclass
from enum import StrEnum

from fitplan.devices.device import Device
from fitplan.memory import MemoryEstimate
from fitplan.units import MIB

CUDA_CONTEXT_BYTES = 504_658_657
"""What a process with a CUDA context holds beside PyTorch's allocator, where the GPU has not been measured.

Measured on an A100 with CUDA_MODULE_LOADING=LAZY, which PyTorch sets (stas00/ml-engineering@744d01e18b79,
training/performance/README.md).
"""

CUDA_CONTEXT_SPREAD = CUDA_CONTEXT_BYTES - 256 * MIB
"""How far that differs between GPUs: the lowest public figure is 256 MiB, on an RTX 3090 (InvokeAI issue 9413)."""

UNSPLIT_BLOCK_BYTES = MIB
"""The most that a large block can hold without having asked for it (pytorch CUDACachingAllocator ``should_split``)."""


class Fit(StrEnum):
    """The verdict."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does_not_fit"


@dataclass(frozen=True)
class Verdict:
    """Whether a job fits a device.

    Attributes:
        fit: the verdict.
        slack_bytes: what is left of the device's memory at the peak; negative if it does not fit.
        uncertainty_bytes: how much more than estimated the job may need.
        reason: why, in words.

    """

    fit: Fit
    slack_bytes: int
    uncertainty_bytes: int
    reason: str


def device_bytes(estimate: MemoryEstimate) -> int:
    """Device memory at the peak: what is allocated, and the CUDA context. Fragmentation is in the uncertainty."""
    return estimate.peak_allocated_bytes + CUDA_CONTEXT_BYTES


def uncertainty_bytes(estimate: MemoryEstimate) -> int:
    """How much more the device may show: unsplit remainders of the large blocks, and a larger context."""
    return estimate.large_blocks * UNSPLIT_BLOCK_BYTES + CUDA_CONTEXT_SPREAD


def judge(estimate: MemoryEstimate, device: Device) -> Verdict:
    """Fits, if it does so with the uncertainty; does not fit, if it does not even without; else tight."""
    uncertainty = uncertainty_bytes(estimate)
    slack = device.usable_bytes - device_bytes(estimate)
    if slack < 0:
        return Verdict(Fit.DOES_NOT_FIT, slack, uncertainty, "allocated memory and the CUDA context exceed the device")
    if slack < uncertainty:
        return Verdict(Fit.TIGHT, slack, uncertainty, "what is left is less than what allocator and context may add")
    return Verdict(Fit.FITS, slack, uncertainty, "allocated memory and the CUDA context leave enough free")
