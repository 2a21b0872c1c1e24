"""NCCL's buffers: what several GPUs hold to talk to each other, beside PyTorch's allocator.

They depend on the topology, the channels and the version; no rule is known. What others measured is an interval:

- 544 MB a GPU in a group of two, 688 MB in larger ones, 4 x A100 (github.com/NVIDIA/nccl/issues/964);
- 1.6 GB for one communicator (github.com/NVIDIA/nccl/issues/864).

DDP and FSDP open one communicator.
"""

from dataclasses import dataclass

_OF_TWO, _OF_MORE, _MOST = 544 * 10**6, 688 * 10**6, 1600 * 10**6


@dataclass(frozen=True, kw_only=True)
class Nccl:
    """What NCCL is taken to hold.

    Attributes:
        bytes: of the memory of each GPU, at least.
        spread_bytes: how much more it may be.

    """

    bytes: int
    spread_bytes: int


def nccl_on(gpus: int) -> Nccl:
    """The buffers on each of so many GPUs."""
    if gpus == 1:
        return Nccl(bytes=0, spread_bytes=0)
    least = _OF_TWO if gpus == 2 else _OF_MORE
    return Nccl(bytes=least, spread_bytes=_MOST - least)
