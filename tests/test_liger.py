"""Liger's kernels on the meta device."""

import sys
from dataclasses import replace
from typing import Any

import pytest
from families import FAMILIES

import fitplan
from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError, MissingDependency
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.recipe import shape_of
from fitplan.footprint.size import Numbers, Shape, Size, lengths_of, loss_piece, size_through
from fitplan.memory import estimate_trace
from fitplan.setup import TrainingSetup
from fitplan.step.architecture import load_config
from fitplan.surveyor import shaped, surveyed
from fitplan.trace import tracing
from fitplan.trace.events import Category, Trace
from fitplan.trace.kernels import Gpu
from fitplan.tracer import trace_job

LLAMA = {**FAMILIES["llama"], "hidden_size": 64, "vocab_size": 4096}
TOKENS = 512


def _traced(settings: dict[str, Any] = LLAMA, **changes: Any) -> Trace:
    setup = TrainingSetup(method="lora", seq_len=TOKENS, **changes)
    return tracing.trace_training(load_config(settings), setup, Gpu()).trace


def _of_the_loss(trace: Trace) -> list[int]:
    """Sizes, the largest first."""
    return sorted((a.size for a in trace.allocations if a.category is Category.LOGITS_AND_LOSS), reverse=True)


def test_the_loss_is_computed_in_pieces() -> None:
    """By the rule of ``fused_linear_cross_entropy_forward``: V / H = 64 pieces of 8 tokens, in bfloat16."""
    pytest.importorskip("liger_kernel")
    assert _of_the_loss(_traced())[0] == TOKENS * 4096 * 4
    trace = _traced(use_liger_kernel=True)
    piece = (TOKENS // (4096 // 64)) * 4096 * 2
    gradient = TOKENS * 64 * 2
    assert max(_of_the_loss(trace)) == max(piece, gradient)
    assert [size for size in _of_the_loss(trace) if size == piece]
    others = [a.size for a in trace.allocations if a.category is not Category.WORKSPACES]
    assert max(others) < TOKENS * 4096 * 2


def test_norms_keep_their_input_and_one_number_a_token() -> None:
    """Llama's own norm keeps a float32 copy of its input; Liger's one float32 number a token beside the input."""
    pytest.importorskip("liger_kernel")
    sizes = {how: [a.size for a in _traced(use_liger_kernel=how).allocations] for how in (False, True)}
    copies = {how: sum(size == TOKENS * 64 * 4 for size in found) for how, found in sizes.items()}
    assert copies[True] < copies[False]
    assert sum(size == TOKENS * 4 for size in sizes[True]) >= 5  # two a layer, and the last norm's


def test_the_next_trace_is_without() -> None:
    pytest.importorskip("liger_kernel")
    before = estimate_trace(_traced())
    assert estimate_trace(_traced(use_liger_kernel=True)) != before
    assert estimate_trace(_traced()) == before


def test_a_family_without_kernels_is_told() -> None:
    pytest.importorskip("liger_kernel")
    with pytest.raises(InputError, match="Liger has no kernels for models of type gpt2"):
        _traced({**FAMILIES["gpt2"], "n_positions": TOKENS}, use_liger_kernel=True)


def test_the_cpu_has_no_triton() -> None:
    setup = TrainingSetup(method="lora", seq_len=16, use_liger_kernel=True)
    with pytest.raises(InputError, match="GPU only"):
        tracing.trace_training(load_config(LLAMA), setup, None)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(MissingDependency, match="pip install liger-kernel"):
        _traced(use_liger_kernel=True)


def test_advice_on_a_shipped_model_traces_nothing() -> None:
    found = fitplan.advise("gpt2", gpu="4090", method="full").advice
    assert "Liger kernels" in found.unknown
    assert all(not proposal.setup.use_liger_kernel for proposal in found.levers)


def test_advice_that_may_trace_tries_it() -> None:
    pytest.importorskip("liger_kernel")
    found = fitplan.advise("llama-3.2-1b", vram="4GiB", seq_len=2048, trace=True).advice
    assert found.unknown == ()
    assert "Liger kernels" in [proposal.steps[0].name for proposal in found.levers]


def test_pieces_of_the_loss() -> None:
    """By hand from the rule: a power of two, and never more than there are."""
    assert [loss_piece(tokens, 32) for tokens in (1, 5, 64, 65, 2048, 3000, 4096)] == [1, 1, 2, 4, 64, 128, 128]
    assert loss_piece(3, 1) == 3


def test_a_piece_of_the_loss_is_simpler_than_a_rounded_length() -> None:
    """Of Phi-3, whose vocabulary is 10.4 times its width, both give the sizes at the corners of a region."""
    shapes = Shape(1, 5), Shape(1, 2044)
    points = [
        (lengths_of(shape, (8, 0), Numbers(loss_pieces=11)), 64_128 * loss_piece(shape.tokens, 11)) for shape in shapes
    ]
    assert [size // 8016 for _, size in points] == [8, 2048]
    assert size_through(points) == Size(64_128, ("k",))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_formula_with_liger_gives_the_trace(method: str) -> None:
    pytest.importorskip("liger_kernel")
    model = ModelConfig("tiny", "file", LLAMA)
    settings: dict[str, Any] = {"kbit_prepare": False} if method == "qlora" else {}
    setup = TrainingSetup(method=method, use_liger_kernel=True, **settings)
    footprint = surveyed(TrainingJob(model=model, setup=setup), lambda _: None)
    for shape in (Shape(1, 37, 0, 1), Shape(3, 999, 0, 2), Shape(2, 64, 0, 1)):
        job = shaped(setup, replace(shape, lora_r=4 if setup.lora_r else 0))
        piece = footprint.piece(shape_of(job))
        assert piece is not None
        traced = estimate_trace(trace_job(model, job, (8, 0), lambda _: None).trace)
        assert piece.estimate(shape_of(job), (8, 0)) == traced
        assert piece.peaks([shape.batch_size], shape_of(job), (8, 0)) == [traced.peak_allocated_bytes]
