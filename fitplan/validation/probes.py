"""Single operators whose kernels take scratch memory: what they take on a GPU, and what the trace says they take."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fitplan.phase import Phase
from fitplan.trace.kernels import Gpu
from fitplan.trace.meta import meta_device
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import fresh_process

Call = Callable[[], Any]
"""Runs the operator; what it returns is kept."""

BF16 = torch.bfloat16


def attention(backend: SDPBackend | None, key_heads: int = 8, *, masked: bool = False) -> Callable[[str], Call]:
    """Forward and backward of scaled dot product attention over 8 heads of 1024 x 64; ``None``: as PyTorch chooses."""

    def prepare(device: str) -> Call:
        query = torch.ones(2, 8, 1024, 64, dtype=BF16, device=device, requires_grad=True)
        key, value = (
            torch.ones(2, key_heads, 1024, 64, dtype=BF16, device=device, requires_grad=True) for _ in range(2)
        )
        mask = torch.zeros(2, 1, 1024, 1024, dtype=BF16, device=device) if masked else None
        gradient = torch.ones_like(query)

        def call() -> Any:
            with sdpa_kernel(backend) if backend is not None else nullcontext():
                output = nn.functional.scaled_dot_product_attention(
                    query, key, value, mask, is_causal=mask is None, enable_gqa=key_heads != 8
                )
            return torch.autograd.grad(output, (query, key, value), gradient)

        return call

    return prepare


def embedding(device: str) -> Call:
    """Backward of an embedding of 4096 tokens."""
    table = torch.ones(1000, 256, device=device, requires_grad=True)
    tokens = torch.zeros(4096, dtype=torch.int64).to(device)
    gradient = torch.ones(4096, 256, device=device)
    return lambda: torch.autograd.grad(nn.functional.embedding(tokens, table), table, gradient)


def product_in_4_bit(device: str) -> Call:
    """A linear layer of 1024 x 2048 in NF4, on 2048 rows."""
    import bitsandbytes as bnb

    layer: Any = bnb.nn.Linear4bit(1024, 2048, bias=False, compute_dtype=BF16, quant_type="nf4")
    weight = torch.ones(2048, 1024, dtype=BF16, device=device)
    layer.weight = type(layer.weight)(weight, requires_grad=False, **layer.weight.__dict__)._quantize(device)
    rows = torch.ones(2048, 1024, dtype=BF16, device=device)
    del weight
    return lambda: layer(rows)


def fused_adamw(device: str) -> Call:
    """A later step of fused AdamW over a million numbers."""
    param = torch.ones(1024, 1024, device=device, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = torch.optim.AdamW([param], fused=True)
    optimizer.step()
    return optimizer.step


def cross_entropy(device: str) -> Call:
    """Loss and its gradient over 512 tokens of a vocabulary of 32000, in float32 as transformers computes it."""
    logits = torch.ones(512, 32000, dtype=BF16, device=device, requires_grad=True)
    labels = torch.zeros(512, dtype=torch.int64).to(device)
    return lambda: torch.autograd.grad(nn.functional.cross_entropy(logits.float(), labels), logits)


def clipping(device: str) -> Call:
    """The norm of 64 gradients, and scaling them."""
    params = [torch.ones(256, 256, device=device, requires_grad=True) for _ in range(64)]
    for param in params:
        param.grad = torch.ones_like(param)
    return lambda: nn.utils.clip_grad_norm_(params, 1.0)


PROBES: dict[str, Callable[[str], Call]] = {
    "attention, as chosen": attention(None),
    "attention, as chosen, grouped queries": attention(None, 2),
    "attention, as chosen, masked": attention(None, masked=True),
    "attention, flash": attention(SDPBackend.FLASH_ATTENTION),
    "attention, flash, grouped queries": attention(SDPBackend.FLASH_ATTENTION, 2),
    "attention, cuDNN": attention(SDPBackend.CUDNN_ATTENTION),
    "attention, cuDNN, grouped queries": attention(SDPBackend.CUDNN_ATTENTION, 2),
    "attention, cuDNN, masked": attention(SDPBackend.CUDNN_ATTENTION, masked=True),
    "attention, memory-efficient": attention(SDPBackend.EFFICIENT_ATTENTION, masked=True),
    "embedding backward": embedding,
    "product in 4 bit": product_in_4_bit,
    "fused AdamW": fused_adamw,
    "cross entropy": cross_entropy,
    "gradient clipping": clipping,
}


def predicted_scratch(prepare: Callable[[str], Call], gpu: Gpu) -> int:
    """Bytes that the trace sees at the peak of the call beyond what is there when it has returned."""
    recorder = Recorder("meta")
    recorder.enter(Phase.FORWARD)
    with fresh_process(), recorder, meta_device(gpu):
        call = prepare("meta")
        start = len(recorder.trace.events)
        kept = call()
        end = len(recorder.trace.events)
    del kept
    return _beyond_the_end([sign * one.size for one, sign, _ in recorder.trace.sizes()][start:end])


def _beyond_the_end(changes: list[int]) -> int:
    most = live = 0
    for change in changes:
        live += change
        most = max(most, live)
    return most - live


def measured_scratch(prepare: Callable[[str], Call], device: torch.device) -> int:
    """The same, by PyTorch's counters; the second call, when handles and plans are there."""
    call = prepare(str(device))
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = call()
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    del kept
    return int(stats["requested_bytes.all.peak"] - stats["requested_bytes.all.current"])


def measured_workspace(device: torch.device) -> int:
    """What the first product of this thread leaves behind beside its result: the workspace of a cuBLAS handle."""
    matrix = torch.ones(256, 256, dtype=BF16, device=device)
    before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
    product = matrix @ matrix
    after = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
    return int(after - before - product.nbytes)
