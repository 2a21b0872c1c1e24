"""Gradients that autograd's engine adds in place: the trace, a real run on the CPU, and the engine itself agree."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fitplan.phase import Phase
from fitplan.trace.kernels import Gpu
from fitplan.trace.meta import meta_device
from fitplan.trace.recorder import Recorder

WIDTH, WORDS, LENGTH = 64, 1000, 16
EMBEDDING = WORDS * WIDTH * 4


class _Head(torch.autograd.Function):
    """A product whose gradient for the weight is a tensor of its own, as in fused losses."""

    @staticmethod
    def forward(ctx, states, weight):
        ctx.save_for_backward(states, weight)
        return states @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        return gradient @ weight, gradient.reshape(-1, WORDS).t() @ states.reshape(-1, WIDTH)


def _tied(head: Callable[..., torch.Tensor], device: str) -> Callable[[], torch.Tensor]:
    embedding = nn.Embedding(WORDS, WIDTH, device=device)
    ids = torch.zeros(1, LENGTH, dtype=torch.int64, device=device)
    return lambda: head(embedding(ids), embedding.weight).sum()


CASES = {
    "tied, gradient of its own": (lambda device: _tied(_Head.apply, device), 0),
    "tied, gradient a view": (lambda device: _tied(nn.functional.linear, device), EMBEDDING),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_what_the_engine_adds(name: str, device: str) -> None:
    make, added = CASES[name]
    recorder = Recorder(device)
    with recorder, meta_device(Gpu()) if device == "meta" else nullcontext():
        loss = make(device)
        recorder.enter(Phase.FORWARD)
        value = loss()
        recorder.enter(Phase.BACKWARD)
        before = len(recorder.trace.allocations)
        value.backward()
    sums = [a.size for a in recorder.trace.allocations[before:] if a.op == "aten.add.Tensor"]
    assert sum(sums) == added


def test_the_result_is_the_sum() -> None:
    values = torch.randn(8, requires_grad=True)
    with Recorder("cpu") as recorder:
        recorder.enter(Phase.FORWARD)
        used_twice = values * 1.0
        loss = (used_twice * 3.0 + used_twice.exp()).sum()
        recorder.enter(Phase.BACKWARD)
        loss.backward()
    torch.testing.assert_close(values.grad, 3.0 + values.detach().exp())


def test_what_somebody_holds_is_not_changed() -> None:
    leaf = torch.ones(4, requires_grad=True)
    held: list[torch.Tensor] = []
    with Recorder("cpu") as recorder:
        recorder.enter(Phase.FORWARD)
        used_twice = leaf * 1.0
        one, other = used_twice * 2.0, used_twice * 5.0
        used_twice.register_hook(lambda gradient: held.append(gradient))
        loss = (one + other).sum()
        recorder.enter(Phase.BACKWARD)
        loss.backward()
    assert held[0].tolist() == [7.0] * 4
    assert leaf.grad.tolist() == [7.0] * 4
