"""Stacks: whose defaults are taken, and that the step they mean takes what the stacks' own runs took."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from trl_runs import REAL, REHEARSED, Run, question

import fitplan
from fitplan.errors import InputError
from fitplan.question import Question
from fitplan.setup import FUSED_TILE_TOKENS, Loss, Stack, TrainingSetup
from fitplan.stacks import STACKS
from fitplan.step import losses
from fitplan.step.architecture import load_config
from fitplan.step.distribute import distribute
from fitplan.step.job import Place
from fitplan.step.model import build_skeleton, load_model
from fitplan.step.run import train

GIB = 2**30


def _asked(**settings: Any) -> dict[str, Any]:
    method = settings.pop("method", None)
    return Question("llama-3.2-1b", method=method, settings=tuple(settings.items())).job().setup.to_dict()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"method": "full"}, {"batch_size": 8, "seq_len": 1024, "dtype": "float32", "loss": "fused"}),
        ({"method": "lora"}, {"lora_r": 16, "lora_dropout": 0.05, "target_modules": "peft-default"}),
        ({"method": "lora"}, {"adapter_dtype": None, "mixed_precision": "bf16"}),
        ({"method": "qlora"}, {"adapter_dtype": "bfloat16", "kbit_prepare": False, "double_quant": False}),
        ({"method": "qlora"}, {"compute_dtype": "float32", "stack_version": "1.16"}),
        ({"method": "qlora", "dtype": "bfloat16"}, {"compute_dtype": "bfloat16"}),
        ({"method": "qlora", "quant": "int8"}, {"double_quant": None, "adapter_dtype": "bfloat16"}),
        ({"method": "lora", "adapter": "prompt", "gradient_checkpointing": False}, {"lora_r": None}),
        ({"method": "full", "task": "sequence-classification"}, {"loss": "logits", "batch_size": 8}),
        ({"method": "qlora", "stack_version": "1.14"}, {"loss": "chunked", "dtype": "float32"}),
        ({"method": "qlora", "stack_version": "1.6"}, {"loss": "metrics", "adapter_dtype": "bfloat16"}),
        ({"method": "qlora", "stack_version": "0.29.1"}, {"loss": "metrics", "dtype": "float32"}),
        ({"method": "qlora", "stack_version": "0.26"}, {"dtype": "bfloat16", "kbit_prepare": False}),
        ({"method": "qlora", "stack_version": "0.24"}, {"kbit_prepare": True, "kbit_cast_back": "embeddings"}),
        ({"method": "qlora", "stack_version": "2.0"}, {"loss": "fused"}),
    ],
)
def test_defaults_of_trl(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    setup = _asked(stack="trl", **asked)
    assert {name: setup[name] for name in expected} == expected


def test_without_a_stack_nothing_has_changed() -> None:
    assert _asked(method="qlora") == TrainingSetup(method="qlora").to_dict() | {"task": None}
    assert _asked(method="qlora")["loss"] == "logits"


def test_a_version_that_is_not_known_is_told() -> None:
    with pytest.raises(InputError, match=r"TRL is known from 0\.22 on"):
        _asked(stack="trl", stack_version="0.12")
    with pytest.raises(InputError, match="stack_version must be such as"):
        _asked(stack="trl", stack_version="newest")
    with pytest.raises(InputError, match=r"stack_version 1\.16 with stack trainer"):
        _asked(stack_version="1.16")


@pytest.mark.parametrize("stack", [stack for stack in Stack if stack is not Stack.TRAINER])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_stack_makes_a_setup(stack: Stack, method: str) -> None:
    for release in STACKS[stack].releases:
        version = ".".join(map(str, release.since))
        setup = _asked(stack=str(stack), stack_version=version, method=method)
        assert (setup["stack"], setup["stack_version"]) == (stack, version)


def test_a_gpu_without_bfloat16_gets_float16_all_the_same() -> None:
    settings = (("stack", "trl"),)
    setup = Question("llama-3.2-1b", gpu="t4", method="lora", settings=settings).job().setup
    assert (setup.dtype, setup.mixed_precision) == ("float32", "fp16")


# --- what the step takes ----------------------------------------------------------------------------------------------


def _predicted(run: Run, gpu: str) -> fitplan.MemoryEstimate:
    settings = question(run)
    return fitplan.check(settings.pop("model"), gpu=gpu, trace=True, **settings).plans[0].estimate


@pytest.mark.parametrize("run", REAL, ids=lambda run: run[0])
def test_what_trl_took_on_a_real_gpu(run: Run) -> None:
    _, allocated, reserved, _ = run
    estimate = _predicted(run, "h100")
    assert estimate.peak_allocated_bytes == pytest.approx(allocated * GIB, rel=0.003)
    assert estimate.peak_reserved_bytes == pytest.approx(reserved * GIB, rel=0.06)


@pytest.mark.parametrize("run", REHEARSED, ids=lambda run: run[0])
def test_what_trl_took_in_a_rehearsal(run: Run) -> None:
    _, allocated, reserved, _ = run
    estimate = _predicted(run, "a100")
    assert estimate.peak_allocated_bytes == pytest.approx(allocated * GIB, rel=0.005)
    beside = "offloaded" in run[0]  # what comes back has a stream with a pool of its own, which the replay has not
    assert estimate.peak_reserved_bytes == pytest.approx(reserved * GIB, rel=0.04 if beside else 0.03)


def _peak(**settings: Any) -> int:
    found = fitplan.check("llama-3.2-1b", gpu="h100", trace=True, **settings).plans[0]
    return found.estimate.peak_allocated_bytes


def test_a_tile_of_the_fused_head_is_what_its_source_says() -> None:
    """4096 tokens by 32768 words in bfloat16, whatever the length; where activations are small it is the peak."""
    common = {"stack": "trl", "method": "lora", "dtype": "bfloat16", "batch_size": 1, "target_modules": "q_proj"}
    plan = fitplan.check("llama-3.2-1b", gpu="h100", trace=True, seq_len=9000, **common).plans[0]
    (forward,) = [one for one in plan.estimate.moments if one.name == "forward of the loss"]
    logits = forward.breakdown["logits_and_loss"]
    tile, hidden = FUSED_TILE_TOKENS * 32768 * 2, 8999 * 2048 * 2
    assert tile + hidden < logits < tile + hidden + 3 * 2**20


def test_pieces_do_not_grow_with_the_length() -> None:
    common = {"stack": "trl", "method": "lora", "dtype": "bfloat16", "batch_size": 1, "stack_version": "1.14"}
    pieces, all_logits = _peak(seq_len=2048, **common), _peak(seq_len=2048, **common, loss="logits")
    assert all_logits - pieces > 1.5 * GIB


def test_metrics_hold_the_logits_while_they_are_computed() -> None:
    """Beside the logits in float32, which the loss has no more use for, a copy of all but the last."""
    common = {"stack": "trl", "method": "lora", "dtype": "bfloat16", "batch_size": 1, "seq_len": 2048}
    with_metrics = fitplan.check("llama-3.2-1b", gpu="h100", trace=True, **common, loss="metrics").plans[0].estimate
    without = fitplan.check("llama-3.2-1b", gpu="h100", trace=True, **common, loss="logits").plans[0].estimate
    assert with_metrics.peak_allocated_bytes == without.peak_allocated_bytes, "it is reached in backward"

    def forward(estimate: fitplan.MemoryEstimate) -> int:
        return next(one.bytes for one in estimate.moments if one.name == "forward of the loss")

    assert forward(with_metrics) - forward(without) > 2047 * 128256 * 4 - 2048 * 128256 * 4


def test_packed_rows_are_one_row(tmp_path: Any) -> None:
    common = {"stack": "trl", "method": "lora", "dtype": "bfloat16", "padding": "packed"}
    assert _peak(batch_size=4, seq_len=512, **common) == _peak(batch_size=1, seq_len=2048, **common)
    assert _peak(batch_size=4, seq_len=512, **common | {"padding": "free"}) == _peak(
        batch_size=4, seq_len=512, **common
    )


def test_adapters_in_bfloat16_take_half() -> None:
    common = {"method": "qlora", "kbit_prepare": False, "seq_len": 256}
    plans = [
        fitplan.check("llama-3.2-1b", gpu="h100", trace=True, **common, adapter_dtype=dtype).plans[0]
        for dtype in (None, "bfloat16")
    ]
    sizes = [plan.estimate.breakdown["adapter_weights"] for plan in plans]
    assert sizes[0] == 2 * sizes[1]
    assert plans[0].adapter_checkpoint_bytes == 2 * plans[1].adapter_checkpoint_bytes


@pytest.mark.parametrize("what", ["none", "embeddings", "all"])
def test_what_is_cast_back(what: str) -> None:
    plan = fitplan.check("llama-3.2-1b", gpu="h100", trace=True, method="qlora", seq_len=64, kbit_cast_back=what).plans[
        0
    ]
    stored = {group.why.split(";")[0]: group.storage for group in plan.parameters if not group.adapter}
    assert stored["norm or bias"] == ("bfloat16" if what == "all" else "float32")
    assert stored["embedding"] == ("float32" if what == "none" else "bfloat16")


def test_a_loss_of_causal_models_is_refused_elsewhere() -> None:
    with pytest.raises(InputError, match="it is for causal language models; choose loss logits"):
        fitplan.check("flan-t5-small", gpu="h100", method="lora", loss="fused")


def test_a_reference_is_a_copy_of_the_weights() -> None:
    common = {"stack": "trl", "dtype": "bfloat16", "batch_size": 1, "seq_len": 256, "method": "full"}
    with_it, without = (_peak(**common, objective="dpo", precompute_ref_log_probs=before) for before in (False, True))
    weights = 1_235_814_400 * 2
    assert weights <= with_it - without < weights + 2**20


def test_a_pair_is_two_rows_that_go_through_together() -> None:
    common = {"stack": "trl", "dtype": "bfloat16", "seq_len": 1024, "method": "lora"}
    pairs, rows = _peak(**common, objective="orpo", batch_size=2), _peak(**common, batch_size=4)
    assert pairs == pytest.approx(rows, rel=0.002)


def test_preferences_are_known_with_the_fused_head_only() -> None:
    with pytest.raises(InputError, match="preferences are known with TRL's fused head only; choose stack trl"):
        TrainingSetup(method="lora", objective="dpo")


@pytest.mark.parametrize("loss", [Loss.CHUNKED, Loss.FUSED, Loss.METRICS])
@pytest.mark.parametrize("padding", ["none", "longest", "packed"])
def test_the_step_runs_for_real(loss: Loss, padding: str) -> None:
    """On the CPU, with true numbers: it trains, and no gradient is lost."""
    setup = TrainingSetup(
        method="full", loss=loss, padding=padding, batch_size=2, seq_len=16, dtype="float32", mixed_precision="no"
    )
    config, place = load_config(FAMILIES["llama"]), Place("cpu", "cpu")
    model = load_model(build_skeleton(config, setup, place), config, setup, place, lambda *_: None)
    seen = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.isfinite().all().item()))
    train(distribute(model, setup, place), config, setup, place, lambda *_: None, steps=1)
    assert len(seen) == len(list(model.parameters()))
    assert all(seen)


def test_the_pieces_give_the_loss_of_all_logits() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, labels = torch.randn(2, 300, 8), torch.randint(0, 50, (2, 300))
    labels[:, 100:150] = -100
    logits = head(hidden)[:, :-1].reshape(-1, 50)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100)
    assert torch.allclose(losses._pieces(head, hidden, labels, None), expected)
