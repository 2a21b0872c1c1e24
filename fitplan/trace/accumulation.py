"""Gradients that autograd's engine adds in place.

Where a tensor was used twice, its gradients meet in the engine, which adds the second to the first. It does so in
place if nobody else holds the first one (pytorch ``torch/csrc/autograd/input_buffer.cpp``, ``accumulate``): the
gradient of a tied embedding costs one copy of the embedding less, and each residual connection one hidden state. It
does not do so for what looks like a subclass of tensors, and that is every tensor on the meta device, and every tensor
while a ``TorchDispatchMode`` is active (``aten/src/ATen/TensorSubclassLikeUtils.h``). Here that decision is made as the
engine makes it for plain tensors.

Who holds a tensor is a count of references. Some of them are there because the engine's call was led through Python;
how many, is seen once, on a gradient that is certainly held by nobody else.
"""

import sys
from typing import Any

import torch

_ADD = torch.ops.aten.add.Tensor

Counts = tuple[int, int, int]


class Accumulation:
    """Tells additions that the engine would do in place, among the operators that a dispatch mode sees."""

    def __init__(self) -> None:
        self._alone: Counts | None = None
        self._is_learning = False

    def learn(self, device: str) -> None:
        """See how a gradient looks that nobody else holds; to be called where the mode that asks is active."""
        if self._alone is not None or not hasattr(torch.Tensor, "_use_count"):
            return
        self._is_learning = True
        try:
            with torch.enable_grad():
                leaf = torch.zeros(1, device=device, requires_grad=True)
                used_twice = leaf * 1.0
                (used_twice * 2.0 + used_twice.exp()).backward()
        finally:
            self._is_learning = False

    @property
    def is_learning(self) -> bool:
        """Whether what happens now is none of the program's."""
        return self._is_learning

    def is_in_place(self, func: Any, args: Any) -> bool:
        """Whether this is the engine adding the second argument to the first, which it may change."""
        if func is not _ADD or torch.is_grad_enabled() or torch._C._current_autograd_node() is None:
            return False
        first = args[0]
        if not isinstance(first, torch.Tensor) or not isinstance(args[1], torch.Tensor):
            return False
        counts = (first._use_count(), _holders_of_storage(first), sys.getrefcount(first))
        if self._is_learning:
            self._alone = counts
            return False
        return counts == self._alone and first.shape == args[1].shape and _is_dense(first)


def _holders_of_storage(tensor: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _is_dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))
