"""A config that is wrong, a library that has moved, and a defect of fitplan are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers import LlamaConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

import fitplan
from fitplan import faults
from fitplan.cli.main import main
from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError, LibraryMoved, MissingDependency, ModelNotSupported
from fitplan.faults import KNOWN, interface_of, is_own, moved_library, told_as
from fitplan.setup import Method
from fitplan.shipping import ship
from fitplan.trace.recorder import Recorder
from fitplan.tracer import needed_for

LLAMA = LlamaConfig(**FAMILIES["llama"])
NEWEST = Path(__file__).parent.parent / "constraints" / "newest.txt"
QUANTISES = "_process_model_before_weight_loading"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(FAMILIES["llama"]))
    return str(path)


def _asked(command: str, config: str, *flags: str) -> list[str]:
    return [command, config, "--vram", "80GiB", "--seq-len", "16", "--trace", *flags]


@pytest.fixture
def defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Recorder.finish`` looks for a moment that it does not know."""
    monkeypatch.setattr(Recorder, "_leave_phase", lambda self, phase: {}[phase])
    monkeypatch.setattr(faults, "_HERE", (faults._HERE, __file__))


@pytest.fixture
def moved_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Bnb4BitHfQuantizer, HfQuantizer):
        monkeypatch.delattr(kind, QUANTISES, raising=False)


# --- a defect ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("defect")
@pytest.mark.parametrize("flags", [("check",), ("check", "--method", "lora"), ("advise", "--method", "lora")])
def test_a_defect_is_never_told_as_a_bad_config(
    config: str, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_asked(flags[0], config, *flags[1:])) == 70
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "KeyError" in printed.err
    assert "please report it" in printed.err.splitlines()[-1]


def test_a_defect_in_a_file_of_fitplan_is_found_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without help from the test: the recorder's own code fails."""
    monkeypatch.setattr("fitplan.trace.recorder.Phase", None)
    with pytest.raises(AttributeError, match="NoneType"):
        fitplan.estimate(LLAMA, method="lora", trace=True, seq_len=16)


@pytest.mark.usefixtures("defect")
def test_no_footprint_ships_that_a_defect_left_out(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        ship(ModelConfig("tiny", "given", FAMILIES["llama"]), tmp_path, lambda _: None)


# --- a library that has moved -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("moved_quantizer")
def test_a_name_that_transformers_no_longer_has(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_asked("check", config, "--method", "qlora")) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert QUANTISES in said
    assert f"transformers {KNOWN['transformers']} works" in said


@pytest.mark.usefixtures("moved_quantizer")
def test_the_other_methods_are_answered(tmp_path: Path) -> None:
    report = fitplan.check(LLAMA, trace=True, seq_len=16)
    assert [plan.setup.method for plan in report.plans] == [Method.LORA, Method.FULL]
    assert "is not as this version of fitplan knows it" in report.left_out[Method.QLORA]
    with pytest.raises(LibraryMoved):
        ship(ModelConfig("tiny", "given", FAMILIES["llama"]), tmp_path, lambda _: None)


def test_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bnb4BitHfQuantizer, QUANTISES, lambda self, model, plan: None)
    with pytest.raises(LibraryMoved, match=r"transformers .* unexpected keyword argument") as told:
        fitplan.estimate(LLAMA, method="qlora", trace=True, seq_len=16)
    assert told.value.library == "transformers"


def test_a_name_that_is_exchanged_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    monkeypatch.delattr(functional, "get_paged")
    with pytest.raises(LibraryMoved, match=r"bitsandbytes .* has no get_paged"):
        fitplan.estimate(LLAMA, method="lora", trace=True, seq_len=16)


def test_a_source_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.Trainer.create_optimizer", len)
    with pytest.raises(LibraryMoved, match="create_optimizer has no source"):
        fitplan.estimate(LLAMA, method="lora", optim="adamw_8bit", trace=True, seq_len=16)


def _raised(run: Any) -> Exception:
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _import_of(line: str) -> Any:
    return lambda: exec(line, {})


@pytest.mark.parametrize(
    ("line", "library"),
    [
        ("from transformers.quantizers.quantizer_bnb_4bit import Gone", "transformers"),
        ("import torch.utils.gone", "torch"),
        ("import peft.gone.deeper", "peft"),
        ("import flash_attn_that_is_not_there", None),
        ("from json import gone", None),
    ],
)
def test_what_an_import_says(line: str, library: str | None) -> None:
    told = moved_library(_raised(_import_of(line)))
    assert (told and told.library) == library


@pytest.mark.parametrize(
    ("holder", "library"),
    [(torch._C, "torch"), (torch.ops.aten, "torch"), (torch.nn.Linear(1, 1), "torch"), (LLAMA, None), (None, None)],
)
def test_what_is_missing_is_looked_for_where_it_was(
    holder: Any, library: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_HERE", __file__)
    told = moved_library(_raised(lambda: holder._gone_for_good))
    assert (told and told.library) == library


def test_a_package_that_is_not_there_is_missing() -> None:
    with pytest.raises(MissingDependency, match="needs not_there"), needed_for("this"):
        exec("import not_there", {})
    with pytest.raises(LibraryMoved, match="torch"), needed_for("this"):
        exec("from torch.utils._python_dispatch import Gone", {})


def test_the_versions_that_work_are_those_of_the_tests() -> None:
    pinned = dict(line.split("==") for line in NEWEST.read_text().splitlines() if "==" in line)
    assert {name: pinned[name.replace("_", "-")] for name in KNOWN} == KNOWN


# --- a config that is wrong -------------------------------------------------------------------------------------------


def test_what_a_library_raises_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("what this model's code looks for")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    with pytest.raises(ModelNotSupported, match=r"KeyError.*other target_modules, attn or .* may be answered"):
        fitplan.estimate(LLAMA, method="lora", trace=True, seq_len=16)


def test_what_an_operator_says_of_its_operands_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators of a step run through fitplan, which is then the last that the exception went through."""
    monkeypatch.setattr(faults, "_HERE", __file__)
    for wrong in (lambda: torch.ones(2) @ torch.ones(3), lambda: torch.ones(2).sum(5)):
        assert not is_own(_raised(wrong))
    for wrong in (lambda: list("ab")[2], lambda: {}["x"], lambda: 1 / 0):
        assert is_own(_raised(wrong))


def test_three_faults_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotSupported, match="the step: ZeroDivisionError: division by zero; mend it"):  # noqa: SIM117
        with told_as(ModelNotSupported, "the step", "mend it"):
            raise ZeroDivisionError("division by zero")
    with pytest.raises(TypeError), interface_of("peft"):
        raise TypeError("of foreign code")
    monkeypatch.setattr(faults, "_HERE", __file__)
    with pytest.raises(ZeroDivisionError), told_as(ModelNotSupported, "the step", "mend it"):
        raise ZeroDivisionError
    with pytest.raises(LibraryMoved, match=f"peft {KNOWN['peft']} works"), interface_of("peft"):
        raise TypeError("takes no such argument")
    with pytest.raises(InputError), told_as(ModelNotSupported, "the step", "mend it"):
        raise InputError("batch_size must be at least 1")


def test_nothing_quantised_is_no_answer(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bnb4BitHfQuantizer, QUANTISES, lambda self, model, **kwargs: None)
    assert main(_asked("check", config, "--method", "qlora")) == 2
    said = capsys.readouterr().err
    assert "nothing in this llama model can be quantised by bitsandbytes" in said
    assert "choose method lora" in said
    report = fitplan.check(LLAMA, trace=True, seq_len=16)
    assert [plan.setup.method for plan in report.plans] == [Method.LORA, Method.FULL]
