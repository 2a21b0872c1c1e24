"""Rules of PyTorch's CUDA backend that need no GPU to be known, each with its source."""

from fitplan.units import MIB

GRANULE = 512
"""Every CUDA allocation is a multiple of this (pytorch ``c10/cuda/CUDACachingAllocator.cpp``, ``kMinBlockSize``)."""

LARGE_BLOCK = 2**20
"""Allocations above this come from the pool whose blocks may keep up to 1 MiB unsplit (same file, ``kSmallSize``)."""

EMBEDDING_SORTS_BEYOND = 3072
"""Indices up to which the gradient of an embedding is summed without sorting them.

Source: pytorch ``aten/src/ATen/native/cuda/Embedding.cu``, ``embedding_dense_backward_cuda``.
"""

EMBEDDING_SEGMENT = 10
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
