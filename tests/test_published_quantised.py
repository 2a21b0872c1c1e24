"""Checkpoints whose weights were published in 4 or 8 bits, and folders that hold something else than a model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import fitplan
from fitplan.errors import InputError, ModelNotFound
from fitplan.question import Question
from fitplan.step.architecture import load_config
from fitplan.trace.depth import shorten

ONE_LAYER = "model.layers.3.mlp"
NF4: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": None,
}  # fmt: skip
PLAIN = FAMILIES["llama"] | {"num_hidden_layers": 8, "dtype": "bfloat16"}


def published(folder: Path, **settings: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PLAIN | {"quantization_config": NF4 | settings}))
    return str(folder)


def counted(model: Any) -> Counter[str]:
    """Numbers of the base model by how they are stored, by transformers and bitsandbytes themselves."""
    found: Counter[str] = Counter()
    for param in model.parameters():
        is_4bit = type(param).__name__ == "Params4bit"
        found["nf4" if is_4bit else "plain"] += param.quant_state.shape.numel() if is_4bit else param.numel()
    return found


@pytest.mark.parametrize("skipped", [None, ["lm_head"], ["lm_head", ONE_LAYER], ["lm_head", "self_attn"]])
def test_what_is_quantised_is_what_from_pretrained_makes_of_the_checkpoint(
    tmp_path: Path, skipped: list[str] | None
) -> None:
    config = load_config(PLAIN)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skipped,
    )  # fmt: skip
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how).save_pretrained(tmp_path / "nf4")
    real = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", device_map={"": "cpu"})

    (plan,) = fitplan.check(str(tmp_path / "nf4"), method="lora", seq_len=8).plans
    told: Counter[str] = Counter()
    for group in plan.parameters:
        if not group.adapter:
            told["nf4" if group.quantised else "plain"] += group.parameters
    assert told == counted(real)
    assert plan.setup.method == "qlora"


def test_layers_that_are_named_are_all_traced(tmp_path: Path) -> None:
    some, all_alike = (
        load_config(PLAIN | {"quantization_config": NF4 | {"llm_int8_skip_modules": names}})
        for names in (["lm_head", ONE_LAYER], ["lm_head", "mlp"])
    )
    assert shorten(some)[1] == {}
    assert shorten(all_alike)[1] != {}


def test_the_settings_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    question = Question(published(tmp_path, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False))
    ((method, asked),) = question.by_method()
    setup = asked.job().setup
    assert (str(method), str(setup.quant), setup.double_quant, setup.compute_dtype) == (
        "qlora",
        "fp4",
        False,
        "bfloat16",
    )
    eight = Question(published(tmp_path, load_in_4bit=False, load_in_8bit=True), method="lora").job().setup
    assert str(eight.quant) == "int8"


def test_another_quantisation_has_no_effect_and_that_is_told(tmp_path: Path) -> None:
    job = Question(published(tmp_path), method="qlora", settings=(("quant", "fp4"), ("double_quant", True))).job()
    assert str(job.setup.quant) == "nf4"
    stored = Question(published(tmp_path), method="qlora", settings=(("quant_storage", "bfloat16"),)).job()
    assert stored.setup.quant_storage is None
    assert stored.remarks == ("quant_storage bfloat16 has no effect: the checkpoint is quantised already, with uint8",)
    assert job.remarks == ("quant fp4 has no effect: the checkpoint is quantised already, with nf4",)


def test_advice_leaves_what_the_checkpoint_settles(tmp_path: Path) -> None:
    model = published(tmp_path, bnb_4bit_use_double_quant=False)
    advice = fitplan.advise(model, vram="80GiB", method="lora", seq_len=8).advice
    offered = [*advice.levers, *filter(None, (advice.fix, advice.best))]
    assert offered
    assert {(str(p.setup.method), p.setup.double_quant) for p in offered} == {("qlora", False)}


def test_quantised_weights_are_not_trained_themselves(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be trained themselves; choose method qlora"):
        fitplan.check(published(tmp_path), method="full")


@pytest.mark.parametrize("how", ["bitsandbytes", "gptq"])
@pytest.mark.parametrize("skipped", ["lm_head", [1], [["a"]], ["(a+)+$"], {"a": 1}])
def test_modules_that_are_left_out_are_names(tmp_path: Path, skipped: Any, how: str) -> None:
    with pytest.raises(InputError, match="llm_int8_skip_modules"):
        fitplan.check(published(tmp_path, quant_method=how, llm_int8_skip_modules=skipped), method="qlora")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("bnb_4bit_quant_type", "nf3"), ("bnb_4bit_quant_type", [1]), ("bnb_4bit_compute_dtype", "int3")],
)
def test_what_no_setting_can_be_is_refused(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match="cannot be"):
        fitplan.check(published(tmp_path, **{setting: value}), method="qlora")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_adapters_is_read_as_their_file(tmp_path: Path) -> None:
    said = {
        "peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 32, "lora_alpha": 64,
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    job = Question(tmp_path, method="lora").job()
    assert (job.model.name, job.setup.lora_r) == ("llama-3.2-1b", 32)
    assert job.setup.target_modules == ("q_proj", "v_proj")
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    assert Question(tmp_path, method="lora").job().model.source == "file"


def test_a_shipped_name_comes_before_a_folder_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-3.2-3b").mkdir()
    (tmp_path / "llama-3.2-3b" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert Question("llama-3.2-3b", method="lora").job().model.source == "shipped"


@pytest.mark.parametrize(
    ("file", "told"),
    [("model-q4.gguf", "as GGUF, which is for inference"), ("tokenizer_config.json", "tokenizer only")],
)
def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path, file: str, told: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ModelNotFound, match=told):
        fitplan.check(str(tmp_path), method="lora")


def test_a_file_of_gguf_is_told(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(ModelNotFound, match="as GGUF"):
        fitplan.check(str(tmp_path / "model-q4.gguf"), method="lora")
