"""The rules of the CUDA stand-in, one by one."""

from inspect import signature
from typing import Any

import peft
import pytest
import torch
import transformers
from families import FAMILIES

from fitplan.memory import estimate_trace
from fitplan.phase import Phase
from fitplan.setup import TrainingSetup
from fitplan.step.architecture import load_config
from fitplan.trace import autocast
from fitplan.trace.events import Category, Trace
from fitplan.trace.kernels import Gpu
from fitplan.trace.meta import meta_device
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import trace_training

A100 = Gpu((8, 0))


def _recorded(run: Any, gpu: Gpu | None = A100) -> list[tuple[str, int]]:
    recorder = Recorder("meta")
    with recorder, meta_device(gpu):
        kept = run()
        trace = recorder.finish()
    del kept
    return [(a.op.removesuffix(".default"), a.size) for a in trace.allocations]


@pytest.mark.parametrize(("major", "size"), [(8, 8_519_680), (9, 33_554_432), (10, 33_554_432), (12, 33_554_432)])
def test_cublas_workspaces(major: int, size: int) -> None:
    trace = _traced("llama", Gpu((major, 0)), method="full")
    workspaces = [a.size for a in trace.allocations if a.category is Category.WORKSPACES]
    assert workspaces == [size, size]


def _casts(run: Any) -> list[tuple[str, int]]:
    def in_autocast() -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert torch.is_autocast_enabled()
            return run()

    return _recorded(in_autocast)


def test_autocast_casts_and_remembers_weights() -> None:
    def run() -> Any:
        weight = torch.empty(8, 8, device="meta", requires_grad=True)
        inputs = torch.empty(4, 8, device="meta")
        return [torch.nn.functional.linear(inputs, weight) for _ in range(2)]

    casts = [size for op, size in _casts(run) if op == "aten._to_copy"]
    assert casts == [128, 64, 64]  # the weight once, the input twice


def test_autocast_keeps_what_it_must_in_float32() -> None:
    def run() -> Any:
        logits = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
        assert torch.nn.functional.softmax(logits, -1).dtype is torch.float32
        assert torch.rsqrt(logits).dtype is torch.float32
        assert (logits + logits).dtype is torch.bfloat16
        return logits

    _casts(run)


@pytest.mark.parametrize("device_type", ["cuda", "cpu"])
def test_autocast_lists_are_those_of_the_installed_torch(device_type: str) -> None:
    """What is listed has an autocast kernel (or had, in an earlier torch); on CUDA none that matters is missing."""
    key = "Autocast" + device_type.upper()
    listed = {name for names in autocast.POLICIES[device_type].values() for name in names.split()}
    real = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    }
    assert len(listed & real) / len(listed) > 0.95
    if device_type == "cuda":
        foreign = ("upsample", "grid_sampl", "cudnn_", "_cell", "nuclear", "frobenius", "pdist", "linalg_m", "poisson")
        unlisted = {name for name in real - listed if not any(part in name for part in foreign)}
        assert unlisted <= {"_scaled_dot_product_flash_attention", "binary_cross_entropy"}


def _traced(family: str, gpu: Gpu, **settings: Any) -> Trace:
    setup = TrainingSetup(**{"batch_size": 2, "seq_len": 16, **settings})
    return trace_training(load_config(FAMILIES[family]), setup, gpu).trace


def _state_bytes(optim: str, name: str, numbers: int) -> int:
    """bfloat16 weights: torch keeps two states in their type; bitsandbytes one byte and a scale for each 256 numbers,
    but float32 for small tensors and, as ``Trainer`` asks since transformers 4.52, for embeddings."""
    states = {"sgd": 0, "lion_8bit": 1}.get(optim, 2)
    if optim in ("adamw_torch", "adamw_torch_fused"):
        return states * 2 * numbers + (4 if optim == "adamw_torch_fused" else 0)
    since_4_52 = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 52)
    if "8bit" in optim and numbers >= 4096 and not ("embed" in name and since_4_52):
        return states * (numbers + 4 * -(-numbers // 256))
    return states * 4 * numbers


@pytest.mark.parametrize(
    "optim",
    ["adamw_torch_fused", "adamw_torch", "sgd", "adamw_8bit", "lion_8bit", "paged_adamw_8bit", "paged_adamw_32bit"],
)
def test_optimizer_states(optim: str) -> None:
    trace = _traced("llama", Gpu(), method="full", optim=optim)
    weights = [a for a in trace.allocations if a.category is Category.BASE_WEIGHTS and a.owner.endswith("weight")]
    expected = sum(_state_bytes(optim, a.owner, a.size // 2) for a in weights)
    states = [a for a in trace.allocations if a.category is Category.OPTIMIZER_STATES]
    tables = sum(a.size for a in states if a.op == "aten._to_copy.default")
    assert sum(a.size for a in states) - tables == expected
    assert tables == {"adamw_8bit": 2048, "paged_adamw_8bit": 2048, "lion_8bit": 1024}.get(optim, 0)


def test_paged_states_of_large_tensors_are_not_the_allocators() -> None:
    config = load_config({**FAMILIES["llama"], "vocab_size": 2048})
    traces = [
        trace_training(config, TrainingSetup(method="full", seq_len=8, optim=optim), Gpu()).trace
        for optim in ("paged_adamw_32bit", "adamw_torch")
    ]
    paged, plain = (
        [a for a in t.allocations if a.category is Category.OPTIMIZER_STATES and "embed" in a.owner] for t in traces
    )
    assert not paged
    assert sum(a.size for a in plain) == 2 * 2 * 2048 * 64


def test_gradient_bytes_equal_the_trained_weights() -> None:
    trace = _traced("llama", Gpu(), method="full")
    gradients = sum(a.size for a in trace.allocations if a.category is Category.GRADIENTS)
    weights = sum(
        a.size for a in trace.allocations if a.category is Category.BASE_WEIGHTS and a.owner.endswith("weight")
    )
    assert gradients == 2 * weights  # two steps


def test_foreach_adamw_peaks_at_five_times_the_weights() -> None:
    config = load_config({**FAMILIES["llama"], "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12})
    setup = TrainingSetup(method="full", seq_len=8, optim="adamw_torch")
    estimate = estimate_trace(trace_training(config, setup, Gpu()).trace)
    total = estimate.peak_allocated_bytes - estimate.breakdown[Category.WORKSPACES]
    assert estimate.peak_moment == "optimizer step"
    assert total / estimate.breakdown[Category.BASE_WEIGHTS] == pytest.approx(5, rel=0.01)


def test_padding_builds_a_mask() -> None:
    plain = _traced("llama", Gpu(), method="lora")
    padded = _traced("llama", Gpu(), method="lora", padding="longest")
    assert not any("efficient" in a.op for a in plain.allocations)
    assert any("efficient" in a.op for a in padded.allocations)


@pytest.mark.parametrize("padding", ["none", "longest", "max_length"])
def test_flash_attention_2_needs_no_package(padding: str) -> None:
    trace = _traced("llama", Gpu(), method="lora", attn="flash_attention_2", padding=padding)
    assert estimate_trace(trace).peak_allocated_bytes > 0
    assert not any("scaled_dot_product" in a.op for a in trace.allocations)


def test_longer_sequences_larger_batches_and_higher_ranks_never_need_less() -> None:
    def peak(**settings: Any) -> int:
        return estimate_trace(_traced("llama", Gpu(), method="qlora", **settings)).peak_allocated_bytes

    assert peak(seq_len=16) < peak(seq_len=32) < peak(seq_len=64)
    assert peak(batch_size=1) < peak(batch_size=2) < peak(batch_size=4)
    assert peak(lora_r=4) < peak(lora_r=8) < peak(lora_r=64)


def test_every_phase_is_named() -> None:
    trace = _traced("llama", Gpu(), method="qlora", kbit_prepare=True, eval_batch_size=8)
    assert {moment.phase for moment in trace.moments} == set(Phase)
    estimate = estimate_trace(trace)
    assert any(moment.name.startswith("recompute of layer") for moment in estimate.moments)
    assert all(moment.bytes <= estimate.peak_allocated_bytes for moment in estimate.moments)


def test_what_was_recorded_is_released_or_alive_once() -> None:
    trace = _traced("llama", Gpu(), method="qlora")
    births = [event for event in trace.events if event >= 0]
    releases = [~event for event in trace.events if event < 0]
    assert births == list(range(len(trace.allocations)))
    assert len(set(releases)) == len(releases)
    assert len(trace.events) == len(trace.moments)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_fused_experts_stay_unquantised(family: str) -> None:
    try:
        config = load_config(FAMILIES[family])
    except Exception:
        pytest.skip("the installed transformers does not know this model")
    run = trace_training(config, TrainingSetup(seq_len=16, kbit_prepare=False), Gpu())
    experts = [g for g in run.parameters if "fused experts" in g.why]
    if int(__import__("transformers").__version__.split(".")[0]) >= 5:
        assert sum(g.parameters for g in experts) > 0
        assert all(g.storage == "bfloat16" for g in experts)


@pytest.mark.parametrize(("gpu", "kbit_prepare", "times"), [(A100, True, 1), (A100, False, 0), (None, True, 0)])
def test_kbit_preparation_empties_the_cache_after_its_casts(gpu: Gpu | None, kbit_prepare: bool, times: int) -> None:
    setup = TrainingSetup(method="qlora", batch_size=1, seq_len=8, kbit_prepare=kbit_prepare)
    trace = trace_training(load_config(FAMILIES["llama"] | {"num_hidden_layers": 6}), setup, gpu).trace
    does_empty = "auto_clear_cache" in signature(peft.prepare_model_for_kbit_training).parameters
    assert len(trace.emptied) == (times if does_empty else 0)
    for number in trace.emptied:
        cast = [a for a in trace.allocations[:number] if a.owner == "lm_head.weight"]
        assert cast[-1].size == 128 * 64 * 4
        assert trace.allocations[number + 1].category is Category.ADAPTER_WEIGHTS
        assert trace.moments[trace.events.index(number)].phase is Phase.PREPARE


def test_an_older_peft_empties_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = peft.prepare_model_for_kbit_training

    def older(model: Any, use_gradient_checkpointing: bool = True) -> Any:
        return prepare(model, use_gradient_checkpointing)

    monkeypatch.setattr(peft, "prepare_model_for_kbit_training", older)
    setup = TrainingSetup(method="qlora", batch_size=1, seq_len=8)
    assert not trace_training(load_config(FAMILIES["llama"]), setup, A100).trace.emptied
    assert peft.prepare_model_for_kbit_training is older


@pytest.mark.parametrize("settings", [{"method": "full"}, {"method": "qlora"}, {"method": "full", "optim": "sgd"}])
def test_a_trace_does_not_turn_to_the_gpu_that_is_there(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it take another way because there is one."""
    setup = TrainingSetup(**settings, batch_size=1, seq_len=8)
    without = trace_training(load_config(FAMILIES["llama"]), setup, A100).trace

    def turned_to(*_: Any, **__: Any) -> None:
        raise AssertionError("this makes a CUDA context")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    for name in ("is_current_stream_capturing", "empty_cache", "synchronize", "mem_get_info", "get_rng_state"):
        monkeypatch.setattr(torch.cuda, name, turned_to)
    trace = trace_training(load_config(FAMILIES["llama"]), setup, A100).trace
    assert [(a.size, a.op) for a in trace.allocations] == [(a.size, a.op) for a in without.allocations]
    assert trace.events == without.events
    assert torch.cuda.is_current_stream_capturing is torch.cuda.empty_cache is turned_to


def test_kernels_stand_in_where_pytorch_lets_nobody_override_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.13."""
    implement = torch.library.Library.impl

    def strict(self: Any, name: Any, fn: Any, key: str = "", **kwargs: Any) -> Any:
        if f"{self.ns}/{name}/{key}" in torch.library._impls:
            raise RuntimeError("This is not allowed since there's already a kernel registered from python")
        return implement(self, name, fn, key, **kwargs)

    monkeypatch.setattr(torch.library.Library, "impl", strict)
    for _ in range(2):
        torch.library._impls.add("aten/mul.Tensor/Meta")
        assert _recorded(lambda: torch.ones(4, device="meta") * 2) == [("aten.ones", 16), ("aten.mul.Tensor", 16)]
