"""Models that see: rows of text through the whole model, whose tower is frozen; and configs as families write them."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from families import FAMILIES, first_difference
from real_runs import our_run, traced, training_events

import fitplan
from fitplan.errors import InputError, ModelNotSupported
from fitplan.setup import TrainingSetup
from fitplan.step.architecture import build_architecture, load_config, model_class, task_of, text_of, text_path
from fitplan.trace import tracing
from fitplan.trace.kernels import Gpu

_TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 2, "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "type": "default"}
_EYE = {"depth": 3, "hidden_size": 32, "embed_dim": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}

SEEING: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "text_config": {**_TEXT, "model_type": "qwen2_vl_text", "rope_scaling": _ROPE, "rope_parameters": _ROPE},
        "vision_config": {**_EYE, "hidden_size": 64},
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "text_config": {**_TEXT, "model_type": "qwen2_5_vl_text", "rope_scaling": _ROPE, "rope_parameters": _ROPE},
        "vision_config": _EYE,
        "tie_word_embeddings": False,
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {**_TEXT, "model_type": "qwen3_vl_text", "rope_scaling": _ROPE, "rope_parameters": _ROPE},
        "vision_config": {**_EYE, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        "tie_word_embeddings": True,
    },
}


def _known(family: str) -> dict[str, Any]:
    settings = SEEING[family]
    if settings["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip(f"the installed transformers does not know {settings['model_type']}")
    return settings


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", SEEING)
def test_the_trace_of_text_is_the_real_run(family: str, method: str) -> None:
    settings, setup = _known(family), TrainingSetup(method=method, batch_size=2, seq_len=16)
    trace = training_events(traced(settings, setup))
    assert len(trace) > 300
    assert first_difference(trace, training_events(our_run(settings, setup).trace)) is None


@pytest.mark.parametrize("family", SEEING)
def test_all_of_the_model_is_counted_and_only_its_text_is_trained(family: str) -> None:
    settings = _known(family)
    config = load_config(settings)
    whole = getattr(transformers, settings["architectures"][0])(config)
    model = build_architecture(load_config(settings), TrainingSetup(method="full"))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    text = text_path(model)
    assert text.endswith("language_model.")
    assert any(".visual." in f".{name}" for name, _ in model.named_parameters())
    for name, param in model.named_parameters():
        assert param.requires_grad is (name.startswith(text) or "lm_head" in name), name
    adapted = tracing.trace_training(load_config(settings), TrainingSetup(method="lora", seq_len=16), None)
    (adapter,) = (group for group in adapted.parameters if group.adapter)
    layers = 2 * (3 * (64 + 96) + (64 + 64) + 2 * (64 + 32) + (64 + 64))  # gate, up, down; q, k, v, o
    assert adapter.parameters == 16 * layers


@pytest.mark.parametrize("family", SEEING)
def test_the_layers_of_its_text_repeat(family: str) -> None:
    settings = _known(family)
    deep = {**settings, "text_config": {**settings["text_config"], "num_hidden_layers": 9}}
    config, setup = load_config(deep), TrainingSetup(method="lora", batch_size=2, seq_len=16)
    full = tracing.trace_training(config, setup, Gpu(), full_depth=True)
    short = tracing.trace_training(config, setup, Gpu())
    assert min(short.layers_traced.values()) < 9
    sizes = [[(a.size, a.category) for a in run.trace.allocations] for run in (short, full)]
    assert sorted(sizes[0]) == sorted(sizes[1])
    assert sorted((g.storage, g.parameters) for g in short.parameters) == sorted(
        (g.storage, g.parameters) for g in full.parameters
    )


def test_a_text_part_that_is_a_model_is_answered_alone_with_the_outer_tie() -> None:
    settings = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": {**_TEXT, "model_type": "qwen2", "tie_word_embeddings": False},
    }
    if "internvl" not in transformers.CONFIG_MAPPING:
        pytest.skip("the installed transformers does not know internvl")
    config = load_config(settings)
    assert config.model_type == "qwen2"
    assert text_of(config) is config
    model = build_architecture(config, TrainingSetup(method="full"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# --- configs as families write them -----------------------------------------------------------------------------------


def _asked(folder: Path, settings: dict[str, Any], **setup: Any) -> Any:
    if settings["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip(f"the installed transformers does not know {settings['model_type']}")
    (folder / "config.json").write_text(json.dumps(settings))
    return fitplan.check(str(folder), **{"method": "lora", "seq_len": 16, **setup})


def test_infinity_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    hybrid = {
        **{name: value for name, value in _TEXT.items() if name != "head_dim"},
        "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"], "mamba_n_heads": 4,
        "mamba_d_head": 32, "mamba_d_state": 8, "mamba_n_groups": 1, "shared_intermediate_size": 64,
        "num_local_experts": 0, "num_experts_per_tok": 0, "time_step_limit": [0.0, {"__float__": "Infinity"}],
    }  # fmt: skip
    hybrid |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    asked = {"target_modules": "q_proj,v_proj", "gradient_checkpointing": False}
    assert _asked(tmp_path, hybrid, **asked).plans[0].estimate.peak_allocated_bytes > 0


def test_a_config_without_a_padding_token_is_answered(tmp_path: Path) -> None:
    codegen = {"model_type": "codegen", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_ctx": 64}
    assert _asked(tmp_path, {**codegen, "vocab_size": 128, "rotary_dim": 8}).plans[0].base_parameters > 0


@pytest.mark.parametrize(
    ("name", "value", "fine"),
    [
        ("num_experts", None, True),
        ("max_position_embeddings", 64.0, True),
        ("intermediate_size", [96, 96], True),
        ("intermediate_size", [96, 2**40], False),
        ("hidden_size", None, False),
        ("num_hidden_layers", 2.5, False),
    ],
)
def test_what_a_count_may_be(name: str, value: Any, fine: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**FAMILIES["llama"], name: value}))
    if fine:
        fitplan.configs.resolve.resolve_model(str(tmp_path))
    else:
        with pytest.raises(InputError, match=name):
            fitplan.configs.resolve.resolve_model(str(tmp_path))


def test_a_config_of_many_megabytes_is_read(tmp_path: Path) -> None:
    long = {"quantization_config": {"ignored_layers": [f"model.layers.{n}" for n in range(100_000)]}}
    (tmp_path / "config.json").write_text(json.dumps({**FAMILIES["llama"], **long}))
    assert (tmp_path / "config.json").stat().st_size > 2**20
    assert fitplan.configs.resolve.resolve_model(str(tmp_path)).name


def test_of_a_mamba_the_sentence_names_what_can_be_adapted(tmp_path: Path) -> None:
    mamba = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8}
    with pytest.raises((InputError, ModelNotSupported), match="these can be: --target-modules ") as told:
        _asked(tmp_path, mamba)
    names = str(told.value).rpartition("--target-modules ")[2]
    assert "out_proj" not in names
    assert "in_proj" in names.split(",")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BartForConditionalGeneration", "seq2seq-lm"),
        ("BartForSequenceClassification", "sequence-classification"),
        ("BartForCausalLM", "causal-lm"),
    ],
)
def test_what_architectures_names_is_the_task(architecture: str, task: str) -> None:
    config = load_config({"model_type": "bart", "architectures": [architecture], "d_model": 64})
    setup = TrainingSetup(method="full")
    assert task_of(config, setup) == task
    assert model_class(config, task_of(config, setup)).__name__ == architecture


def test_a_classifier_of_a_model_that_sees_is_one(tmp_path: Path) -> None:
    settings = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForSequenceClassification"],
        "text_config": {**_TEXT, "model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 16},
        "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    }
    assert _asked(tmp_path, settings).plans[0].setup.task == "sequence-classification"
