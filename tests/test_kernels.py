"""The rules of the CUDA stand-in against tables of sizes, worked out by hand from the sources that the rules cite.

The shapes are such that every rounding shows: lengths just below and above a tile, widths that are no powers of two.
"""

from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch

from fitplan.trace import values
from fitplan.trace.kernels import (
    Gpu,
    efficient_backward_scratch,
    embedding_backward_scratch,
    flash_backward_scratch,
    sum_scratch,
)
from fitplan.trace.meta import meta_device
from fitplan.trace.recorder import Recorder

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
A100 = Gpu((8, 0))
TURING = Gpu((7, 5))


def _empty(*shape: int, dtype: torch.dtype = BF16, **options: Any) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", **options)


def _allocated(run: Callable[[], Any], gpu: Gpu | None = A100) -> list[int]:
    """Bytes of what a call allocates, in order of time, its result among them."""
    return [size for _, size in _operators(run, gpu)]


def _operators(run: Callable[[], Any], gpu: Gpu | None = A100) -> list[tuple[str, int]]:
    recorder = Recorder("meta")
    with recorder, meta_device(gpu):
        kept = run()
        trace = recorder.finish()
    del kept
    return [(allocation.op, allocation.size) for allocation in trace.allocations]


# --- attention: scratch of the backward -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "key_heads", "sizes"),
    [
        # batch, heads, length, width: length rounded up to 128; width to 32, above 128 to 64; float32
        ((2, 8, 60, 64), 8, [2 * 8 * 128 * 4, 2 * 128 * 8 * 64 * 4]),
        ((2, 8, 65, 64), 8, [2 * 8 * 128 * 4, 2 * 128 * 8 * 64 * 4]),
        ((2, 8, 128, 64), 8, [2 * 8 * 128 * 4, 2 * 128 * 8 * 64 * 4]),
        ((2, 8, 129, 64), 8, [2 * 8 * 256 * 4, 2 * 256 * 8 * 64 * 4]),
        ((1, 4, 60, 72), 4, [4 * 128 * 4, 128 * 4 * 96 * 4]),
        ((1, 4, 60, 136), 4, [4 * 128 * 4, 128 * 4 * 192 * 4]),
        # grouped queries: dk and dv for every query head, in the type and at the length of the keys
        ((2, 8, 65, 64), 2, [2 * 8 * 128 * 4, 2 * 128 * 8 * 64 * 4, 2 * 65 * 8 * 64 * 2, 2 * 65 * 8 * 64 * 2]),
    ],
)
def test_scratch_of_the_flash_backward(shape: tuple[int, ...], key_heads: int, sizes: list[int]) -> None:
    batch, _, length, width = shape
    scratch = flash_backward_scratch(_empty(*shape), _empty(batch, key_heads, length, width))
    assert [tensor.nbytes for tensor in scratch] == sizes


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        # delta; then tiles of 64 x 64 up to a width of 64, else of 128 x 128, each with 16 bytes for a lock; float32
        ((2, 8, 60, 64), [2 * 8 * 60 * 4, 2 * 8 * (64 * 64 * 4 + 16)]),
        ((2, 8, 65, 64), [2 * 8 * 65 * 4, 2 * 8 * 2 * (64 * 64 * 4 + 16)]),
        ((1, 4, 60, 72), [4 * 60 * 4, 4 * (128 * 128 * 4 + 16)]),
        ((1, 2, 129, 160), [2 * 129 * 4, 2 * 4 * (128 * 128 * 4 + 16)]),
    ],
)
def test_scratch_of_the_memory_efficient_backward(shape: tuple[int, ...], sizes: list[int]) -> None:
    assert [tensor.nbytes for tensor in efficient_backward_scratch(_empty(*shape))] == sizes


@pytest.mark.parametrize(
    ("by_rows", "masked", "copies"), [(True, False, 0), (False, False, 2), (True, True, 0), (False, True, 1)]
)
def test_the_backward_copies_what_does_not_lie_by_rows(by_rows: bool, masked: bool, copies: int) -> None:
    """Flash copies gradient and output, the memory-efficient kernel the gradient: 65 x 4 heads x 64 in bfloat16."""
    shape, order = ((1, 65, 4, 64), (0, 2, 1, 3)) if by_rows else ((1, 4, 65, 64), (0, 1, 2, 3))
    query, key, value, gradient = (_empty(*shape).permute(order) for _ in range(4))
    query.requires_grad_()
    mask = _empty(1, 4, 65, 72)[..., :65] if masked else None

    def run() -> Any:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=not masked)
        return torch.autograd.grad(output, query, gradient)

    assert [size for op, size in _operators(run) if "contiguous" in op] == [4 * 65 * 64 * 2] * copies


# --- attention: which kernel ------------------------------------------------------------------------------------------

FLASH, EFFICIENT, MATH = "flash", "efficient", "math"


def _attention(
    heads: int,
    key_heads: int,
    width: int,
    dtype: torch.dtype,
    mask: torch.Tensor | None = None,
    *,
    enable_gqa: bool = False,
) -> Callable[[], Any]:
    def run() -> Any:
        query = _empty(2, heads, 16, width, dtype=dtype, requires_grad=True)
        key, value = (_empty(2, key_heads, 16, width, dtype=dtype) for _ in range(2))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=enable_gqa)

    return run


def _kernel(run: Callable[[], Any], gpu: Gpu) -> str:
    operators = " ".join(op for op, _ in _operators(run, gpu))
    return next((name for name in (FLASH, EFFICIENT) if f"{name}_attention" in operators), MATH)


@pytest.mark.parametrize(
    ("gpu", "run", "kernel"),
    [
        (A100, _attention(4, 4, 64, BF16), FLASH),
        (A100, _attention(4, 4, 64, F16), FLASH),
        (A100, _attention(4, 4, 72, BF16), FLASH),
        (A100, _attention(4, 4, 60, BF16), FLASH),  # padded to 64
        (A100, _attention(4, 4, 256, BF16), FLASH),
        (A100, _attention(4, 4, 264, BF16), EFFICIENT),
        (A100, _attention(4, 4, 64, F32), EFFICIENT),
        (A100, _attention(4, 4, 68, F32), EFFICIENT),
        (A100, _attention(4, 4, 66, F32), MATH),  # float32 in fours
        (A100, _attention(4, 1, 64, BF16, enable_gqa=True), FLASH),
        (A100, _attention(4, 1, 64, BF16), MATH),  # grouped queries only where they are asked for
        (A100, _attention(4, 1, 64, F32, enable_gqa=True), EFFICIENT),  # keys and values are repeated
        (A100, _attention(4, 4, 64, BF16, _empty(2, 1, 16, 16)), EFFICIENT),
        (A100, _attention(4, 4, 60, BF16, _empty(2, 1, 16, 16)), MATH),  # bfloat16 in eights
        (A100, _attention(4, 4, 64, BF16, _empty(16, 16, 4).permute(2, 0, 1)[None]), MATH),  # a strided mask
        (TURING, _attention(4, 4, 64, F16), EFFICIENT),
        (TURING, _attention(4, 4, 64, BF16), MATH),
    ],
)
def test_attention_takes_the_kernel_that_cuda_takes(gpu: Gpu, run: Callable[[], Any], kernel: str) -> None:
    assert _kernel(run, gpu) == kernel


def test_what_flash_saves() -> None:
    """The output, and the sums of each row in float32; grouped queries do not change that."""
    sizes = [size for op, size in _operators(_attention(4, 2, 64, BF16, enable_gqa=True)) if FLASH in op]
    assert sizes[:2] == [2 * 4 * 16 * 64 * 2, 2 * 4 * 16 * 4]


# --- embedding and dropout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rows", "sizes"),
    [
        (0, 5000, [0, 0, 0, 0, 0]),
        # offsets, parts of a segment, where they start, offsets of parts; sums of 16 columns
        (3073, 5000, [24_584, 24_584, 24_584, 8 * (307 + 3073), 4 * 16 * (307 + 3073)]),
        (3079, 100, [24_632, 800, 800, 8 * (307 + 100), 4 * 16 * (307 + 100)]),
        (3080, 100, [24_640, 800, 800, 8 * (308 + 100), 4 * 16 * (308 + 100)]),
    ],
)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_scratch_of_the_gradient_of_an_embedding(count: int, rows: int, sizes: list[int], dtype: torch.dtype) -> None:
    gradient, indices = _empty(7, 16, dtype=dtype), _empty(7, dtype=torch.int64)
    scratch = embedding_backward_scratch(gradient, indices, count, rows)
    assert [tensor.nbytes for tensor in scratch] == sizes


@pytest.mark.parametrize(("tokens", "sorted_bytes"), [(3072, 0), (3073, 24_584)])
def test_an_embedding_sorts_beyond_3072_tokens(tokens: int, sorted_bytes: int) -> None:
    table, indices, gradient = _empty(5000, 16), _empty(1, tokens, dtype=torch.int64), _empty(1, tokens, 16)
    sizes = _allocated(lambda: torch.ops.aten.embedding_dense_backward(gradient, indices, 5000, -1, False))
    assert sizes[:2] == [sorted_bytes, sorted_bytes]
    assert table.nbytes in sizes
    assert sizes[-1] == (4 * 16 * (307 + 3073) if sorted_bytes else 0)


@pytest.mark.parametrize(
    ("p", "train", "dtype", "gpu", "sizes"),
    [
        (0.1, True, F32, A100, [400, 100]),  # the output, and a mask of one byte an element
        (0.1, True, BF16, A100, [200, 100]),
        (0.1, False, BF16, A100, []),
        (0.0, True, BF16, A100, []),
        (1.0, True, BF16, A100, [2, 200]),
    ],
)
def test_dropout(p: float, train: bool, dtype: torch.dtype, gpu: Gpu, sizes: list[int]) -> None:
    tensor = _empty(10, 10, dtype=dtype, requires_grad=True)
    assert _allocated(lambda: torch.nn.functional.dropout(tensor, p, train), gpu) == sizes


def test_dropout_on_the_cpu_keeps_no_mask_of_bytes() -> None:
    tensor = _empty(10, 10, dtype=F32, requires_grad=True)
    assert 100 not in _allocated(lambda: torch.nn.functional.dropout(tensor, 0.1), None)


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.ops.bitsandbytes, "gemm_4bit"), reason="bitsandbytes before 0.50 has no such op")
@pytest.mark.parametrize(
    ("rows", "columns", "nested", "sizes"),
    [
        (4, 128, True, [4 * 96 * 2]),  # fused: the result only
        (5, 128, True, [768, 768, 96 * 128 * 2, 5 * 96 * 2]),  # 192 scales in float32, without and with offset; weight
        (5, 128, False, [96 * 128 * 2, 5 * 96 * 2]),
        (4, 96, False, [96 * 96 * 2, 4 * 96 * 2]),  # a row is no whole number of blocks
    ],
)
def test_product_in_4_bit(rows: int, columns: int, nested: bool, sizes: list[int]) -> None:
    blocks = 96 * columns // 64
    scales = [_empty(blocks, dtype=torch.uint8), _empty(256, dtype=F32), _empty(dtype=F32)] if nested else [None] * 3
    absmax = _empty(1 if nested else blocks, dtype=F32)
    weight, inputs = _empty(96 * columns // 2, 1, dtype=torch.uint8), _empty(1, rows, columns)

    def run() -> Any:
        return torch.ops.bitsandbytes.gemm_4bit.default(inputs, weight, [96, columns], absmax, 64, "nf4", None, *scales)

    assert _allocated(run) == sizes


@pytest.mark.parametrize(
    ("threshold", "sizes"),
    [
        (0.0, [3 * 4, 3 * 64]),  # scales of the rows in float32, the rows in int8
        (6.0, [3 * 4, 3 * 64, 3 * 64 * 2, 3 * 64, 0]),  # and: are there outliers? none are found
    ],
)
def test_rows_to_int8(threshold: float, sizes: list[int]) -> None:
    tensor = _empty(3, 64, dtype=F16)
    assert _allocated(lambda: bitsandbytes.functional.int8_vectorwise_quant(tensor, threshold)) == sizes


@pytest.mark.parametrize(("dtype", "cast"), [(F16, []), (BF16, [3 * 96 * 2]), (F32, [3 * 96 * 4])])
def test_product_in_int8(dtype: torch.dtype, cast: list[int]) -> None:
    """Summed in int32, scaled to float16, cast to the type of the input."""
    inputs, rows, weight = _empty(3, 64, dtype=dtype), _empty(3, 64, dtype=torch.int8), _empty(96, 64, dtype=torch.int8)
    of_rows, of_weight = _empty(3, dtype=F32), _empty(96, dtype=F32)

    def run() -> Any:
        return torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(inputs, rows, weight, of_rows, of_weight)

    assert _allocated(run) == [0, 3 * 96 * 4, 3 * 96 * 2, *cast]


# --- experts and masks ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_grouped_mm"), reason="this PyTorch has no grouped product")
@pytest.mark.parametrize(
    ("left", "right", "dtype", "size"),
    [
        # rows of the result are multiples of 16 bytes
        ((10, 16), (4, 16, 72), BF16, 10 * 72 * 2),
        ((10, 16), (4, 16, 70), BF16, 10 * 72 * 2),
        ((10, 16), (4, 16, 65), BF16, 10 * 72 * 2),
        ((10, 16), (4, 16, 70), F32, 10 * 72 * 4),
        ((10, 16), (4, 16, 69), F32, 10 * 72 * 4),
        ((10, 16), (4, 16, 68), F32, 10 * 68 * 4),
        ((6, 20), (20, 70), BF16, 4 * 6 * 72 * 2),  # a gradient of the weights: one product for each of four experts
        ((2, 3, 16), (2, 16, 70), BF16, 2 * 3 * 72 * 2),
        ((4, 3, 16), (16, 70), BF16, 3 * 72 * 2),
    ],
)
def test_grouped_product(left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype, size: int) -> None:
    offsets = _empty(4, dtype=torch.int32) if len(left) + len(right) != 6 else None
    tensors = _empty(*left, dtype=dtype), _empty(*right, dtype=dtype)
    assert _allocated(lambda: torch.ops.aten._grouped_mm(*tensors, offsets)) == [size]


def test_indexing_by_a_mask_makes_positions_first() -> None:
    """Seven of twenty are chosen: two positions of int64 each, then rows of three in bfloat16."""
    chosen = torch.arange(20).view(4, 5) % 3 == 0
    mask = values.know(_empty(4, 5, dtype=torch.bool), chosen)
    tensor = _empty(4, 5, 3)
    assert int(chosen.sum()) == 7
    assert _allocated(lambda: tensor[mask]) == [7 * 2 * 8, 7 * 3 * 2]


def test_tokens_are_spread_over_the_experts() -> None:
    """Token t goes to experts 2t and 2t + 1, modulo four."""

    def run() -> Any:
        return torch.topk(_empty(2, 3, 4, dtype=F32), 2)[1]

    with meta_device(A100):
        found = values.value_of(run())
    assert found is not None
    assert found.tolist() == [[[0, 1], [2, 3], [0, 1]], [[2, 3], [0, 1], [2, 3]]]


def test_attention_in_plain_steps_on_turing() -> None:
    """In bfloat16 before Ampere: float32 scores, the mask added in place, one softmax, one byte an element beside."""
    scores = 2 * 4 * 16 * 16

    def run() -> Any:
        with torch.no_grad():
            query, key = _empty(2, 4, 16, 64, dtype=BF16), _empty(2, 4, 16, 64, dtype=BF16)
            return torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True)

    sizes = [size for _, size in _operators(run, TURING)]
    assert sizes.count(scores * 4) == 2  # scores, weights
    assert scores in sizes  # rows that are masked as a whole
    assert scores * 2 in sizes  # the weights in bfloat16, which nobody takes


def test_the_gradient_of_a_softmax_takes_a_product_first() -> None:
    def run() -> Any:
        return torch.ops.aten._softmax_backward_data(_empty(60, 65, dtype=F32), _empty(60, 65, dtype=F32), -1, F32)

    assert [size for op, size in _operators(run) if "new_empty" in op] == [60 * 65 * 4]


# --- sums -------------------------------------------------------------------------------------------------------------

H100, T4 = Gpu.exactly((9, 0), 132), Gpu.exactly((7, 5), 40)


@pytest.mark.parametrize(
    ("rows", "columns", "gpu", "sizes"),
    [
        # 4 outputs a thread, 32 x 4 threads a block, 16 numbers or more a thread; 4 bytes x columns x blocks x 128
        (8192, 128, H100, (4 * 128 * 128 * 128, 4)),  # the norm of queries of qwen3-0.6b: 8 MiB measured
        (4096, 128, H100, (4 * 128 * 64 * 128, 4)),  # that of its keys: 4 MiB measured
        (2048, 256, H100, (4 * 256 * 32 * 128, 8)),  # gemma-3-1b: 4 MiB measured
        (2048, 256, T4, (4 * 256 * 32 * 128, 8)),
        (1020, 4096, H100, (0, 0)),  # 255 numbers a thread
        (1021, 4096, H100, (4 * 4096 * 16 * 128, 4 * 32)),
        (8192, 4096, H100, (4 * 4096 * 66 * 128, 4 * 32)),  # 132 x 16 blocks run at once, 32 of them side by side
        (8192, 4096, T4, (4 * 4096 * 10 * 128, 4 * 32)),  # 40 x 8
        (65536, 4096, T4, (4 * 4096 * 64 * 128, 4 * 32)),  # no thread adds up more than 256
        (2048, 128 * 4 * 400, T4, (0, 0)),  # the columns alone keep it busy
        (65536, 6, H100, (4 * 6 * 32 * 4, 4 * 2)),  # 2 outputs a thread, 2 x 128 threads
        (65536, 5, H100, (4 * 5 * 32 * 4, 4 * 2)),  # 1 output, 4 x 128 threads
    ],
)
def test_scratch_of_a_sum(rows: int, columns: int, gpu: Gpu, sizes: tuple[int, int]) -> None:
    assert sum_scratch(rows, columns, gpu) == sizes


def test_a_sum_takes_its_scratch_on_one_gpu_only() -> None:
    def run() -> Any:
        return _empty(2, 1024, 4, 256).sum((0, 1, 2))

    partial = 4 * 256 * 128 * 128
    assert _allocated(run, H100) == [2 * 1024 * 4 * 256 * 2, 256 * 2, partial, 8]
    assert _allocated(run, Gpu((9, 0))) == [2 * 1024 * 4 * 256 * 2, 256 * 2]
    assert _allocated(lambda: _empty(2, 1024, 1024).sum(-1), H100)[2:] == []
