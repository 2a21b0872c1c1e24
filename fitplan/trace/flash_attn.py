"""A stand-in for the flash-attn package, for meta tensors.

transformers calls ``flash_attn_func`` of a package that needs a GPU to import. Inside :func:`flash_attn_package` that
package is this module: the same functions, which allocate what the real ones allocate and compute nothing.
Source: flash-attn 2 ``flash_attn/flash_attn_interface.py``, ``flash_attn/bert_padding.py`` and
``csrc/flash_attn/flash_api.cpp``.
"""

import importlib.machinery
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from fitplan.guard import Guard
from fitplan.trace.kernels import flash_backward_scratch

VERSION = "2.8.3"


class _FlashAttention(torch.autograd.Function):
    """Tensors are [batch, length, heads, width], or [tokens, heads, width] when lengths vary."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: int) -> torch.Tensor:
        width = query.shape[-1]
        if width % 8:
            query, key, value = (torch.nn.functional.pad(t, (0, 8 - width % 8)) for t in (query, key, value))
        output = torch.empty_like(query)
        heads_first = (query.shape[-2], *query.shape[:-2])
        log_sum_exp = query.new_empty(heads_first, dtype=torch.float32)
        rng_state = query.new_empty((2,), dtype=torch.int64)
        ctx.save_for_backward(query, key, value, output, log_sum_exp, rng_state)
        ctx.width, ctx.sequences = width, sequences
        return output[..., :width]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        results = [torch.empty_like(t) for t in (query, key, value)]
        batched = [_as_batch(t, ctx.sequences) for t in (query, key)]
        scratch = flash_backward_scratch(*batched)
        del scratch
        return (*(t[..., : ctx.width] for t in results), None)


def _as_batch(tensor: torch.Tensor, sequences: int) -> torch.Tensor:
    """[batch, heads, length, width]; packed tokens count as one row with room for 128 more a sequence."""
    if tensor.dim() == 4:
        return tensor.transpose(1, 2)
    tokens, heads, width = tensor.shape
    return tensor.as_strided((1, heads, tokens + 128 * sequences, width), (0, 0, 0, 0))


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """Attention of [batch, length, heads, width] tensors; the result has the shape of ``q``."""
    output: torch.Tensor = _FlashAttention.apply(q, k, v, q.shape[0])
    return output


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """Attention of [tokens, heads, width] tensors; the result has the shape of ``q``."""
    output: torch.Tensor = _FlashAttention.apply(q, k, v, cu_seqlens_q.numel() - 1)
    return output


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Not part of training."""
    raise NotImplementedError


def index_first_axis(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows ``indices`` of ``tensor``."""
    return tensor[indices]


def unpad_input(hidden: torch.Tensor, mask: torch.Tensor, unused_mask: torch.Tensor | None = None) -> tuple[Any, ...]:
    """The tokens that are not padding, their positions, the sequence bounds, the longest length, and the lengths."""
    lengths = mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(mask.flatten(), as_tuple=False).flatten()
    bounds = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    rows = hidden.reshape(-1, *hidden.shape[2:])[indices]
    return rows, indices, bounds, int(lengths.max().item()), lengths


def pad_input(hidden: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """The inverse of :func:`unpad_input`."""
    output = hidden.new_zeros((batch * length, *hidden.shape[1:]))
    output[indices] = hidden
    return output.view(batch, length, *hidden.shape[1:])


@contextmanager
def flash_attn_package() -> Iterator[None]:
    """Inside, ``import flash_attn`` finds this module, and transformers finds flash-attn 2 usable."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    here = sys.modules[__name__]
    for module, names in (
        (package, ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")),
        (padding, ("index_first_axis", "pad_input", "unpad_input")),
    ):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        for name in names:
            setattr(module, name, getattr(here, name))
    package.__version__ = VERSION
    with Guard() as guard:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            guard.keep_item(sys.modules, name)
            del sys.modules[name]
        guard.put_item(sys.modules, "flash_attn", package)
        guard.put_item(sys.modules, "flash_attn.bert_padding", padding)
        _make_available(guard)
        yield


_CHECKS = ("is_flash_attn_2_available", "is_flash_attn_greater_or_equal", "is_flash_attn_greater_or_equal_2_10")


def _make_available(guard: Guard) -> None:
    """Answer every availability check of transformers with yes."""
    import transformers.modeling_flash_attention_utils as flash_utils
    from transformers import PreTrainedModel

    guard.keep(flash_utils)  # it loads the package's functions into names of its own
    loaded = [
        m for name, m in list(sys.modules.items()) if name.startswith("transformers") and isinstance(m, ModuleType)
    ]
    for module, check in itertools.product(loaded, _CHECKS):
        if check in vars(module):
            guard.exchange_here(module, check, lambda *args, **kwargs: True)
    if "_check_and_enable_flash_attn_2" in vars(PreTrainedModel):  # transformers before 4.56

        def enable(cls: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
            config._attn_implementation = "flash_attention_2"
            return config

        guard.exchange(PreTrainedModel, "_check_and_enable_flash_attn_2", classmethod(enable))
    for check in ("_flash_attn_can_dispatch", "_flash_attn_2_can_dispatch"):
        if check in vars(PreTrainedModel):
            guard.exchange_here(PreTrainedModel, check, lambda self, *args, **kwargs: True)
    for name in ("_loaded_implementation", "_flash_fn"):
        if name in vars(flash_utils):
            guard.exchange(flash_utils, name, None)
    if not hasattr(flash_utils, "_lazy_imports"):  # transformers before 4.53 imports the functions by name
        for name in ("flash_attn_func", "flash_attn_varlen_func", "index_first_axis", "pad_input", "unpad_input"):
            guard.put(flash_utils, name, getattr(sys.modules[__name__], name))
        guard.put(flash_utils, "_flash_supports_window_size", True)
