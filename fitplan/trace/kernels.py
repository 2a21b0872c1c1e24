"""What the GPU's kernels do that the meta device does not show.

Three kinds of rules, each with its source:
- operators that PyTorch resolves differently on CUDA (attention);
- operators whose kernels take scratch memory from the caching allocator while they run;
- operators that have no meta kernel at all, or one that hides what the CUDA one allocates.

Scratch is written as what it is: tensors that are allocated before the operator returns and dropped with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fitplan.cuda import AMPERE, EMBEDDING_PART, EMBEDDING_SORTS_BEYOND, resident_threads
from fitplan.trace import values

aten = torch.ops.aten


@dataclass(frozen=True)
class Gpu:
    """What the choice of kernels depends on.

    Attributes:
        capability: CUDA compute capability, e.g. (9, 0).
        multiprocessors: how many there are; as on an A100 (NVIDIA A100 whitepaper) where it is not said.
        asks_cudnn_first: whether attention goes to cuDNN where it can. What it saves and gives is what flash does; the
            scratch memory of its backward is less.
        cudnn_drops_out: whether it takes attention with dropout, as up to torch 2.11 (``CUDNN_DROPS_OUT_UNTIL``).
        is_one: whether it is one GPU as it is. Where it stands for all of its kind, the scratch that depends on how
            many multiprocessors there are is left out: it is let go at once.

    """

    capability: tuple[int, int] = (8, 0)
    multiprocessors: int = 108
    asks_cudnn_first: bool = False
    cudnn_drops_out: bool = False
    is_one: bool = False

    @classmethod
    def exactly(cls, capability: tuple[int, int], multiprocessors: int | None) -> "Gpu":
        """One GPU as it is, where others stand for all from Ampere on, whose footprints are shared."""
        torch_version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        cudnn_first = capability[0] in (9, 10) and torch_version >= CUDNN_FIRST_SINCE
        return cls(
            capability=capability,
            multiprocessors=multiprocessors or cls.multiprocessors,
            asks_cudnn_first=cudnn_first,
            cudnn_drops_out=torch_version <= CUDNN_DROPS_OUT_UNTIL,
            is_one=multiprocessors is not None,
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- attention --------------------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    gpu: Gpu | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The operator with the backend that CUDA (``gpu``) or the CPU (``None``) would choose.

    Source: pytorch ``aten/src/ATen/native/transformers/attention.cpp`` and ``cuda/sdp_utils.cpp``.
    """
    if gpu is None:
        return _cpu_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    match attention_backend(gpu, query, key, value, attn_mask, dropout_p, enable_gqa):
        case "cudnn":
            return _cudnn(query, key, value, attn_mask, dropout_p, is_causal, scale)
        case "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        case "efficient":
            return _memory_efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    mask = _float_mask(attn_mask, query)  # which outlives what the steps below make
    return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)[0]


CUDNN_FIRST_SINCE = (2, 10)
"""The PyTorch from which cuDNN is asked first on compute capability 9 and 10: the first whose wheels bring cuDNN 9.15.1
(``cuda/sdp_utils.cpp``, ``check_prefer_cudnn_attention``). Seen on an H100 with 2.11, rehearsed with 2.14."""

CUDNN_DROPS_OUT_UNTIL = (2, 11)
"""The last PyTorch whose cuDNN takes attention with dropout: rehearsed with 2.11, 2.12, 2.13 and 2.14."""

CUDNN_OWN_WORKSPACE = 256
"""Bytes that its backward takes for itself (measured on an H100 with cuDNN 9.19)."""
_CUDNN_WIDTHS = ((192, 128), (256, 256))
"""Of queries and values, beyond 128 (``check_cudnn_tensor_shapes``)."""


def attention_backend(
    gpu: Gpu, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout_p: float, gqa: bool
) -> str:
    """``"cudnn"``, ``"flash"``, ``"efficient"`` or ``"math"``, as ``torch._fused_sdp_choice`` on that GPU.

    Source: pytorch ``cuda/sdp_utils.cpp``, ``select_sdp_backend`` and the conditions that it asks, in its order.
    Tensors are [batch, heads, length, width].
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    sm80 = gpu.capability >= AMPERE
    width, value_width = query.shape[-1], value.shape[-1]
    if query.shape[1] != key.shape[1] and not gqa:
        return "math"
    if mask is not None and mask.stride(-1) != 1:  # as T5's relative positions are (``sdp_utils_cpp.h``)
        return "math"
    cudnn_widths = (width <= 128 and value_width <= 128) or (width, value_width) in _CUDNN_WIDTHS
    dropout_fits = not dropout_p or gpu.cudnn_drops_out
    cudnn_fits = half and dropout_fits and query.shape[2] > 1 and width % 8 == value_width % 8 == 0 and cudnn_widths
    learned_mask = mask is not None and mask.requires_grad
    if gpu.asks_cudnn_first and cudnn_fits and not learned_mask:
        return "cudnn"
    if half and sm80 and mask is None and width == value_width <= 256:
        return "flash"
    unit = 8 if half else 4 if sm80 else 1
    if width % unit == value_width % unit == 0 and (sm80 or query.dtype is not torch.bfloat16):
        return "efficient"
    return "math"


def _cudnn(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    needs_lse = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return aten._scaled_dot_product_cudnn_attention(
        query, key, value, _float_mask(mask, query), needs_lse, dropout_p, is_causal, False, scale=scale
    )[0]


def _flash(query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, scale: float | None) -> torch.Tensor:
    width = query.shape[-1]
    if width % 8:
        scale = scale if scale is not None else width**-0.5
        query, key, value = (torch.nn.functional.pad(t, (0, 8 - width % 8)) for t in (query, key, value))
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    return output[..., :width] if width % 8 else output


def _float_mask(mask: Any, query: torch.Tensor) -> Any:
    """A boolean mask becomes one of the query's type (``convert_boolean_attn_mask`` in attention.cpp)."""
    return query.new_empty(mask.shape) if mask is not None and mask.dtype is torch.bool else mask


def _memory_efficient(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    if query.shape[1] != key.shape[1]:  # ``pre_process_group_query_attention_input``
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    if mask is not None:
        mask = _float_mask(mask, query)
        if mask.shape[-1] % 8:  # the kernel wants aligned rows: a padded copy, sliced back
            mask = torch.nn.functional.pad(mask, (0, 8 - mask.shape[-1] % 8))[..., : mask.shape[-1]]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs_lse = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, needs_lse, dropout_p, is_causal, scale=scale
    )[0]


def _math(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None, gqa: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain steps, in float32; and its weights, which nobody takes.

    Source: pytorch ``aten/src/ATen/native/transformers/attention.cpp``, ``_scaled_dot_product_attention_math``. The
    mask is added in place; to meta tensors, as to all that look like a subclass, PyTorch's own steps add it beside.
    """
    factor = (scale if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    # whatever is made here is there until the end, so nothing takes the name of another
    whole = (query, key, value)
    if query.dtype in (torch.float16, torch.bfloat16):  # ``allowFP16BF16ReductionMathSDP``
        whole = (query.float(), key.float(), value.float())
    queries, keys, values_ = whole
    del whole
    scaled = queries * factor
    added = mask  # in its own type
    if is_causal:
        lower = query.new_ones((query.shape[-2], key.shape[-2]), dtype=torch.bool).tril()
        added = _float_mask(lower, queries)
        del lower
    repeats = query.shape[1] // key.shape[1] if gqa else 1
    all_keys, all_values = (t.repeat_interleave(repeats, dim=1) if repeats > 1 else t for t in (keys, values_))
    scores = scaled @ (all_keys.transpose(-2, -1) * factor)
    if added is not None:
        scores.add_(added)
    weights = aten._safe_softmax(scores, -1)
    del scores
    if dropout_p:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    told = weights.to(query.dtype)
    output = (weights @ all_values).to(query.dtype)
    del weights
    # as in C++ what was declared last goes first: of equal blocks the one that is let go last is not the next one taken
    del all_values
    del all_keys
    del scaled
    del added
    del values_
    del keys
    del queries
    return output, told


def _softmax_backward(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """The product of gradient and result is made first (pytorch ``aten/src/ATen/native/cuda/SoftMax.cu``)."""
    product = args[0].new_empty(args[0].shape)
    gradient: torch.Tensor = func(*args, **kwargs)
    del product
    return gradient


def _safe_softmax(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Rows that are masked as a whole are looked for (pytorch ``aten/src/ATen/native/SoftMax.cpp``)."""
    output: torch.Tensor = func(*args, **kwargs)
    masked = output.new_empty(output.shape, dtype=torch.bool)
    rows = output.new_empty((*output.shape[:-1], 1), dtype=torch.bool)
    del rows, masked
    return output


def _cpu_attention(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None, gqa: bool
) -> torch.Tensor:
    """Source: pytorch ``aten/src/ATen/native/transformers/sdp_utils_cpp.cpp``, ``use_flash_attention_cpp``."""
    half_mismatch = mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype)
    mask_needs_grad = mask is not None and mask.requires_grad
    same_heads = query.shape[1] == key.shape[1] or gqa
    if (
        dropout_p == 0.0
        and not half_mismatch
        and not mask_needs_grad
        and same_heads
        and query.shape[-1] == value.shape[-1]
    ):
        mask = _float_mask(mask, query)
        output: torch.Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
        )[0]
        return output
    output, _ = aten._scaled_dot_product_attention_math(
        query, key, value, _float_mask(mask, query), dropout_p, is_causal, scale=scale, enable_gqa=gqa
    )
    return output


# --- dropout ----------------------------------------------------------------------------------------------------------


def dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """The fused kernel of CUDA, which keeps a mask of one byte an element; the CPU's mask has the type of the input.

    Source: pytorch ``aten/src/ATen/native/Dropout.cpp``, ``is_fused_kernel_acceptable``, and ``cuda/Dropout.cu``.
    """
    if not train or p == 0 or not tensor.numel():
        return tensor
    if p == 1:
        return tensor.mul(tensor.new_zeros(()))
    output: torch.Tensor = aten.native_dropout(tensor, p, True)[0]
    return output


# --- scratch ----------------------------------------------------------------------------------------------------------


def flash_backward_scratch(query: torch.Tensor, key: torch.Tensor) -> list[torch.Tensor]:
    """What the flash backward allocates beside its results, for tensors of [batch, heads, length, width].

    Source: pytorch ``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd`` (the same in the
    flash-attn package, ``csrc/flash_attn/flash_api.cpp``): softmax_d and dq_accum in float32 with rounded shapes; with
    grouped queries, dk and dv for every query head.
    """
    batch, heads, length, width = query.shape
    rows, columns = _round_up(length, 128), _round_up(width, 32 if width <= 128 else 64)
    scratch = [
        query.new_empty((batch, heads, rows), dtype=torch.float32),
        query.new_empty((batch, rows, heads, columns), dtype=torch.float32),
    ]
    if key.shape[1] != heads:
        scratch += [key.new_empty((batch, key.shape[2], heads, width)) for _ in range(2)]
    return scratch


def efficient_backward_scratch(query: torch.Tensor) -> list[torch.Tensor]:
    """What the memory-efficient backward allocates beside its results.

    Source: pytorch ``aten/src/ATen/native/transformers/cuda/attention_backward.cu``: delta, and a float32 workspace for
    the query gradient in tiles of 64 or 128 rows, each with a lock and a counter in 16 bytes
    (``mem_eff_attention/kernel_backward.h``, ``GradQTempStorage``).
    """
    batch, heads, length, width = query.shape
    tile = 64 if width <= 64 else 128
    rows, columns = _round_up(length, tile), _round_up(width, tile)
    locks = 4 * (rows // tile) * (columns // tile)
    return [
        query.new_empty((batch, heads, length), dtype=torch.float32),
        query.new_empty((batch, heads, rows * columns + locks), dtype=torch.float32),
    ]


def _by_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of [batch, heads, length, width] as [batch, length, heads, width]; copied where that is not how they lie.

    Source: pytorch ``aten/src/ATen/native/transformers/cuda/attention_backward.cu``, ``contiguous_grad_out``.
    """
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]


def cudnn_backward_scratch(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The workspace of cuDNN's backward: one block, for tensors of [batch, heads, length, width].

    The gradient of the queries and a sum for each row in float32 (cudnn-frontend
    ``node/scaled_dot_product_flash_attention.h``); with grouped queries, dk and dv for every query head; and 256 bytes
    for itself. Measured on an H100 with cuDNN 9.19, in sixty jobs.
    """
    batch, heads, length, width = query.shape
    size = 4 * batch * heads * length * (width + 1) + CUDNN_OWN_WORKSPACE
    if key.shape[1] != heads:
        size += 2 * batch * heads * key.shape[2] * width * key.element_size()
    return query.new_empty((size,), dtype=torch.uint8)


def _cudnn_backward(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> Any:
    output = func(*args, **kwargs)
    scratch = cudnn_backward_scratch(args[1], args[2])
    del scratch
    return output


def _flash_backward(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> Any:
    gradient, query, key, _, output = args[:5]
    scratch = _by_rows(gradient, output)
    gradients = func(*args, **kwargs)
    scratch += flash_backward_scratch(query, key)
    del scratch
    return gradients


def _efficient_backward(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> Any:
    scratch = _by_rows(args[0])
    gradients = func(*args, **kwargs)
    scratch += efficient_backward_scratch(args[1])
    del scratch
    return gradients


def _embedding_backward(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> Any:
    """Source: pytorch ``aten/src/ATen/native/cuda/Embedding.cu``: beyond 3072 indices they are sorted. Below that the
    same pieces are empty, so that the number of tokens does not change the sequence of allocations.
    """
    gradient, indices, rows = args[:3]
    count = indices.numel() if indices.numel() > EMBEDDING_SORTS_BEYOND else 0
    scratch = [indices.new_empty((count,)) for _ in range(2)]  # sorted, and where each stood
    output = func(*args, **kwargs)
    scratch += embedding_backward_scratch(gradient, indices, count, rows)
    del scratch
    return output


def embedding_backward_scratch(
    gradient: torch.Tensor, indices: torch.Tensor, count: int, rows: int
) -> list[torch.Tensor]:
    """What the gradient of an embedding of ``rows`` rows takes to sum over ``count`` sorted indices.

    Source: pytorch ``aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu``. Equal indices are a segment, summed in
    float32 in parts of ten. How many there are is not waited for: there is room for the most there can be. Two numbers
    of 8 bytes are left out: of one size whatever the shape, they would hide which of two embeddings they belong to.
    """
    segments = min(count, rows)
    parts = count // EMBEDDING_PART + segments
    starts = [indices.new_empty((size,)) for size in (count, segments, segments, parts)]
    return [*starts, gradient.new_empty((parts, gradient.shape[-1]), dtype=torch.float32)]


def _sum(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    tensor, dims = args[0], args[1] or range(args[0].dim())
    output: torch.Tensor = func(*args, **kwargs)
    values.follow(func, args, kwargs, output)
    kept = {dim % tensor.dim() for dim in range(tensor.dim())} - {dim % tensor.dim() for dim in dims}
    if gpu.is_one and tensor.dim() - 1 in kept and tensor.stride(-1) == 1 and tensor.is_floating_point():
        scratch = sum_scratch(tensor.numel() // max(1, output.numel()), output.numel(), gpu)
        partial, finished = (output.new_empty((size,), dtype=torch.uint8) for size in scratch)
        del partial, finished
    return output


_REDUCING_THREADS, _WARP, _VECTOR = 512, 32, 4
_LEAST_VALUES, _MOST_VALUES = 16, 256


def sum_scratch(rows: int, columns: int, gpu: Gpu) -> tuple[int, int]:
    """Bytes that the sum over ``rows`` of neighbouring ``columns`` takes for partial sums and for who has finished.

    Where a thread would add up 256 numbers or more, several blocks share a column, and meet in global memory. The
    partial sums are in float32; each has room for a whole block of outputs.

    Source: pytorch ``aten/src/ATen/native/cuda/Reduce.cuh``, ``setReduceConfig``, ``global_memory_size``,
    ``semaphore_size``; seen on an H100 (qwen3-0.6b) and rehearsed on a T4 (gemma-3-1b).
    """
    vector = math.gcd(columns, _VECTOR)
    outputs, threads = columns // vector, _REDUCING_THREADS // vector
    widest, highest = (1 << min(most, threads).bit_length() - 1 for most in (outputs, rows))
    width = min(widest, _WARP)
    height = min(highest, threads // width)
    width = min(widest, threads // height)
    if rows < min(height * _LEAST_VALUES, _MOST_VALUES):
        return 0, 0
    values_, grid = -(-rows // height), -(-outputs // width)
    room = gpu.multiprocessors * (resident_threads(gpu.capability) // (width * height))
    if values_ < _MOST_VALUES or grid > room:
        return 0, 0
    blocks = max(min(-(-room // grid), -(-values_ // _LEAST_VALUES)), -(-values_ // _MOST_VALUES))
    return (4 * columns * blocks * width * vector, 4 * grid) if blocks > 1 else (0, 0)


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


def _quantise_4bit(gpu: Gpu | None, func: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales come first, then the packed weight: the meta kernel has them the other way round.

    Source: bitsandbytes ``backends/cuda/ops.py``, ``quantize_4bit``.
    """
    weight, blocksize, storage = args[0], args[1], args[3]
    scales = weight.new_empty((-(-weight.numel() // blocksize),), dtype=torch.float32)
    packed = weight.new_empty(((weight.numel() + 1) // (2 * storage.itemsize), 1), dtype=storage)
    return packed, scales


def _quantise_blockwise(gpu: Gpu | None, func: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`_quantise_4bit`, for ``quantize_blockwise``."""
    values, _, blocksize = args
    scales = values.new_empty((-(-values.numel() // blocksize),), dtype=torch.float32)
    return values.new_empty(values.shape, dtype=torch.uint8), scales


_FUSED_UP_TO = 4


def _gemm_4bit(gpu: Gpu, func: Any, args: Any, kwargs: Any) -> Any:
    """The 4-bit product: for training shapes the weight is dequantised in full and dropped after the product.

    Source: bitsandbytes ``backends/cuda/ops.py``, ``gemm_4bit``: fused up to 4 rows, never above 1536; in between
    tables of timings decide for each GPU, and the dequantised weight, which is the larger need, is counted. Of nested
    scales both forms, without and with their offset, are kept until the product is there.
    """
    rows, in_features, blocksize = args[0].numel() // args[0].shape[-1], args[2][1], args[4]
    if rows <= _FUSED_UP_TO and in_features % blocksize == 0:
        return func(*args, **kwargs)
    return _product_in_4_bit(*args, **kwargs)


def _product_in_4_bit(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    shape: Any,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """``_dequant_linear_fallback``."""
    scales: list[torch.Tensor] = []
    if absmax_8bit is not None:
        scales.append(torch.empty_like(absmax_8bit, dtype=torch.float32))
        scales.append(scales[0] + absmax_offset)
    dequantised = inputs.new_empty(shape)
    product = torch.nn.functional.linear(inputs, dequantised, bias)
    while scales:
        scales.pop()  # before the weight, and the last of them first
    del dequantised
    return product


def _int8_quantise(gpu: Gpu | None, func: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Rows to int8. Of outliers, which depend on values, none are found.

    Source: bitsandbytes ``backends/cuda/ops.py``, ``int8_vectorwise_quant``.
    """
    tensor, threshold = args[0], args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
    scales = tensor.new_empty((tensor.numel() // tensor.shape[-1],), dtype=torch.float32)
    rows = tensor.new_empty(tensor.shape, dtype=torch.int8)
    if threshold <= 0:
        return rows, scales, None
    outliers = tensor.abs() >= threshold
    del outliers
    return rows, scales, tensor.new_empty((0,), dtype=torch.int64)


def _int8_product(gpu: Gpu | None, func: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 product without outliers: summed in int32, scaled to float16, cast to the type of the input.

    Source: bitsandbytes ``backends/default/ops.py``, ``int8_mixed_scaled_mm``; ``cuda/ops.py``,
    ``int8_mm_dequant``.
    """
    inputs, rows, weight = args[:3]
    no_outliers = inputs.new_empty((0,))
    product = rows.new_empty((*rows.shape[:-1], weight.shape[0]), dtype=torch.int32)
    scaled = product.new_empty(product.shape, dtype=torch.float16)
    return scaled.to(inputs.dtype), no_outliers


# --- experts ----------------------------------------------------------------------------------------------------------


def _grouped_mm(gpu: Gpu | None, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """The product of each expert with its tokens, in any floating type; rows of the result are 16-byte aligned.

    Source: pytorch ``aten/src/ATen/native/GroupedMMUtils.h`` and ``cuda/GroupedBlas.cpp``: what the bfloat16 kernel of
    compute capability 9 does not take is multiplied expert by expert into the same result. The meta kernel refuses it.
    """
    left, right, offsets = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs")
    if left.dim() == 2 and right.dim() == 2:
        shape = [offsets.shape[0], left.shape[0], right.shape[1]]
    elif left.dim() == 3 and right.dim() == 3:
        shape = [left.shape[0], left.shape[1], right.shape[2]]
    else:
        shape = [left.shape[-2], right.shape[-1]]
    row = _round_up(shape[-1], 16 // left.element_size())
    return left.new_empty([*shape[:-1], row])[..., : shape[-1]]


Kernel = Callable[[Any, Any, Any, Any], Any]


def common_kernels() -> dict[Any, Kernel]:
    """Rules that hold on every device."""
    table: dict[Any, Kernel] = {}
    if hasattr(aten, "_grouped_mm"):
        table[aten._grouped_mm.default] = _grouped_mm
    if hasattr(torch.ops.bitsandbytes, "int8_vectorwise_quant"):
        table[torch.ops.bitsandbytes.int8_vectorwise_quant.default] = _int8_quantise
        table[torch.ops.bitsandbytes.int8_mixed_scaled_mm.default] = _int8_product
    return table


def cuda_kernels() -> dict[Any, Kernel]:
    """The operators that are run by a rule of this module instead of by their own meta kernel."""
    table: dict[Any, Kernel] = common_kernels() | {
        aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
        aten.embedding_dense_backward.default: _embedding_backward,
        aten._safe_softmax.default: _safe_softmax,
        aten._softmax_backward_data.default: _softmax_backward,
        aten.sum.dim_IntList: _sum,
    }
    if hasattr(aten, "_scaled_dot_product_cudnn_attention_backward"):
        table[aten._scaled_dot_product_cudnn_attention_backward.default] = _cudnn_backward
    for name, kernel in (("quantize_4bit", _quantise_4bit), ("quantize_blockwise", _quantise_blockwise)):
        if hasattr(torch.ops.bitsandbytes, name):
            table[getattr(torch.ops.bitsandbytes, name).default] = kernel
    if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):
        table[torch.ops.bitsandbytes.gemm_4bit.default] = _gemm_4bit
    return table


# --- questions --------------------------------------------------------------------------------------------------------


def _scalar(func: Any, args: Any, kwargs: Any) -> Any:
    return values.answer(args[0], "a number").item()


def _nonzero(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    return _with_value(args[0], values.answer(args[0], "the positions").nonzero())


def _masked_index(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Indexing by a boolean mask: CUDA first turns the mask into positions (pytorch ``IndexingUtils.h``)."""
    indices: list[Any] = []
    for index in args[1]:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            positions = _with_value(index, values.answer(index, "the positions").nonzero())
            indices += list(positions.unbind(1))
        else:
            indices.append(index)
    return func(args[0], indices, *args[2:], **kwargs)


def _with_value(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return values.know(like.new_empty(value.shape, dtype=value.dtype), value)


def _has_mask(args: Any) -> bool:
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _equal(func: Any, args: Any, kwargs: Any) -> bool:
    """``torch.equal`` of what came out of weights: a comparison, then no (``native/cuda/Equal.cpp``)."""
    aten.all.default(aten.eq.Tensor(*args))
    return False


def question(func: Any, args: Any) -> Callable[[Any, Any, Any], Any] | None:
    """The rule for an operator whose result depends on values, or ``None``."""
    if func is aten._local_scalar_dense.default:
        return _scalar if args[0].is_meta else None
    if func is aten.nonzero.default:
        return _nonzero if args[0].is_meta else None
    if func is aten.equal.default:
        return _equal if args[0].is_meta else None
    if func in _INDEXING and args[0].is_meta and _has_mask(args):
        return _masked_index
    if func is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
        return _copied_off if values.value_of(args[1]) is not None or torch.distributed.is_initialized() else None
    return None


def _copied_off(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """To the host. Numbers that ranks send each other come back as this rank sent them (DDP's reducer)."""
    value = values.value_of(args[1])
    return args[0] if value is None else func(args[0], value)


_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
