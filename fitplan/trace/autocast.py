"""Automatic mixed precision for meta tensors.

Meta tensors carry no autocast dispatch key, so ``torch.autocast`` does nothing to them. Here the casts are registered
as kernels of a dispatch key that no backend uses (AutocastPrivateUse1) and that key is added to every call: they sit
above autograd, where the real ones sit, and see what composite operators call inside themselves.

The lists say which operator is cast how. Source: pytorch ``aten/src/ATen/autocast_mode.h`` (``AT_FORALL_*``, used for
CUDA) and ``autocast_mode.cpp`` (``AutocastCPU``). Only operators for which the installed torch has an autocast kernel
are registered, so that a list never runs ahead of the library.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fitplan.guard import Guard

_KEY = "AutocastPrivateUse1"
_KEYSET = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

_LOWER = "lower_precision_fp"
_FP32 = "fp32"
_FP32_SET_DTYPE = "fp32_set_opt_dtype"
_FP32_APPEND_DTYPE = "fp32_append_dtype"
_PROMOTE = "promote"

_CUDA = {
    _LOWER: "_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d "
    "conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv "
    "linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot scaled_dot_product_attention",
    _FP32: "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar "
    "pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm cosine_similarity "
    "cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss "
    "binary_cross_entropy_with_logits dist cdist renorm logsumexp",
    _FP32_SET_DTYPE: "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm sum "
    "sum.dim_IntList",
    _FP32_APPEND_DTYPE: "norm.Scalar norm.ScalarOpt_dim",
    _PROMOTE: "addcdiv addcmul atan2 bilinear cross dot vdot index_put tensordot scatter_add",
}
_CPU = {
    _LOWER: "conv1d conv2d conv3d bmm mm linalg_vecdot baddbmm addmm addbmm linear matmul _addmm_activation "
    "scaled_dot_product_attention conv_tbc conv_transpose1d prelu",
    _FP32: "nll_loss nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss kl_div cross_entropy_loss prod prod.dim_int "
    "binary_cross_entropy_with_logits hinge_embedding_loss cosine_embedding_loss soft_margin_loss "
    "margin_ranking_loss triplet_margin_loss multi_margin_loss multilabel_margin_loss cdist trace",
    _PROMOTE: "stack cat index_copy",
}
POLICIES = {"cuda": _CUDA, "cpu": _CPU}


class _WeightCache:
    """Casts of trainable float32 leaves, kept until autocast is left (``cached_cast`` in autocast_mode.cpp)."""

    def __init__(self) -> None:
        self._casts: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def cast(self, tensor: torch.Tensor, dtype: torch.dtype, lower: torch.dtype) -> torch.Tensor:
        cacheable = (
            dtype == lower
            and tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not cacheable:
            return tensor.to(dtype)
        found = self._casts.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        cast = tensor.to(dtype)
        self._casts[id(tensor)] = (weakref.ref(tensor), cast)
        return cast

    def clear(self) -> None:
        self._casts.clear()


@contextmanager
def autocast_on_meta(device_type: str) -> Iterator[None]:
    """Inside, meta tensors follow ``torch.autocast(device_type)`` as tensors on that device do.

    ``torch.autocast("meta")`` means ``device_type``, and autocast for CUDA is there without a GPU, so that what the
    libraries ask (``torch.is_autocast_enabled()``, the state that checkpointing saves) is answered as on that device.
    No CUDA context is created.
    """
    cache = _WeightCache()
    with Guard() as guard:
        fallback = torch.library.Library("_", "IMPL", _KEY)
        guard.callback(fallback._destroy)
        fallback.fallback(torch.library.fallthrough_kernel, _KEY)
        library = torch.library.Library("aten", "IMPL")
        guard.callback(library._destroy)
        installed_key = "Autocast" + device_type.upper()
        for policy, names in POLICIES[device_type].items():
            for name in names.split():
                if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", installed_key):
                    library.impl(name, _kernel(name, policy, device_type, cache), _KEY)
        _exchange_autocast(guard, device_type, cache)
        guard.callback(cache.clear)
        guard.callback(torch.set_autocast_enabled, "privateuseone", torch.is_autocast_enabled("privateuseone"))
        with torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.AutocastPrivateUse1):
            torch.set_autocast_enabled("privateuseone", True)
            yield


def _exchange_autocast(guard: Guard, device_type: str, cache: _WeightCache) -> None:
    autocast = torch.amp.autocast_mode.autocast
    plain_init, plain_clear = autocast.__init__, torch.clear_autocast_cache
    enabled, get_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def init(self: Any, device_type_: str, *args: Any, **kwargs: Any) -> None:
        plain_init(self, device_type if device_type_ == "meta" else device_type_, *args, **kwargs)

    def init_by_name(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *((kwargs.pop("device_type"),) if "device_type" in kwargs else ()), *args, **kwargs)

    def clear() -> None:
        plain_clear()
        cache.clear()

    def means(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (device_type,) if args == ("meta",) else args

    guard.exchange_here(autocast, "__init__", init_by_name)
    guard.exchange_here(torch, "is_autocast_enabled", lambda *args: enabled(*means(args)))
    guard.exchange_here(torch, "get_autocast_dtype", lambda *args: get_dtype(*means(args)))
    guard.exchange_here(torch, "clear_autocast_cache", clear)
    guard.exchange_here(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    guard.exchange_here(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)


def _kernel(name: str, policy: str, device_type: str, cache: _WeightCache) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYSET):
            if not torch.is_autocast_enabled(device_type):
                return op(*args, **kwargs)
            lower = torch.get_autocast_dtype(device_type)
            if policy == _FP32_SET_DTYPE:
                if _eligible(args[0]) and kwargs.get("dtype") is None and _no_dtype_given(op, args):
                    kwargs["dtype"] = torch.float32
                return op(*args, **kwargs)
            if policy == _FP32_APPEND_DTYPE:
                return _norm_with_dtype(args) if _eligible(args[0]) else op(*args, **kwargs)
            dtype = torch.float32 if policy == _FP32 else lower
            if policy == _PROMOTE and any(t.dtype == torch.float32 for t in _tensors(args) if _eligible(t)):
                dtype = torch.float32
            # the C++ kernels cast in the call's argument list, which GCC evaluates from the last to the first
            keywords = {key: _cast(value, dtype, lower, cache) for key, value in reversed(kwargs.items())}
            cast = [_cast(arg, dtype, lower, cache) for arg in reversed(args)]
            return op(*reversed(cast), **keywords)

    return kernel


def _norm_with_dtype(args: tuple[Any, ...]) -> torch.Tensor:
    if len(args) <= 2:
        return torch.ops.aten.norm.ScalarOpt_dtype(args[0], args[1] if len(args) > 1 else 2, dtype=torch.float32)
    keepdim = args[3] if len(args) > 3 else False
    return torch.ops.aten.norm.ScalarOpt_dim_dtype(args[0], args[1], args[2], keepdim, dtype=torch.float32)


def _no_dtype_given(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether the operator's ``dtype`` argument was left out of the positional arguments."""
    for position, argument in enumerate(op._schema.arguments):
        if argument.name == "dtype":
            return position >= len(args) or args[position] is None
    return False


def _eligible(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _tensors(args: Any) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _cast(value: Any, dtype: torch.dtype, lower: torch.dtype, cache: _WeightCache) -> Any:
    if _eligible(value):
        return value if value.dtype == dtype else cache.cast(value, dtype, lower)
    if isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
        return [_cast(item, dtype, lower, cache) for item in value]
    return value
