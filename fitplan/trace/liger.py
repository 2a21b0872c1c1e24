"""Liger Kernel on meta tensors: its own Python runs, its Triton kernels do nothing.

A Triton kernel allocates nothing: what a step of Liger takes is allocated by the Python around its kernels, and that is
traced as it is, but for the pieces of the loss after the second, which are like it. Two things are put right inside
:func:`liger_on_meta`. Liger asks for the name of a tensor's device and
chooses its code by it; there a meta tensor says ``cuda``. (The backward of a norm whose weight is
trained takes a float32 row for each multiprocessor.) And it exchanges functions and classes of transformers'
modules for good; they are put back, so the module of the model must be imported before.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fitplan.guard import Guard
from fitplan.trace.kernels import Gpu

_LOSS = "fused_linear_cross_entropy_forward"
_ASKS_FOR_THE_DEVICE = ("_can_use_mm_out", _LOSS, "rms_norm_backward", "layer_norm_backward")
"""Functions of ``liger_kernel.ops`` that do one thing on CUDA and another elsewhere."""


PIECES = 2
"""Most of the pieces of a loss that a trace holds."""


class _NamedCuda(str):
    """``"meta"`` to PyTorch, ``cuda`` to whoever asks for the type."""

    __slots__ = ()
    type = "cuda"


class _SayCuda(TorchFunctionMode):
    """Meta tensors say that they lie on a CUDA device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_device = func == torch.Tensor.device.__get__  # made anew each time, so never the same object
        return _NamedCuda("meta") if is_device and result.type == "meta" else result


def _says_cuda(function: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        before()
        with _SayCuda():
            return function(*args, **kwargs)

    return inside


def _few_pieces(*bounds: int) -> range:
    """``range``, which counts the pieces of a loss from 0."""
    return range(min(*bounds, PIECES)) if len(bounds) == 1 else range(*bounds)


@contextmanager
def liger_on_meta(gpu: Gpu, enter_loss: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a model to which Liger is applied is traced as on ``gpu``; ``enter_loss`` hears where its loss begins.

    Raises:
        ImportError: liger-kernel is not installed.

    """
    import liger_kernel.transformers  # noqa: F401  it imports all of its operators
    from triton.runtime.jit import KernelInterface

    with Guard() as guard:
        guard.exchange_here(KernelInterface, "__getitem__", lambda self, grid: lambda *args, **kwargs: None)
        guard.exchange_here(torch.cuda, "get_device_capability", lambda device=None: gpu.capability)
        guard.exchange_here(
            torch.cuda,
            "get_device_properties",
            lambda device=None: SimpleNamespace(multi_processor_count=gpu.multiprocessors),
        )
        _say_cuda(guard, enter_loss)
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and ".modeling_" in name and module is not None:
                guard.keep_module(module)
        yield


def _say_cuda(guard: Guard, enter_loss: Callable[[], None]) -> None:
    """Liger's operators choose their code for CUDA, and take few pieces of a loss."""
    loaded = [m for name, m in list(sys.modules.items()) if name.startswith("liger_kernel.ops.") and m is not None]
    for module in loaded:
        if _LOSS in vars(module):
            guard.put(module, "range", _few_pieces)
        for name in _ASKS_FOR_THE_DEVICE:
            if name in vars(module):
                before = enter_loss if name == _LOSS else lambda: None
                guard.exchange_here(module, name, _says_cuda(vars(module)[name], before))
