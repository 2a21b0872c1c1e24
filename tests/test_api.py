"""What programs call: settings as they come, answers that tell what they do not hold."""

from importlib.metadata import version
from typing import Any

import pytest

import fitplan
from fitplan.configs.catalog import find_entries
from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError, SetupConflict
from fitplan.report.models import models_document
from fitplan.setup import Attention, TrainingSetup


@pytest.mark.parametrize("name", sorted(set(TrainingSetup.__dataclass_fields__) - {"method"}))
def test_a_setting_that_is_none_is_left_open(name: str) -> None:
    asked = {"gpu": "4090", "method": "qlora", "seq_len": 1024}
    said = {key: value for key, value in asked.items() if key != name}
    for ask in (fitplan.check, fitplan.advise):
        assert ask("llama-3.2-1b", **{**asked, name: None}).to_dict() == ask("llama-3.2-1b", **said).to_dict()


@pytest.mark.parametrize("capability", [None, "8.0", (8,), (8.0, 0)])
def test_a_capability_is_two_numbers(capability: Any) -> None:
    with pytest.raises(InputError, match="capability must be two numbers"):
        fitplan.estimate("llama-3.2-1b", capability=capability)


def test_names_of_modules() -> None:
    for given in ("q_proj, v_proj", ["q_proj", "v_proj"], ("q_proj", "v_proj")):
        assert TrainingSetup(target_modules=given).target_modules == ("q_proj", "v_proj")
    for given in ("all-linear", ["all-linear"], None):
        assert TrainingSetup(target_modules=given).target_modules == "all-linear"
    for given in (5, [], ",", [5]):
        with pytest.raises(InputError, match="target_modules must be module names"):
            TrainingSetup(target_modules=given)


def test_a_method_without_an_answer_is_left_out() -> None:
    report = fitplan.check("llama-3.2-1b", gpu="4090", dtype="float16", mixed_precision="fp16")
    assert [plan.setup.method for plan in report.plans] == ["qlora", "lora"]
    assert set(report.to_dict()["left_out"]) == {"full"}
    assert [note for note in report.warnings if note.startswith("full is left out: dtype float16")]
    with pytest.raises(SetupConflict):
        fitplan.check("llama-3.2-1b", gpu="4090", method="full", dtype="float16", mixed_precision="fp16")
    with pytest.raises(InputError, match="padding cannot be"):
        fitplan.check("llama-3.2-1b", gpu="4090", padding="sideways")


@pytest.mark.parametrize("ask", [fitplan.check, fitplan.advise, fitplan.explain, fitplan.fit_map])
def test_every_answer_tells_what_its_reader_should_know(ask: Any) -> None:
    report = ask("gemma-3-4b", gpu="rtx pro 6000", method="lora")
    (of_the_model, of_the_gpu) = report.to_dict()["warnings"]
    assert "the answer is for rows of text" in of_the_model
    assert of_the_gpu.startswith("how much the driver keeps")
    assert report.to_dict()["provenance"]["versions"]["torch"]


def test_what_a_model_that_reads_more_nests_decides() -> None:
    text = {"max_position_embeddings": 1000, "sliding_window": 32, "vocab_size": 100, "hidden_size": 64}
    nested = ModelConfig("m", "file", {"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert (nested.positions, nested.windows, nested.loss_pieces) == (960, (32,), 2)


def test_the_setups_that_ship_are_settings() -> None:
    """Each can be given back as it is, and is answered without a trace."""
    (model,) = models_document(find_entries("llama-3.2-1b"))["models"]
    assert model["setups"]
    assert model["setups_before_ampere"]
    for gpu, setups in (("4090", model["setups"]), ("t4", model["setups_before_ampere"])):
        for setup in setups:
            assert fitplan.check(model["name"], gpu=gpu, **setup).source == "shipped"


def test_a_length_beyond_the_positions_is_told() -> None:
    told = [note for note in fitplan.check("llama-2-7b", method="lora", seq_len=8192).warnings if "positions" in note]
    assert told == ["seq_len 8192 is more than the 4096 positions that llama-2-7b was made for"]
    assert not [note for note in fitplan.check("llama-2-7b", method="lora").warnings if "positions" in note]


def test_a_config_keeps_the_attention_it_was_made_with() -> None:
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    config = transformers.LlamaConfig(**tiny, attn_implementation="eager")
    asked = {"method": "lora", "seq_len": 32}
    assert fitplan.check(config, **asked).plans[0].setup.attn is Attention.EAGER
    assert fitplan.check(config, **asked, attn="sdpa").plans[0].setup.attn is Attention.SDPA
    with pytest.raises(InputError, match="PretrainedConfig"):
        fitplan.check(transformers.LlamaConfig)


def test_parts_of_an_answer_are_documents_too() -> None:
    report = fitplan.check("llama-3.2-1b", gpu="4090", method="lora")
    document = report.to_dict()
    assert report.plans[0].to_dict() == document["plans"][0]
    assert document["plans"][0]["estimate"].items() >= report.plans[0].estimate.to_dict().items()
    assert fitplan.estimate("llama-3.2-1b", gpu="4090", method="lora") == report.plans[0].estimate
    assert fitplan.__version__ == version("fitplan")


def test_a_map_looks_over_lengths_that_have_no_formula() -> None:
    """Of Mistral 7B v0.1, whose window is 4096, one row of 4096 is in no piece; what fits with more tokens fits."""
    found = fitplan.fit_map("mistral-7b-v0.1", vram="58GiB", method="full")
    (longest, rows) = found.longest_seq[1], found.largest_batch
    assert 4160 <= longest < 8192
    assert (rows[2048] > 1, rows[4096], rows[8192]) == (True, 1, 0)
