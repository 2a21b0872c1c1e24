"""What differs between two answers: their numbers, to the byte, and what of the job is not the same."""

import json
from pathlib import Path
from typing import Any

import pytest

import fitplan
from fitplan.cli.main import main

BASE: dict[str, Any] = {"gpu": "4090", "method": "qlora"}


def _two(**changes: Any) -> tuple[Any, Any]:
    return fitplan.check("llama-8b", **BASE), fitplan.check(**{"model": "llama-8b", **BASE, **changes})


@pytest.mark.parametrize(
    "changes", [{"use_liger_kernel": True}, {"model": "qwen3-8b"}, {"gradient_checkpointing": False}]
)
def test_the_parts_make_up_the_whole(changes: dict[str, Any]) -> None:
    before, after = _two(**changes)
    found = fitplan.diff(before, after)
    memory = [report.plans[0].memory.bytes for report in (before, after)]
    assert [found.device.before, found.device.after] == memory
    assert sum(part.grew_bytes for part in found.parts) == memory[1] - memory[0] != 0
    sizes = [abs(part.grew_bytes) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)


def test_what_is_not_the_same_is_named_and_nothing_else() -> None:
    found = fitplan.diff(*_two(use_liger_kernel=True))
    assert [(one.name, one.before, one.after) for one in found.settings] == [("use_liger_kernel", False, True)]
    assert found.parts[0].name == "logits_and_loss"
    assert found.moments[0].grew_bytes == max((one.grew_bytes for one in found.moments), key=abs)
    same = fitplan.diff(*_two())
    assert same.settings == same.parts == same.moments == ()


def test_documents_of_two_environments_are_compared(tmp_path: Path, capsys: Any) -> None:
    old, new = (report.to_dict() for report in _two())
    old = json.loads(json.dumps(old))
    old["provenance"]["versions"]["transformers"] = "4.49.0"
    old["plans"][0]["estimate"]["breakdown"]["activations"] -= 2**30
    for name, document in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert main(["diff", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    text = capsys.readouterr().out
    assert "transformers: 4.49.0 -> 5." in text
    assert "+1.00 GiB" in next(line for line in text.splitlines() if "activations" in line)


def test_the_command_says_what_the_library_says(capsys: Any) -> None:
    asked = ["diff", "llama-8b", "--gpu", "4090", "--method", "qlora"]
    assert main([*asked, "--json", "--", "qwen3-8b", "--seq-len", "4096"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(fitplan.diff(*_two(model="qwen3-8b", seq_len=4096)).to_dict()))
    assert main([*asked, "--", "--gpu", "t4"]) == 0
    assert "dtype: bfloat16 -> float16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama-8b"], "name what to compare with"),
        (["README.md", "x.json"], "README.md is no document of fitplan check --json"),
        (["none.json", "x.json"], "none.json cannot be read"),
        (["llama-8b", "--gpu", "4090", "--", "--seq-len", "0"], "seq_len"),
        (["llama-8b", "--gpu", "4090", "--", "nosuchmodel"], "nosuchmodel"),
    ],
)
def test_nonsense_gets_one_sentence(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(["diff", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("fitplan: error: ") == 1
