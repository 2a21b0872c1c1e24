"""The question, its history, and what reproduces it: no screen."""

import contextlib
import io
import json
from typing import Any

import pytest

from fitplan.api import check
from fitplan.cli.main import main
from fitplan.configs.resolve import resolve_model
from fitplan.setup import Method, Optim, Quant
from fitplan.tui.answers import Answers, means_the_hub
from fitplan.tui.knobs import KNOBS, knob_of
from fitplan.tui.reproduce import command_line, fewest_settings, python_call
from fitplan.tui.state import History, Question

LLAMA = Question("llama-8b", "4090")
CONFIG = resolve_model("llama-8b")


def test_undo_and_redo_go_through_every_change() -> None:
    one, two = LLAMA.change("batch_size", 2), LLAMA.change("batch_size", 4)
    history = History(LLAMA).ask(one).ask(two)
    assert history.undo().now == one
    assert history.undo().undo().now == LLAMA
    assert history.undo().undo().undo().now == LLAMA
    assert history.undo().redo() == history
    assert history.redo() == history
    assert history.undo().ask(LLAMA).future == ()
    assert history.ask(two) == history


def test_a_setting_survives_a_method_that_has_no_use_for_it() -> None:
    changed = LLAMA.change("lora_r", 64).change("method", "full")
    assert changed.setup(CONFIG).lora_r is None
    assert changed.change("method", "lora").setup(CONFIG).lora_r == 64


def test_the_newer_of_two_settings_that_contradict_each_other_wins() -> None:
    changed = LLAMA.change("double_quant", True).change("quant", Quant.INT8)
    assert changed.setup(CONFIG).quant is Quant.INT8
    assert changed.setup(CONFIG).double_quant is None


def test_a_setting_out_of_range_is_asked_as_it_is() -> None:
    changed = LLAMA.change("batch_size", 1024).change("seq_len", 131_072)
    assert dict(changed.settings) == {"batch_size": 1024, "seq_len": 131_072}


def test_a_short_model_begins_with_the_length_that_it_knows() -> None:
    bert = Question("bert-base-uncased", "4090", method=Method.FULL)
    assert bert.setup(resolve_model("bert-base-uncased")).seq_len == 512


def test_another_model_drops_the_names_of_modules() -> None:
    changed = LLAMA.change("target_modules", ("q_proj",)).change("lora_r", 8).of("gpt2")
    assert dict(changed.settings) == {"lora_r": 8}


def test_steps_of_numbers_and_words() -> None:
    batch, optim = knob_of("batch_size"), knob_of("optim")
    assert batch is not None
    assert optim is not None
    assert [batch.step(3, 1), batch.step(3, -1), batch.step(1, -1), batch.step(1024, 1)] == [4, 2, 1, 1024]
    assert [batch.step(3, 1, fine=True), batch.step(1, -1, fine=True)] == [4, 1]
    assert optim.step(list(Optim)[-1], 1) is next(iter(Optim))
    assert {knob.name for knob in KNOBS} <= set(LLAMA.setup(CONFIG).to_dict())


QUESTIONS = [
    LLAMA,
    LLAMA.change("method", "lora").change("lora_r", 64).change("gradient_checkpointing", False),
    LLAMA.change("method", "full").change("optim", "adamw_8bit").change("seq_len", 4096).on(gpu="H100"),
    LLAMA.change("kbit_prepare", False).change("double_quant", True).on(vram="24GiB"),
    Question("bert-base-uncased", "A100-80GB", method=Method.FULL).change("batch_size", 16),
]


def _document(question: Question) -> Any:
    model = resolve_model(question.model)
    device = Answers().device(question)
    return check(question.model, gpu=device, **question.setup(model).to_dict()).to_dict()["plans"]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: f"{q.model}-{q.method}-{len(q.settings)}")
def test_the_command_and_the_call_give_the_same_answer(question: Question, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    model = resolve_model(question.model)
    main([*shlex.split(command_line(question, model))[1:], "--json"])
    assert json.loads(capsys.readouterr().out)["plans"] == _document(question)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(python_call(question, model), names)
    assert names["report"].to_dict()["plans"] == _document(question)


def test_only_what_makes_a_difference_is_told() -> None:
    question = LLAMA.change("double_quant", True).change("lora_r", 16).change("batch_size", 2)
    assert fewest_settings(question, CONFIG) == {"method": Method.QLORA, "batch_size": 2}
    assert command_line(question, CONFIG) == "fitplan check llama-8b --gpu 4090 --method qlora --batch-size 2"


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("llama-8b", False), ("Qwen/Qwen2.5-7B", False), ("owner/name", True), ("./a/b", False), ("~/a", False),
        ("https://huggingface.co/owner/name", True), ("google/t5-v1_1-base", False),
    ],
)  # fmt: skip
def test_only_ids_of_the_hub_wait_for_the_network(name: str, hub: bool) -> None:
    assert means_the_hub(name) is hub


def test_offers_lead_to_what_they_promise() -> None:
    answers = Answers()
    question = LLAMA.change("method", "lora").change("batch_size", 8)
    advice = answers.advice(question)
    assert advice is not None
    offers = answers.offers(question, advice)
    assert offers[0].title.startswith("make it fit")
    for offer in offers:
        report = answers.report(offer.question)
        assert report is not None
        if offer.proposal is not None:
            assert report.plans[0].setup == offer.proposal.setup
            assert report.plans[0].verdict == offer.proposal.verdict
