"""What fits a GPU: every answer is the one that ``check`` gives, and how far it reaches is as far as it goes."""

import json
from typing import Any

import pytest

import fitplan
from fitplan.cli.main import main
from fitplan.report.fits import SORTS
from fitplan.verdict import IN_DOUBT, Fit

NAMES = ("llama-3.1-8b", "qwen2.5-1.5b", "flan-t5-small")


@pytest.fixture(scope="module")
def found() -> fitplan.Matrix:
    return fitplan.matrix(NAMES, gpu=["4090", "a100"])


def test_each_answer_is_that_of_check(found: fitplan.Matrix) -> None:
    assert [gpu.name for gpu in found.gpus] == ["RTX 4090", "A100-SXM4-80GB"]
    asked = [(one.model, one.gpu.name, one.setup.method) for one in found.answers]
    assert len(asked) == len(set(asked)) == 3 * 2 * 3
    for one in found.answers:
        (plan,) = fitplan.check(one.model, gpu=one.gpu, method=one.setup.method).plans
        if one.verdict.fit not in IN_DOUBT:  # which check decides by a trace
            assert (one.verdict, one.setup) == (plan.verdict, plan.setup)


@pytest.mark.parametrize("setting", ["batch_size", "seq_len"])
def test_it_reaches_as_far_as_it_fits_and_no_further(setting: str, found: fitplan.Matrix) -> None:
    for one in found.answers:
        if one.model != "llama-3.1-8b" or one.verdict.fit is not Fit.FITS:
            continue
        most = one.largest_batch if setting == "batch_size" else one.longest_seq
        step = 1 if setting == "batch_size" else 64
        assert most >= getattr(one.setup, setting)
        for value, expected in ((most, True), (most + step, False)):
            asked = one.setup.with_(**{setting: value}).to_dict()
            estimate = fitplan.estimate(one.model, gpu=one.gpu, **asked)
            assert (fitplan.verdict.judge(estimate, one.gpu).fit is Fit.FITS) is expected, (one.model, value)


def test_what_would_take_a_trace_is_left_out_and_named() -> None:
    found = fitplan.matrix(["llama-3.1-8b"], gpu="4090", method="lora", target_modules="q_proj")
    assert found.answers == ()
    assert [(model, str(method)) for model, method in found.unknown] == [("llama-3.1-8b", "lora")]


def test_the_whole_house_is_answered() -> None:
    found = fitplan.matrix(vram="24GiB")
    assert len(found.answers) + len(found.unknown) == 3 * len(fitplan.models())
    assert len(found.answers) >= 256


def test_the_table_is_in_order_and_leaves_out_what_never_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fits", "llama-3", "--gpu", "4090"]) == 0
    text = capsys.readouterr().out
    assert "llama-3.1-8b" in text
    assert "llama-3.1-70b" not in text
    assert text.index("llama-3.2-1b") < text.index("llama-3.2-3b") < text.index("llama-3.1-8b")
    assert max(len(line) for line in text.splitlines() if "B  + " in line) <= 80
    assert main(["fits", "llama-3", "--gpu", "4090", "--all", "--sort", "length"]) == 0
    text = capsys.readouterr().out
    assert text.index("llama-3.2-1b") < text.index("llama-3.1-8b") < text.index("llama-3.1-70b")
    assert main(["fits", "70b", "--vram", "8GiB", "--method", "full", "--sort", "name"]) == 1
    assert "0 of" in capsys.readouterr().out


def test_the_document_tells_the_same(capsys: pytest.CaptureFixture[str], found: fitplan.Matrix) -> None:
    assert main(["fits", *NAMES, "--gpu", "4090", "--gpu", "a100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch", "--gpu", "4090"], "no shipped model is named like 'nosuch'"),
        (["--gpu", "nosuch"], "nosuch"),
        (["--gpu", "4090", "--method", "dora"], "dora"),
        (["--gpu", "4090", "--seq-len", "0"], "seq_len"),
    ],
)
def test_nonsense_gets_one_sentence(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(["fits", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("fitplan: error: ") == 1


def test_every_order_can_be_asked_for() -> None:
    from fitplan.cli.parser import SORTED_BY

    assert tuple(SORTS) == SORTED_BY
