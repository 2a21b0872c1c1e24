"""The command, as a person and as a program use it."""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fitplan
from fitplan.api import check
from fitplan.cli.commands import answer_with
from fitplan.cli.main import main
from fitplan.errors import InputError, MissingDependency
from fitplan.installing import install
from fitplan.report.terminal import best_of, describe
from fitplan.trace.events import Category
from fitplan.units import gib

SMALL = ["check", "smollm2-135m", "--seq-len", "64"]


@pytest.fixture(scope="module")
def document() -> Any:
    """One JSON answer, as a program gets it."""
    command = [sys.executable, "-m", "fitplan", *SMALL, "--method", "qlora", "--gpu", "4090", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_document_has_the_agreed_shape(document: Any) -> None:
    assert document["schema"] == "fitplan.check/1"
    assert set(document) >= {"schema", "model", "gpu", "plans", "advice", "provenance"}
    assert set(document["model"]) >= {"name", "source", "architecture", "parameters"}
    assert set(document["gpu"]) >= {"name", "total_bytes", "usable_bytes"}
    (plan,) = document["plans"]
    assert set(plan) >= {
        "setup", "trainable_parameters", "estimate", "verdict", "slack_bytes", "adapter_checkpoint_bytes",
    }  # fmt: skip
    assert set(plan["estimate"]) >= {
        "peak_allocated_bytes", "peak_reserved_bytes", "device_bytes", "peak_moment", "breakdown", "moments",
    }  # fmt: skip
    assert document["provenance"]["source"] == "shipped"
    assert set(document["provenance"]["versions"]) == {"torch", "transformers", "accelerate", "peft", "bitsandbytes"}


def test_the_document_adds_up(document: Any) -> None:
    (plan,) = document["plans"]
    estimate = plan["estimate"]
    assert sum(estimate["breakdown"].values()) == estimate["peak_allocated_bytes"]
    assert set(estimate["breakdown"]) == set(Category)
    for moment in estimate["moments"]:
        assert sum(moment["breakdown"].values()) == moment["bytes"] <= estimate["peak_allocated_bytes"]
    assert estimate["device_bytes"] > estimate["peak_allocated_bytes"]
    assert plan["slack_bytes"] == document["gpu"]["usable_bytes"] - estimate["device_bytes"]
    assert plan["setup"]["attn"] == "sdpa"
    assert plan["setup"]["task"] == "causal-lm"
    assert document["model"]["parameters"] == 134_515_008


def test_command_and_library_say_the_same(document: Any) -> None:
    report = check("smollm2-135m", gpu="4090", method="qlora", seq_len=64)
    assert report.to_dict() == document


def test_the_table_answers_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--gpu", "4090"]) == 0
    text = capsys.readouterr().out
    for word in ("QLoRA", "LoRA", "full", "fits", "peaks in", "base weights", "CUDA context"):
        assert word in text
    assert text.count("peaks in") == 1
    assert main([*SMALL, "--gpu", "4090", "-v"]) == 0
    text = capsys.readouterr().out
    assert text.count("peaks in") == 3
    for word in ("trains", "adapter on disk", "in nf4"):
        assert word in text


def test_the_verdicts_come_first_and_what_decides_is_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llama-70b", "--gpu", "H100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    first = [line.split()[0] for line in lines[2:8] if line and not line.startswith(" ")]
    assert first[:3] == ["QLoRA", "LoRA", "full"]
    assert lines[2].endswith("GiB left")
    assert "as it is, it fits 179 GiB: B200" in lines[4]
    report = check("llama-70b", gpu="h100")
    assert f"up to {gib(report.plans[0].memory.bytes + report.plans[0].memory.spread_bytes)}" in lines[2]
    assert f"  {describe(best_of(report.plans).setup)}"[:60] in "\n".join(lines)


def test_in_doubt_a_trace_decides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what is allocated and what would be reserved a replay with the GPU's own memory tells whether it runs."""
    (plan,) = check("smollm2-135m", vram="99GiB", method="lora", seq_len=64).plans
    usable = plan.memory.bytes - plan.memory.cached_bytes // 2
    asked = [*SMALL, "--method", "lora", "--vram", str(usable)]
    code = main([*asked, "--json"])
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert (plan["source"], plan["undecided"]) == ("trace", None)
    assert plan["estimate"]["device"]["kept_bytes"] is not None
    assert (plan["verdict"], code) in (("tight", 0), ("does_not_fit", 1), ("fits", 0))

    def none(*_: Any, **__: Any) -> None:
        raise MissingDependency("tracing a model needs torch")

    monkeypatch.setattr("fitplan.estimator.made", none)
    monkeypatch.setattr("fitplan.estimator.find_cached", lambda *_: None)
    assert main(asked) == 5
    text = capsys.readouterr().out
    assert "only if" in text
    assert "a trace of this very job would decide it, but tracing a model needs torch" in " ".join(text.split())
    could, of = re.search(r"(\d+) of (\d+) replayed jobs could give back (\d+)%", " ".join(text.split())).groups()[:2]
    assert 0 < int(could) < int(of)


@pytest.mark.parametrize(("vram", "code", "word"), [("24GiB", 0, "fits"), ("200MiB", 1, "does not fit")])
def test_the_exit_code_is_the_verdict(vram: str, code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--method", "lora", "--vram", vram]) == code
    assert word in capsys.readouterr().out


def test_a_model_that_quantisation_leaves_alone_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("experts are fused since transformers 5")
    main(["check", "qwen3-30b-a3b", "--method", "qlora", "--no-kbit-prepare", "--seq-len", "64"])
    text = capsys.readouterr().out
    assert "NOT quantised" in text
    assert "28.99 B stay bfloat16" in text


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["check", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert "fitplan check llama-70b --gpu H100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import fitplan", {"fitplan"}),
        ("import fitplan; fitplan.TrainingSetup()", {"fitplan"}),
        ("from fitplan.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass", {"fitplan"}),
        ("from fitplan.cli.main import main\nmain(['check', 'no-such-model'])", {"fitplan"}),
    ],
)
def test_light_paths_load_no_heavy_library(code: str, allowed: set[str]) -> None:
    heavy = "('torch', 'transformers', 'peft', 'accelerate', 'bitsandbytes', 'numpy', 'textual')"
    program = f"import sys\n{code}\nprint([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_public_names_are_there() -> None:
    for name in fitplan.__all__:
        assert getattr(fitplan, name) is not None
    assert sorted(fitplan.__all__) == dir(fitplan)
    with pytest.raises(AttributeError):
        _ = fitplan.nothing


def test_every_shipped_config_is_complete() -> None:
    from fitplan.configs.catalog import catalog, spellings
    from fitplan.resources import profiles

    entries = catalog()
    folders = {path.parent.name for path in (profiles() / "models").glob("*/config.json")}
    assert len(entries) >= 80
    assert {entry.name for entry in entries} == folders
    for entry in entries:
        assert entry.parameters > 10**7
        assert "model_type" in entry.config()
        assert "auto_map" not in entry.config()
    assert spellings()["llama-70b"].name == "llama-3.1-70b"
    assert spellings()["meta-llama/llama-2-7b-hf"].name == "llama-2-7b"


def test_models_come_from_folders_files_and_configs(tmp_path: Path) -> None:
    from families import FAMILIES

    from fitplan.configs.resolve import resolve_model
    from fitplan.step.architecture import load_config

    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(FAMILIES["llama"]))
    for given in (str(file), str(tmp_path / "tiny"), file):
        found = resolve_model(given)
        assert (found.name, found.source, found.architecture) == ("tiny", "file", "LlamaForCausalLM")
    by_file = check(str(file), method="lora", seq_len=8).plans[0].estimate
    by_config = check(load_config(FAMILIES["llama"]), method="lora", seq_len=8).plans[0].estimate
    assert by_file == by_config


def test_the_gpu_of_this_machine_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_detect import machine

    from fitplan.devices import detect

    here = machine("one_h100")
    monkeypatch.setattr(detect, "detect", lambda: here)
    for arguments in (
        ["check", "llama-3.2-1b", "--method", "lora"],
        ["map", "llama-3.2-1b"],
        ["advise", "llama-3.2-1b"],
    ):
        assert main(arguments) == 0
        assert "H100" in capsys.readouterr().out
    assert main(["check", "llama-3.2-1b", "--method", "lora", "--gpu", "4090"]) == 0
    assert "on RTX 4090" in capsys.readouterr().out.splitlines()[0]

    for index in (0, "0"):
        report = check("llama-3.2-1b", gpu=index, method="lora")
        assert report.gpu is not None
        assert report.gpu.is_here

    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    for gpu, expandable in (("auto", True), ("4090", False)):
        assert main(["check", "llama-3.2-1b", "--method", "lora", "--gpu", gpu, "--json"]) == 0
        (plan,) = json.loads(capsys.readouterr().out)["plans"]
        assert plan["setup"]["expandable_segments"] is expandable


# --- models, as people name them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name", "published"),
    [
        ("llama-3.1-8b-instruct", "llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen2.5-7B-Instruct", "qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
        ("gemma-3-4b-it", "gemma-3-4b", "google/gemma-3-4b-it"),
        ("mistral-7b-instruct-v0.3", "mistral-7b-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("deepseek-r1-distill-llama-8b", "llama-3.1-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("unsloth/Qwen3-8B", "qwen3-8b", "unsloth/Qwen3-8B"),
        ("llama-3-8b", "llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("gpt2", "gpt2", "gpt2"),
        ("llama_8b", "llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        (" Llama 8B ", "llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("google/t5-v1_1-base", "flan-t5-base", "google/t5-v1_1-base"),
        ("https://huggingface.co/Qwen/Qwen3-8B", "qwen3-8b", "Qwen/Qwen3-8B"),
        ("huggingface.co/qwen/qwen3-8b/tree/main?x=1", "qwen3-8b", "Qwen/Qwen3-8B"),
        ("llama-7b", "llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_models_are_found_by_the_names_people_type(typed: str, name: str, published: str) -> None:
    from fitplan.configs.resolve import resolve_model

    found = resolve_model(typed)
    assert (found.name, found.source, found.pretrained) == (name, "shipped", published)


def test_a_hub_id_without_its_owner_names_no_model_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    from fitplan.configs import catalog

    entries = [
        catalog.CatalogEntry("one", ("a/same", "a/Own"), ("short",), 1, False),
        catalog.CatalogEntry("two", ("b/Same", "b/short"), (), 2, False),
    ]
    monkeypatch.setattr(catalog, "catalog", lambda: entries)
    known = catalog.spellings.__wrapped__()
    assert "same" not in known
    assert known["own"].name == known["short"].name == known["a/same"].name == "one"


def test_a_folder_comes_before_what_is_only_another_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from families import FAMILIES

    from fitplan.configs.resolve import resolve_model

    monkeypatch.chdir(tmp_path)
    for name, source in (("Qwen2.5-7B-Instruct", "file"), ("llama_8b", "file"), ("llama-8b", "shipped")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(FAMILIES["llama"]))
        assert resolve_model(name).source == source


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("qwen3", "which qwen3? qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen3-14b, qwen3-30b-a3b, qwen3-32b"),
        ("Llama2", "which Llama2? llama2-7b, llama2-13b, llama2-70b"),
        ("mistral", "mistral-7b-v0.1, mistral-7b-v0.3, mistral-nemo-12b, mistral-small-24b"),
        ("deepseek-r1", "deepseek-r1-distill-qwen-7b, deepseek-r1-distill-llama-8b"),
        ("codellama", "did you mean codellama-34b?"),
        ("qwen2.5-8b", "did you mean qwen2.5-"),
    ],
)
def test_the_name_of_a_family_is_answered_with_its_members(typed: str, hint: str) -> None:
    from fitplan.configs.resolve import resolve_model
    from fitplan.errors import ModelNotFound

    with pytest.raises(ModelNotFound) as refused:
        resolve_model(typed)
    assert hint in str(refused.value)


def test_an_alias_keeps_family_and_size_apart() -> None:
    """``qwen2.57b`` is nothing that anybody types, and no good suggestion for what somebody did."""
    from fitplan.configs.catalog import catalog

    for entry in catalog():
        for alias in entry.aliases:
            assert not any(alias.endswith(f"{version}{size}") for version in ("t5", ".5", "lm2") for size in SIZES)


SIZES = ("0.5b", "1.5b", "1.7b", "3b", "7b", "11b", "14b", "32b", "72b", "135m", "360m")


# --- what becomes of the output ---------------------------------------------------------------------------------------


def run(*arguments: str, shell: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, its output as the shell is told."""
    words = shlex.join([sys.executable, "-m", "fitplan", *arguments])
    command = ["bash", "-c", f"{words} {shell or ''}"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("form", [(), ("--json",), ("--method", "lora", "--emit", "python")], ids=str)
@pytest.mark.parametrize("output", ["| true", ">&-", ">&- 2>&- <&-"])
def test_a_reader_who_leaves_changes_no_verdict(output: str, form: tuple[str, ...]) -> None:
    done = run(*SMALL, "--vram", "200MiB", *form, shell=f"{output}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_a_reader_who_leaves_the_help_changes_nothing() -> None:
    assert run("--help", shell="| true; exit ${PIPESTATUS[0]}").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_is_full_is_told_once() -> None:
    done = run(*SMALL, "--vram", "24GiB", "--json", shell=">/dev/full")
    assert done.returncode == 2
    assert done.stderr == "fitplan: error: the system refused: No space left on device\n"


def test_marks_can_be_told_apart_in_ascii() -> None:
    from fitplan.report.terminal import LIKE

    assert len(set(LIKE.values())) == len(LIKE)
    assert all(one.isascii() for one in LIKE.values())
    text = run(*SMALL, "--method", "lora", "--vram", "600MiB", PYTHONIOENCODING="ascii").stdout
    assert "?" not in text
    for name in ("base weights", "activations", "CUDA context"):
        assert any(f"{mark} {name}" in text for mark in LIKE.values())


def test_what_is_piped_is_neither_wrapped_nor_padded() -> None:
    lines = run("models", "qwen3", COLUMNS="40").stdout.splitlines()
    assert not [line for line in lines if line != line.rstrip()]
    (found,) = [line for line in lines if line.startswith("qwen3-30b-a3b")]
    assert "Qwen/Qwen3-30B-A3B-Thinking-2507" in found
    assert run("gpus", COLUMNS="40").stdout.count("RTX 4060 Ti 8GB") == 1


@pytest.mark.parametrize("columns", [0, 30, 40, 60])
@pytest.mark.parametrize("command", ["explain", "map", "advise", "check"])
def test_no_number_is_cut_on_a_narrow_terminal(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = (shown_on_a_terminal(command, width, monkeypatch) for width in (200, columns))
    assert "…" not in narrow
    figures = re.compile(r"\d[\d,.]*")
    assert sorted(figures.findall(narrow)) == sorted(figures.findall(wide))


def shown_on_a_terminal(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # what Rich takes for a terminal
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main([command, "llama-3.2-1b", "--gpu", "4090", "--method", "lora", "--batch-size", "64"])
    return re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())


# --- the bar ----------------------------------------------------------------------------------------------------------


def test_the_largest_part_of_a_bar_is_always_shown() -> None:
    from fitplan.report.terminal import shared

    assert shared([4, 3, 3], 10) == [4, 3, 3]
    assert shared([3, 3, 4], 1) == [0, 0, 1]
    assert shared([55, 90, 55], 2) == [1, 1, 0]
    for cells in range(1, 40):
        widths = shared([250, 19, 37, 73, 1130, 16, 470], cells)
        assert sum(widths) == cells
        assert widths[4] == max(widths) > 0


def test_a_small_job_on_a_large_gpu_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--method", "lora", "--gpu", "b300"])
    text = capsys.readouterr().out
    assert "▪··········" in text, "the CUDA context is the largest part"


# --- slips of the pen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["chek", "llama-8b"], "'chek' (did you mean check?)"),
        (["check", "llama-8b", "--metod", "lora"], "(did you mean --method?); see fitplan check --help"),
        (["check", "llama-8b", "--batch_size=2"], "did you mean --batch-size?"),
        (["validate", "llama-8b", "--find-limits", "seq"], "did you mean --find-limit?"),
        (["check", "llama-8b", "--emit", "pyhton"], "did you mean python?"),
        (["check", "llama-8b", "--optim", "adamw"], "did you mean adamw_torch_fused or adamw_torch?"),
        (["check", "llama-8b", "--xyzzy"], "unrecognized arguments: --xyzzy; see"),
    ],
)
def test_a_slip_gets_a_hint(typed: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: int | str | None = main(typed)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert hint in capsys.readouterr().err


# --- what ships -------------------------------------------------------------------------------------------------------


def test_models_says_which_setups_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "llama-3.1-"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^llama-3.1-8b +8.03 B +11 +12 +15 ", text, flags=re.MULTILINE)
    assert "[torch]'" in text


def test_numbers_of_one_are_singular() -> None:
    from fitplan.units import counted

    assert [counted(n, "layer") for n in (1, 2, 600)] == ["1 layer", "2 layers", "600 layers"]
    assert [counted(n, "second") for n in (1.0, 0.5)] == ["1 second", "0.5 seconds"]


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["fitplan", "ch"], "check"),
        (["fitplan", "check", "llama-3.1-7"], "llama-3.1-70b"),
        (["fitplan", "check", "llama-70b", "--gpu", "h100-80"], "h100-80gb-hbm3"),
        (["fitplan", "check", "llama-70b", "--optim", "adafa"], "adafactor"),
        (["fitplan", "map", "llama-70b", "--use-lig"], "--use-liger-kernel"),
    ],
)
def test_the_shell_completes(typed: list[str], offered: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    asked = f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; _shtab_fitplan; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
    assert offered in done.stdout.split()


def test_a_length_may_be_typed_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llama-8b", "--method", "qlora", "--seq-len", "4k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["setup"]["seq_len"] == 4096
    with pytest.raises(SystemExit) as stopped:
        main(["check", "llama-8b", "--seq-len", "4q"])
    assert stopped.value.code == 2
    assert "invalid int value: '4q'" in capsys.readouterr().err


def test_an_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nosuchmodel", "--json"]) == 2
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document == {
        "schema": "fitplan.error/1",
        "kind": "ModelNotFound",
        "error": said.err.removeprefix("fitplan: error: ").strip(),
        "exit_code": 2,
    }


def test_what_goes_wrong_after_the_answer_leaves_one_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered_and_then(as_json: bool) -> int:
        answer_with(as_json, lambda: {"schema": "fitplan.check/1"}, print)
        raise InputError("the file beside it cannot be written")

    class Parser:
        def parse_args(self, _: Any) -> argparse.Namespace:
            return argparse.Namespace(run=answered_and_then, as_json=True)

    monkeypatch.setattr("fitplan.cli.main.make_parser", Parser)
    assert main([]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == {"schema": "fitplan.check/1"}
    assert said.err == "fitplan: error: the file beside it cannot be written\n"


def test_what_a_notebook_shows_is_short() -> None:
    report = check("llama-8b", gpu="4090")
    assert repr(report).startswith("<CheckReport: llama-3.1-8b on RTX 4090: qlora, 14.52 GiB, fits; lora, ")
    assert len(repr(report)) < 200
    plan = report.plans[0]
    assert plan.ask_for_bytes == plan.memory.bytes + plan.memory.spread_bytes
    assert plan.to_dict()["estimate"]["ask_for_bytes"] == plan.ask_for_bytes


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "pip install 'fitplan[torch]'"),
        ({"url": "https://example.org/x.whl", "archive_info": {}}, "pip install 'fitplan[torch]'"),
        ({"url": "file:///w/fit%20plan", "dir_info": {"editable": True}}, "pip install -e '/w/fit plan[torch]'"),
        ({"url": "file:///w/fitplan-1.whl", "archive_info": {}}, "pip install '/w/fitplan-1.whl[torch]'"),
    ],
)
def test_what_is_missing_is_installed_from_where_fitplan_was(
    url: dict[str, Any] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return json.dumps(url) if url and name == "direct_url.json" else None

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert install.__wrapped__("torch") == expected
