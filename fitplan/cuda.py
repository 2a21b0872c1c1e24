"""Rules of PyTorch's CUDA backend that need no GPU to be known, each with its source."""

from fitplan.units import MIB

AMPERE, BEFORE_AMPERE = (8, 0), (7, 5)
"""The compute capability from which GPUs run the newer kernels, and one of those that do not."""

GRANULE = 512
"""Every CUDA allocation is a multiple of this (pytorch ``c10/cuda/CUDACachingAllocator.cpp``, ``kMinBlockSize``)."""

LARGE_BLOCK = 2**20
"""Allocations above this come from the pool whose blocks may keep up to 1 MiB unsplit (same file, ``kSmallSize``)."""

EMBEDDING_SORTS_BEYOND = 3072
"""Indices up to which the gradient of an embedding is summed without sorting them.

Source: pytorch ``aten/src/ATen/native/cuda/Embedding.cu``, ``embedding_dense_backward_cuda``.
"""

EMBEDDING_PART = 10
"""Sorted indices that are summed at once (``EmbeddingBackwardKernel.cu``, ``NROWS_PER_THREAD``)."""


def rounded(size: int) -> int:
    """Bytes that the allocator hands out for ``size`` bytes."""
    return -(-size // GRANULE) * GRANULE


def cublas_workspace(capability: tuple[int, int]) -> int:
    """Bytes of the workspace that every cuBLAS handle keeps on a GPU of that compute capability.

    Source: pytorch ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``getChosenWorkspaceSize``: 4096 KiB x 8 on compute
    capability 9, 10 and 12, else 4096 KiB x 2 + 16 KiB x 8.
    """
    return 32 * MIB if capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024


def resident_threads(capability: tuple[int, int]) -> int:
    """Threads that a multiprocessor of a GPU of that compute capability holds.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    """
    if capability == (7, 5):
        return 1024
    return 1536 if capability in ((8, 6), (8, 7), (8, 9)) or capability[0] == 12 else 2048


SMALL_SEGMENT = 2 * MIB
"""What the allocator reserves for requests up to ``LARGE_BLOCK`` (``c10/core/AllocatorConfig.h``, ``kSmallBuffer``)."""

LARGE_SEGMENT = 20 * MIB
"""What it reserves for larger ones below ``OWN_SEGMENT`` (same file, ``large_segment_size``, once ``kLargeBuffer``)."""

OWN_SEGMENT = 10 * MIB
"""Requests from here on get a segment of their own (same file, ``kMinLargeAlloc``)."""

SEGMENT_GRANULE = 2 * MIB
"""Such a segment is a multiple of this (same file, ``kRoundLarge``)."""


def segment_size(size: int) -> int:
    """Bytes that the allocator reserves for a block of ``size`` bytes that no cached block can hold.

    Source: pytorch ``c10/cuda/CUDACachingAllocator.cpp``, ``get_allocation_size``.
    """
    if size <= LARGE_BLOCK:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return LARGE_SEGMENT
    return -(-size // SEGMENT_GRANULE) * SEGMENT_GRANULE
