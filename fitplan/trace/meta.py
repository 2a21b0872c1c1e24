"""The meta device, playing the GPU."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch._refs
import torch._refs.linalg
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fitplan.guard import Guard
from fitplan.trace import values
from fitplan.trace.autocast import autocast_on_meta
from fitplan.trace.kernels import Gpu, common_kernels, cuda_kernels, dropout, question, scaled_dot_product_attention


class _MetaKernels(TorchDispatchMode):
    """Runs the rules of :mod:`fitplan.trace.kernels`, and keeps the values of integer tensors."""

    def __init__(self, gpu: Gpu | None) -> None:
        super().__init__()
        self._gpu = gpu
        self._kernels = cuda_kernels() if gpu is not None else common_kernels()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the guard against it would cost a tenth of the time."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        kernel = self._kernels.get(func)
        if kernel is not None:
            return kernel(self._gpu, func, args, kwargs)
        rule = question(func, args)
        if rule is not None:
            return rule(func, args, kwargs)
        output = func(*args, **kwargs)
        values.follow(func, args, kwargs, output)
        return output


@contextmanager
def meta_device(gpu: Gpu | None) -> Iterator[None]:
    """Inside, meta tensors are treated as tensors on ``gpu`` are; ``None`` stands for the CPU."""
    with ExitStack() as stack:
        stack.enter_context(autocast_on_meta("cuda" if gpu else "cpu"))
        stack.enter_context(_chosen_by_device(gpu))
        stack.enter_context(_patched_libraries(gpu))
        stack.enter_context(_patched_bitsandbytes())
        stack.enter_context(_MetaKernels(gpu))
        yield


@contextmanager
def _chosen_by_device(gpu: Gpu | None) -> Iterator[None]:
    """Operators that pick their kernel below autograd and above the device; that is where ours is put."""
    with Guard() as guard:
        for name in _QUICK_KERNELS:
            # Its own kernels, in Python, PyTorch before 2.13 lets nobody override (torch/library.py, ``Library.impl``).
            guard.discard(torch.library._impls, f"aten/{name}/Meta")
        _register(guard, gpu)
        yield


def _register(guard: Guard, gpu: Gpu | None) -> None:
    """Nobody but the guard holds the library: when it is freed it takes its names out of ``_impls`` once more."""
    library = torch.library.Library("aten", "IMPL")
    guard.callback(library._destroy)
    library.impl("scaled_dot_product_attention", partial(scaled_dot_product_attention, gpu), "AutogradMeta")
    if gpu is not None:
        library.impl("dropout", dropout, "AutogradMeta")
    for name, kernel in _QUICK_KERNELS.items():
        library.impl(name, kernel, "Meta")


# PyTorch's own meta kernels of the next operators work their results out in Python and take half of a trace's time.
# Here the plain cases, contiguous floating-point tensors, are said at once; the rest is left to PyTorch's references.


def _arithmetic(reference: Any, left: torch.Tensor, right: Any, **kwargs: Any) -> Any:
    """Sums and products where one operand has the shape of the result."""
    if not isinstance(left, torch.Tensor):
        return reference(left, right, **kwargs)
    numbers = not isinstance(right, torch.Tensor)
    full, other = (left, right) if numbers or left.dim() >= right.dim() else (right, left)
    if full.is_floating_point() and full.is_contiguous() and (numbers or _broadcasts(other, full)):
        return torch.empty(full.shape, dtype=torch.result_type(left, right), device="meta")
    return reference(left, right, **kwargs)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.is_contiguous()


def _power(tensor: torch.Tensor, exponent: Any) -> Any:
    if _is_plain(tensor) and isinstance(exponent, int | float):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch._refs.pow(tensor, exponent)


def _mean(tensor: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    if _is_plain(tensor) and (dim is None or (len(dim) == 1 and keepdim)):
        shape = list(tensor.shape) if dim else []
        for axis in dim or ():
            shape[axis] = 1
        return torch.empty(shape, dtype=dtype or tensor.dtype, device="meta")
    return torch._refs.mean(tensor, dim, keepdim, dtype=dtype)


def _vector_norm(
    tensor: torch.Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    if _is_plain(tensor) and dim is None and not keepdim:
        return torch.empty((), dtype=dtype or tensor.dtype, device="meta")
    return torch._refs.linalg.vector_norm(tensor, order, dim, keepdim, dtype=dtype)


def _broadcasts(small: torch.Tensor, full: torch.Tensor) -> bool:
    pairs = zip(reversed(small.shape), reversed(full.shape), strict=False)
    return small.is_contiguous() and full.is_meta and all(a in (1, b) for a, b in pairs)


_QUICK_KERNELS: dict[str, Any] = {
    "mul.Tensor": partial(_arithmetic, torch._refs.mul),
    "add.Tensor": partial(_arithmetic, torch._refs.add),
    "pow.Tensor_Scalar": _power,
    "mean.dim": _mean,
    "linalg_vector_norm": _vector_norm,
}


@contextmanager
def _patched_libraries(gpu: Gpu | None) -> Iterator[None]:
    """Where libraries look at the device's name instead of at what it can do, or turn to a GPU that is there.

    Before each step PyTorch's optimizers ask whether a CUDA graph is captured (``optim/optimizer.py``), which makes a
    CUDA context in this process (``c10/cuda/CUDAGraphsC10Utils.h``, ``currentStreamCaptureStatusMayInitCtx``).
    """
    import torch.utils._foreach_utils as foreach
    import torch.utils.checkpoint as checkpoint

    device_type, fused = "cuda" if gpu else "cpu", foreach._get_fused_kernels_supported_devices
    with Guard() as guard:
        guard.exchange_here(torch.cuda, "is_current_stream_capturing", lambda: False)
        guard.exchange_here(torch.cuda, "empty_cache", lambda: None)
        guard.exchange_here(checkpoint, "_infer_device_type", lambda *args: device_type)
        for name in ("torch.utils._foreach_utils", "torch.optim.optimizer", "torch.optim.adam", "torch.optim.adamw"):
            if (module := sys.modules.get(name)) is not None and (module is foreach or hasattr(module, fused.__name__)):
                guard.exchange_here(module, fused.__name__, lambda: [*fused(), "meta"])
        yield


@contextmanager
def _patched_bitsandbytes() -> Iterator[None]:
    """The optimizers of bitsandbytes ask for a GPU and take paged states from CUDA's managed memory.

    Managed memory is not the allocator's: paged states are there for the optimizer, and not in the trace.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        yield
        return
    from bitsandbytes import functional
    from bitsandbytes.optim.optimizer import Optimizer8bit

    get_state_buffer = Optimizer8bit.get_state_buffer

    def get_named_state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A paged state leaves no trace; a tensor of no bytes says which parameter its scales, not paged, are of."""
        p.new_empty(0)
        return get_state_buffer(self, p, dtype)

    def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        with _disable_current_modes():
            states = torch.empty(shape, dtype=dtype, device="meta")
        states.is_paged, states.page_deviceid = True, 0
        return states

    with Guard() as guard:
        guard.exchange_here(functional, "get_paged", get_paged)
        guard.exchange_here(functional, "is_on_gpu", lambda tensors: True)
        guard.exchange_here(functional, "fill", lambda *args, **kwargs: None)
        guard.exchange_here(functional, "prefetch_tensor", lambda *args, **kwargs: None)
        guard.exchange_here(Optimizer8bit, "get_state_buffer", get_named_state_buffer)
        yield
