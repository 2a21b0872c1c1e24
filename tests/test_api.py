"""What programs call: settings as they come, answers that tell what they do not hold."""

from typing import Any

import pytest

import fitplan
from fitplan.errors import InputError, SetupConflict
from fitplan.models.resolve import ModelConfig
from fitplan.setup import TrainingSetup


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
    assert of_the_model.endswith("for its text model alone")
    assert of_the_gpu.startswith("how much the driver keeps")
    assert report.to_dict()["provenance"]["versions"]["torch"]


def test_what_a_model_that_reads_more_nests_decides() -> None:
    text = {"max_position_embeddings": 1000, "sliding_window": 32, "vocab_size": 100, "hidden_size": 64}
    nested = ModelConfig("m", "file", {"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert (nested.positions, nested.windows, nested.loss_pieces) == (960, (32,), 2)
