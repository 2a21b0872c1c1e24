"""The training setup: defaults, spellings, contradictions."""

from typing import Any

import pytest

from fitplan.errors import InputError, SetupConflict
from fitplan.setup import Dtype, Method, MixedPrecision, Optim, Quant, TrainingSetup, settings_for, with_defaults


def test_defaults_are_those_of_trainer_and_peft() -> None:
    setup = TrainingSetup()
    assert setup.method is Method.QLORA
    assert (setup.batch_size, setup.seq_len, setup.lora_r, setup.target_modules) == (1, 2048, 16, "all-linear")
    assert (setup.quant, setup.double_quant, setup.kbit_prepare) == (Quant.NF4, True, True)
    assert (setup.dtype, setup.compute_dtype) == (Dtype.BFLOAT16, Dtype.BFLOAT16)
    assert (setup.mixed_precision, setup.optim) == (MixedPrecision.BF16, Optim.ADAMW_TORCH_FUSED)
    assert setup.gradient_checkpointing


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "full"}, {"lora_r": None, "quant": None, "kbit_prepare": None}),
        ({"method": "lora"}, {"lora_r": 16, "quant": None}),
        ({"method": "full", "dtype": "fp16"}, {"mixed_precision": MixedPrecision.NO, "dtype": Dtype.FLOAT16}),
        ({"method": "lora", "dtype": "fp16"}, {"mixed_precision": MixedPrecision.FP16}),
        ({"quant": "int8"}, {"double_quant": None, "compute_dtype": None, "kbit_prepare": True}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ("q_proj", "v_proj")}),
    ],
)
def test_what_is_left_out_follows_from_the_rest(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    setup = TrainingSetup(**settings)
    assert {name: getattr(setup, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"method": "full", "lora_r": 8}, ("lora_r", "method")),
        ({"method": "lora", "quant": "nf4"}, ("quant", "method")),
        ({"method": "lora", "kbit_prepare": True}, ("kbit_prepare", "method")),
        ({"quant": "int8", "double_quant": True}, ("double_quant", "quant")),
        ({"method": "full", "dtype": "float16", "mixed_precision": "fp16"}, ("dtype", "mixed_precision")),
        (
            {"attn": "flash_attention_2", "dtype": "float32", "mixed_precision": "no", "method": "full"},
            ("attn", "dtype"),
        ),
        ({"num_labels": 2, "task": "causal-lm"}, ("num_labels", "task")),
    ],
)
def test_a_contradiction_names_both_fields_and_the_way_out(settings: dict[str, Any], fields: tuple[str, str]) -> None:
    with pytest.raises(SetupConflict) as caught:
        TrainingSetup(**settings)
    assert (caught.value.first, caught.value.second) == fields
    assert all(field in str(caught.value) for field in fields)
    assert any(word in str(caught.value) for word in ("choose", "drop", "only"))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"seq_len": -1},
        {"batch_size": True},
        {"seq_len": 2.5},
        {"lora_dropout": 1.0},
        {"target_modules": ()},
        {"optim": "adam"},
        {"gradient_checkpointing": "yes"},
        {"batch_size": 2**16, "seq_len": 2**16},
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        TrainingSetup(**settings)


def test_an_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean batch_size"):
        TrainingSetup.from_dict({"batch_sise": 2})


def test_a_setup_survives_its_own_dict() -> None:
    setup = TrainingSetup(method="lora", target_modules=("q_proj",), optim="adamw_8bit")
    assert TrainingSetup.from_dict(setup.to_dict()) == setup


def test_settings_of_other_methods_are_left_out() -> None:
    given = {"quant": "fp4", "lora_r": 8, "seq_len": 64}
    assert settings_for(Method.FULL, given) == {"seq_len": 64, "method": Method.FULL}
    assert settings_for(Method.LORA, given) == {"seq_len": 64, "lora_r": 8, "method": Method.LORA}
    assert settings_for(Method.QLORA, given) == {**given, "method": Method.QLORA}


@pytest.mark.parametrize(
    ("given", "method", "capability", "expected"),
    [
        ({}, Method.QLORA, (8, 0), {"seq_len": 1024}),
        ({"seq_len": 99}, Method.QLORA, (8, 0), {"seq_len": 99}),
        ({}, Method.LORA, (7, 5), {"seq_len": 1024, "dtype": Dtype.FLOAT16, "mixed_precision": MixedPrecision.FP16}),
        ({}, Method.FULL, (7, 5), {"seq_len": 1024, "dtype": Dtype.FLOAT32, "mixed_precision": MixedPrecision.FP16}),
        ({"dtype": "bfloat16"}, Method.LORA, (7, 0), {"seq_len": 1024, "dtype": "bfloat16"}),
    ],
)
def test_defaults_depend_on_model_and_gpu(
    given: dict[str, Any], method: Method, capability: tuple[int, int], expected: dict[str, Any]
) -> None:
    assert with_defaults(given, method=method, positions=1024, capability=capability) == expected
    assert with_defaults(given, method=method, positions=None, capability=capability)["seq_len"] in (99, 2048)
