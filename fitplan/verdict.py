"""Does it fit? The judgement of an estimate against a device."""

from dataclasses import dataclass
from enum import StrEnum

from fitplan.devices.context import Context, context_on
from fitplan.devices.device import Device
from fitplan.devices.nccl import nccl_on
from fitplan.memory import AllocatorOverhead, MemoryEstimate
from fitplan.units import MIB, gib

UNSPLIT_BLOCK_BYTES = MIB
"""The most that a large block can hold without having asked for it (pytorch CUDACachingAllocator ``should_split``)."""


class Fit(StrEnum):
    """The verdict."""

    FITS = "fits"
    TIGHT = "tight"
    ONLY_IF = "only_if"
    DOES_NOT_FIT = "does_not_fit"


IN_DOUBT = (Fit.TIGHT, Fit.ONLY_IF)
"""What a trace of the very job, and a replay of the allocator with what there is, may decide."""


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """What a job takes of a device at its peak.

    Attributes:
        allocated_bytes: blocks that the program asks for.
        unsplit_bytes: rests that the allocator hands out along with them.
        cached_bytes: what the allocator reserves beyond that; under pressure it gives back what is whole segments.
        kept_bytes: what of it cannot be given back; ``None`` where that was not replayed.
        context: the CUDA context.
        nccl_bytes: buffers of NCCL, by which several GPUs talk to each other; 0 on one.
        paged_bytes: managed memory of the optimizer for which there is room; the rest is on the host. The optimizer
            brings it to the GPU before each use (bitsandbytes ``optim/optimizer.py``, ``prefetch_state``), and the
            driver moves it away again where an allocation wants the room (CUDA C++ Programming Guide, unified memory,
            oversubscription). So no job runs out of memory for it, and it is no part of what the job needs.
        spread_bytes: how much more it may be.

    """

    allocated_bytes: int
    unsplit_bytes: int
    cached_bytes: int
    context: Context
    paged_bytes: int
    spread_bytes: int
    nccl_bytes: int = 0
    kept_bytes: int | None = None

    @property
    def least_bytes(self) -> int:
        """What it cannot do without, as far as that is known."""
        return self.bytes - self.cached_bytes + (self.kept_bytes or 0)

    @property
    def bytes(self) -> int:
        """What ``nvidia-smi`` shows for the process; managed memory it does not (measured on an H100 and an H200)."""
        pinned = self.allocated_bytes + self.unsplit_bytes + self.context.bytes + self.nccl_bytes
        return pinned + self.cached_bytes


def device_memory(estimate: MemoryEstimate, device: Device | None) -> DeviceMemory:
    """What a job takes of a device; where the allocator was not replayed, its part is in the spread."""
    context, nccl, allocator = context_on(device), nccl_on(estimate.gpus), estimate.allocator
    if allocator is None:
        allocator = AllocatorOverhead(0, 0, estimate.large_blocks * UNSPLIT_BLOCK_BYTES)
    pinned = estimate.peak_allocated_bytes + allocator.bytes + context.bytes + nccl.bytes
    spread = allocator.spread_bytes + context.spread_bytes + nccl.spread_bytes
    room = estimate.paged_bytes if device is None else max(0, device.usable_bytes - pinned - spread)
    return DeviceMemory(
        allocated_bytes=estimate.peak_allocated_bytes,
        unsplit_bytes=allocator.unsplit_bytes,
        cached_bytes=allocator.cached_bytes,
        context=context,
        paged_bytes=min(estimate.paged_bytes, room),
        spread_bytes=spread,
        nccl_bytes=nccl.bytes,
        kept_bytes=allocator.kept_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a job fits a device.

    Attributes:
        fit: the verdict.
        slack_bytes: what is left of the device's memory at the peak; negative where that is not enough for all that
            the allocator would keep.
        memory: what the job takes.
        reason: why, in words.

    """

    fit: Fit
    slack_bytes: int
    memory: DeviceMemory
    reason: str

    @property
    def needs_words(self) -> bool:
        """Whether :attr:`reason` says more than the verdict and what is left."""
        lies_in_pieces = self.memory.cached_bytes >= -self.slack_bytes  # else it would not fit with an empty cache
        return self.fit in IN_DOUBT or (self.fit is Fit.DOES_NOT_FIT and lies_in_pieces)

    @property
    def uncertainty_bytes(self) -> int:
        """How much more than estimated the job may take."""
        return self.memory.spread_bytes


def judge(estimate: MemoryEstimate, device: Device) -> Verdict:
    """Whether a job fits.

    It fits if the device holds all that it takes and the uncertainty besides. It does not fit if the device cannot hold
    what the job cannot do without: the context, what is allocated, and of what is cached the part that a replay with
    less and less memory could not give back. Between these it is tight, if that replay was made or if only the
    uncertainty is in doubt; else it fits only if the allocator can give back enough.
    """
    needed = device_memory(estimate, device)
    slack = device.usable_bytes - needed.bytes
    if needed.least_bytes > device.usable_bytes:
        fit, reason = Fit.DOES_NOT_FIT, "allocated memory and the CUDA context exceed the device"
        if needed.kept_bytes and needed.cached_bytes >= -slack:  # an empty cache would do
            reason = (
                f"{gib(needed.kept_bytes)} of {gib(needed.cached_bytes)} cached lie in pieces, and cannot be given back"
            )
    elif slack < 0:
        of_cache = f"{gib(-slack)} of {gib(needed.cached_bytes)} cached"
        if needed.kept_bytes is not None:
            fit, reason = Fit.TIGHT, f"{of_cache} must be given back while it runs, and can be"
        else:
            fit, reason = Fit.ONLY_IF, f"{of_cache} can be given back while it runs"
    elif slack < needed.spread_bytes:
        fit, reason = Fit.TIGHT, f"what is left is less than the uncertainty of {gib(needed.spread_bytes)}"
    else:
        fit, reason = Fit.FITS, "reserved memory and the CUDA context leave enough free"
        if estimate.paged_bytes:
            reason += f"; {gib(needed.paged_bytes)} of paged optimizer states take what is free"
        if needed.paged_bytes < estimate.paged_bytes:
            reason += f", {gib(estimate.paged_bytes - needed.paged_bytes)} move to the host"
    return Verdict(fit=fit, slack_bytes=slack, memory=needed, reason=reason)
