"""Losses of a causal language model that are not ``transformers``' own: those of TRL, by version.

An example. The head of Llama-3 has 128256 rows; at 4096 tokens its logits take 2 GiB in float32, and what
cross-entropy keeps of them as much again. TRL 1.7 to 1.14 make logits of 256 tokens at a time and make them again in
backward: 0.13 GiB. Since 1.15 a tile of 4096 tokens by 32768 words is folded into four numbers a token, by a kernel
that works in place: 0.25 GiB in bfloat16, whatever the length.

What is done here takes the memory that TRL's own functions take, operator for operator. What those kernels write into
their tiles decides nothing of that, so here they write zeros.

Sources: trl 1.16 ``kernels/chunked_logprob.py``, ``trainer/utils.py`` (``add_fused_lm_head``) and
``trainer/sft_trainer.py`` (``compute_loss``); 1.14 ``trainer/sft_trainer.py`` (``_chunked_cross_entropy_loss``);
0.24 ``trainer/sft_trainer.py`` and ``trainer/utils.py`` (``entropy_from_logits``).
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from fitplan.errors import InputError
from fitplan.setup import FUSED_TILE_TOKENS, Loss
from fitplan.step.batch import IGNORED_LABEL
from fitplan.step.job import Place

PIECE = 256
"""Tokens of a piece of the chunked loss (``_CHUNKED_LM_HEAD_CHUNK_SIZE``)."""
PIECES_ON_META = 3
"""Those after these take what is like them: a few numbers, and in backward what the third has taken."""
TILE_TOKENS, TILE_WORDS = FUSED_TILE_TOKENS, 32768
"""Of the fused head (``TOKEN_CHUNK_SIZE``, ``_CHUNKED_LOGPROB_CHUNK_SIZE``)."""
ENTROPY_ROWS = 128
"""Rows whose entropy is computed at once (``entropy_from_logits``)."""

LossOfHead = Callable[[nn.Module, torch.Tensor, torch.Tensor, Any], torch.Tensor]


def change_loss(model: PreTrainedModel, loss: Loss, place: Place) -> None:
    """Have ``model``, without its adapters, compute its loss in the head, and make no logits.

    Raises:
        InputError: it has no head of its own.

    """
    head, base = model.get_output_embeddings(), model.base_model
    if head is None or base is model:
        raise InputError(f"loss {loss}: {type(model).__name__} has no output head of its own; choose loss logits")
    of_head: LossOfHead = _pieces if loss is Loss.CHUNKED else _fused(place)

    def loss_in_head(
        self: nn.Module, hidden: torch.Tensor, labels: torch.Tensor | None = None, count: Any = None
    ) -> torch.Tensor:
        return plain_head(hidden) if labels is None else of_head(self, hidden, labels, count)

    def forward(
        self: PreTrainedModel, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return {"loss": self.get_output_embeddings()(hidden, labels, num_items_in_batch)}

    plain_head = head.forward
    head.forward = MethodType(loss_in_head, head)
    model.forward = MethodType(forward, model)


# --- TRL 1.7 to 1.14: pieces ------------------------------------------------------------------------------------------


def _pieces(head: nn.Module, hidden: torch.Tensor, labels: torch.Tensor, count: Any) -> torch.Tensor:
    """The scored tokens first, then piece by piece, each of which is made again in backward."""
    hidden = hidden[..., :-1, :].reshape(-1, hidden.size(-1))
    labels = labels[..., 1:].reshape(-1)
    valid = labels != IGNORED_LABEL
    scored = valid.sum()
    correct = hidden.new_zeros((), dtype=torch.float32)
    entropy = hidden.new_zeros((), dtype=torch.float32)
    order = valid.to(torch.int8).argsort(descending=True, stable=True)
    hidden, labels = hidden[order], labels[order]
    until = int((scored / PIECE).ceil().clamp(min=1).to(torch.int64) * PIECE)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, min(until, PIECES_ON_META * PIECE) if hidden.is_meta else until, PIECE):
        rows = slice(start, start + PIECE)
        of_piece = checkpoint(_piece, hidden[rows], head.weight, head.bias, labels[rows], use_reentrant=False)
        loss, correct, entropy = loss + of_piece[0], correct + of_piece[1], entropy + of_piece[2]
    return loss / (scored.clamp(min=1) if count is None else count)


def _piece(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    if bias is not None:
        logits = logits + bias.float()
    log_p = functional.log_softmax(logits, dim=-1)
    loss = functional.nll_loss(log_p, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    valid = labels != IGNORED_LABEL
    correct = ((logits.argmax(dim=-1) == labels) & valid).sum().float()
    return loss, correct, (-(log_p.exp() * log_p).sum(dim=-1) * valid).sum()


# --- TRL since 1.15: the fused head -----------------------------------------------------------------------------------


def _fused(place: Place) -> LossOfHead:
    def fused(head: nn.Module, hidden: torch.Tensor, labels: torch.Tensor, count: Any) -> torch.Tensor:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
        mask = labels != IGNORED_LABEL
        of_tokens = _FusedHead.apply(hidden[mask], head.weight, head.bias, labels[mask], place)
        log_probs, _entropy, _is_top1 = (one.new_zeros(mask.shape).masked_scatter(mask, one) for one in of_tokens)
        of_model = -log_probs.sum() / (mask.sum().clamp(min=1) if count is None else count)  # which TRL leaves unused
        del of_model
        loss: torch.Tensor = (-log_probs).sum()
        return loss / (mask.sum() if count is None else count).clamp(min=1)

    return fused


class _FusedHead(torch.autograd.Function):
    """``ChunkedLogProbFunction``, with the outputs that ``SFTTrainer`` asks for."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor, place: Place
    ) -> tuple[torch.Tensor, ...]:
        """Log-probability, entropy and correctness of each token: float32, float32 and bool of [tokens]."""
        ctx.set_materialize_grads(False)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        statistics = [torch.zeros(len(hidden), device=hidden.device, dtype=torch.float32) for _ in range(7)]
        highest, exponents, weighted, _, _, before, chosen = statistics
        tile = torch.empty((min(len(hidden), TILE_TOKENS), TILE_WORDS), device=hidden.device, dtype=dtype)
        for rows in _tiles(hidden):
            part = hidden[rows].to(dtype)
            for words in _spans(len(weight), TILE_WORDS):
                _logits(part, weight[words].to(dtype), None if bias is None else bias[words].to(dtype), tile)
        exponents.fill_(1)  # as the kernel leaves it: a number that may be divided by
        total = highest + torch.log(exponents)
        log_probs = chosen - total
        entropy = total - weighted / exponents
        is_top1 = (chosen >= highest) & (chosen > before)
        ctx.save_for_backward(hidden, weight, bias, targets, total, entropy)
        ctx.dtype, ctx.place = dtype, place
        ctx.mark_non_differentiable(is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden states, weight and bias, summed in float32 and cast at the end."""
        hidden, weight, bias, *_ = ctx.saved_tensors
        sums = [
            torch.zeros(of.shape, device=of.device, dtype=torch.float32) if needed else None
            for of, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        tile = torch.empty((min(len(hidden), TILE_TOKENS), TILE_WORDS), device=hidden.device, dtype=ctx.dtype)
        _incoming = gradients[0].float().contiguous() if gradients[0] is not None else None
        for rows in _tiles(hidden):
            part = hidden[rows].to(ctx.dtype)
            for words in _spans(len(weight), TILE_WORDS):
                matrix = weight[words].to(ctx.dtype)
                logits = _logits(part, matrix, None if bias is None else bias[words].to(ctx.dtype), tile)
                logits.zero_()
                if sums[0] is not None:
                    _add_product(sums[0][rows], logits, matrix, ctx.place)
                if sums[1] is not None:
                    _add_product(sums[1][words], logits.t(), part, ctx.place)
                if sums[2] is not None:
                    sums[2][words] += logits.sum(dim=0, dtype=torch.float32)
        pairs = zip(sums, (hidden, weight, bias), strict=True)
        return (*(None if one is None else one.to(of.dtype) for one, of in pairs), None, None)


def _tiles(hidden: torch.Tensor) -> list[slice]:
    """The tokens of each tile; on meta of one, which is the largest: the next ones take what it has given back."""
    tiles = _spans(len(hidden), TILE_TOKENS)
    return tiles[:1] if hidden.is_meta else tiles


def _spans(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: torch.Tensor) -> torch.Tensor:
    """Of a tile, written into the buffer."""
    logits = tile[: len(hidden), : len(weight)]
    torch.mm(hidden, weight.t(), out=logits)
    return logits if bias is None else logits.add_(bias)


def _add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor, place: Place) -> None:
    """``into += left @ right`` in float32, which cuBLAS itself writes of 16-bit factors since PyTorch 2.8."""
    if place.kernels == "cuda" and left.dtype is not torch.float32:
        if not into.is_meta:  # where there is no such kernel, and nothing would be taken
            torch.addmm(into, left, right, out_dtype=torch.float32, out=into)
    else:
        into.addmm_(left.float(), right.float())


# --- TRL 0.22 to 1.6: metrics of the logits ---------------------------------------------------------------------------


def metrics(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    """Entropy and accuracy, which ``SFTTrainer`` computes beside the loss, before the logits go."""
    with torch.no_grad():
        parts = []
        pieces = logits.reshape(-1, logits.size(-1)).split(ENTROPY_ROWS, dim=0)
        for rows in pieces[:1] if logits.is_meta else pieces:
            log_p = functional.log_softmax(rows, dim=-1)
            parts.append(-(torch.exp(log_p) * log_p).sum(-1))
        entropy = logits.new_empty(logits.shape[:-1]) if logits.is_meta else torch.cat(parts).view(logits.shape[:-1])
        if "attention_mask" in inputs:
            entropy = torch.sum(entropy * inputs["attention_mask"]) / inputs["attention_mask"].sum()
        shifted = logits[..., :-1, :].contiguous()
        labels = inputs["labels"][..., 1:].contiguous()
        right = (shifted.argmax(dim=-1) == labels) & (labels != IGNORED_LABEL)
        right.sum()
