"""A question run for real from within the app, and its report saved."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canned import BAD, PREDICTED, Canned, Runs, phase, run_document
from driver import LLAMA, drive, plan_screen, press, text
from families import FAMILIES
from textual.pilot import Pilot
from textual.widgets import Static

from fitplan import api
from fitplan.cli.main import main
from fitplan.configs.resolve import resolve_model
from fitplan.devices.detect import Machine, Reason
from fitplan.setup import Method
from fitplan.tui.answers import Answers
from fitplan.tui.child import ChildFailed, ask
from fitplan.tui.reproduce import validation_words
from fitplan.tui.run import Place, Run, Stage, place_for
from fitplan.tui.screens import save as save_module
from fitplan.tui.screens import validate as validate_module
from fitplan.tui.screens.dialogs import TakeAway
from fitplan.tui.screens.plan import PlanScreen
from fitplan.tui.screens.save import SaveReport
from fitplan.tui.screens.validate import ValidateScreen
from fitplan.tui.state import Question
from fitplan.units import gib
from fitplan.validation.job import Expectation
from fitplan.validation.records import nearest
from fitplan.whole import SCRATCH

NO_GPU = Machine(reason=Reason.NO_DRIVER, error="Library not found")
CANNED = Question("canned-8b", "canned")


def _machine(name: str) -> Machine:
    from test_detect import machine

    return machine(name)


def _run(pilot: Pilot[None]) -> Run:
    screen = pilot.app.screen
    assert isinstance(screen, ValidateScreen)
    return screen.run


async def _until(pilot: Pilot[None], done: Callable[[], Any], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"it never came:\n{text(pilot)}"
        await pilot.pause(0.05)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    def stand_in(*ending: Any, **more: Any) -> Runs:
        found = Runs(*ending, **more)
        monkeypatch.setattr(validate_module, "ask", found.ask)
        return found

    return stand_in


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "gpu", "flags", "name"),
    [
        ("one_h100", "H100", {"device": "0"}, "H100 80GB HBM3"),
        ("one_h100", "auto", {}, "H100 80GB HBM3"),
        ("one_h100", "4090", {}, "H100 80GB HBM3"),
        ("desktop_4090", "4090", {"device": "0"}, "RTX 4090"),
        ("eight_h100", "3", {"device": "3"}, "H100 80GB HBM3"),
        ("lost_gpu", "0", {}, "RTX 3090"),
        ("no_driver", "H100", {"device": "cpu", "layers": "2"}, "the CPU, with 2 layers of the model"),
    ],
)
def test_it_runs_on_the_gpu_asked_about_if_it_is_here(machine: str, gpu: str, flags: dict[str, str], name: str) -> None:
    question = LLAMA.on(gpu=gpu)
    device = Answers().device(question) if gpu in ("H100", "4090") else None
    place = place_for(question, resolve_model("llama-8b"), device, _machine(machine))
    assert (place.flags, place.name) == (flags, name)
    is_another = (machine, gpu) in (("one_h100", "4090"), ("lost_gpu", "0"), ("no_driver", "H100"))
    assert bool(place.why) is is_another


def test_an_amount_of_memory_is_a_limit_on_the_gpu_that_is_here() -> None:
    question = LLAMA.on(vram="24GiB")
    place = place_for(question, resolve_model("llama-8b"), Answers().device(question), _machine("one_h100"))
    assert (place.flags, place.name) == ({"vram": "24GiB"}, "H100 80GB HBM3")
    words = validation_words(question, None, place.flags)
    assert words[words.index("--vram") + 1] == "24GiB"


def test_a_model_that_is_short_already_is_not_shortened() -> None:
    short = replace(resolve_model("llama-8b"), settings={"num_hidden_layers": 2})
    assert place_for(LLAMA, short, None, NO_GPU).flags == {"device": "cpu"}
    unknown = replace(short, settings={})
    assert place_for(LLAMA, unknown, None, NO_GPU).flags == {"device": "cpu"}
    assert place_for(LLAMA, None, None, NO_GPU).flags == {"device": "cpu", "layers": "2"}


def test_a_run_that_begins_anew_forgets_the_one_before() -> None:
    run = Run(Place({}, "the CPU", ""), "fitplan validate")
    run = run.heard(Expectation((phase("load", 0, 2), phase("load", 1, 3)))).heard(phase("load", 0, 1))
    assert [(row.step, row.measured) for row in run.rows] == [(0, 2**30), (1, None)]
    run = run.heard(phase("load", 1, 4)).heard(phase("load", 2, 5))
    assert [row.measured for row in run.rows] == [2**30, 5 * 2**30]
    assert run.peaks == (3 * 2**30, 5 * 2**30)
    assert run.heard(Expectation(())).rows == ()


# --- on the screen ----------------------------------------------------------------------------------------------------


def test_nothing_runs_until_it_is_told_to(runs: Callable[..., Runs]) -> None:
    found = runs()

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v"])
        command = "fitplan validate llama-8b --device cpu --layers 2 --method lora --batch-size 4"
        assert command in text(pilot)
        assert "no NVIDIA driver runs on this machine" in text(pilot)
        await pilot.pause(0.3)
        assert found.asked == []
        await press(pilot, ["y"])
        assert isinstance(pilot.app.screen, TakeAway)
        assert pilot.app.clipboard == command
        await press(pilot, ["escape", "enter"])
        assert found.asked == [command.split()[1:]]

    question = replace(LLAMA, method=Method.LORA).change("batch_size", 4)
    drive(script, question, machine=NO_GPU)


def test_while_it_runs_every_phase_is_told_and_keys_are_answered(runs: Callable[..., Runs]) -> None:
    found = runs()

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v", "enter"])
        shown = text(pilot).splitlines()
        for place, (name, step, gibs) in enumerate(PREDICTED):
            (line,) = (one for one in shown if f" {'later' if step else 'first'}  {name} " in one)
            assert f"{gibs:.2f} GiB" in line
            assert (f"{0.99 * gibs:.2f} GiB" in line) is (place < 4)
        assert "RUNNING" in text(pilot)
        assert "13.27 GiB so far" in text(pilot)
        theme = pilot.app.theme
        await press(pilot, ["tab", "t"])
        assert "[2 Peaks]" in text(pilot)
        assert pilot.app.theme != theme
        await press(pilot, ["enter"])
        assert len(found.asked) == 1, "what runs is not started again"

    drive(script, CANNED, answers=Canned(), machine=NO_GPU, size=(80, 24))
    assert found.ended == 1


@pytest.mark.parametrize("key", ["escape", "q"])
def test_a_run_is_stopped_and_then_left(key: str, runs: Callable[..., Runs]) -> None:
    found = runs()

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v", "enter"])
        assert "Stop" in text(pilot)
        await press(pilot, [key])
        await _until(pilot, lambda: _run(pilot).stage is Stage.READY)
        assert found.ended == 1
        assert "stopped after 0 s" in text(pilot)
        await press(pilot, ["enter"])
        assert len(found.asked) == 2
        await press(pilot, [key, key])
        await _until(pilot, lambda: isinstance(pilot.app.screen, PlanScreen))

    drive(script, CANNED, answers=Canned(), machine=NO_GPU)
    assert found.ended == 2


@pytest.mark.parametrize(
    ("ending", "badge", "words"),
    [
        (run_document(1.001), "✓ HOLDS", "peak allocated is 0.100 % off, within 2 %"),
        (run_document(1.1), "✗ MISSED", "peak allocated is 9.091 % off, beyond 2 %"),
        (run_document(1.1, out_of_memory=True), "✗ OUT OF MEMORY", "out of memory in backward of step 1: CUDA out of"),
        (run_document(1.1, out_of_memory=True) | {"runs_on_paper": False}, "✓ OUT OF MEMORY", "as predicted"),
        ("the run failed with RuntimeError: no kernel", "! FAILED", "the run failed with RuntimeError: no kernel"),
    ],
    ids=["holds", "missed", "out of memory", "out of memory as predicted", "failed"],
)
def test_how_it_ended_is_told(ending: Any, badge: str, words: str, runs: Callable[..., Runs]) -> None:
    runs(ending)

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v", "enter"])
        assert badge in text(pilot)
        assert words in " ".join(text(pilot).replace("│", " ").split())
        if isinstance(ending, str):
            return
        for pair in ending["phases"]:
            for of in ("predicted", "measured"):
                assert gib(pair[of]["allocated_bytes"]) in text(pilot)
        for quantity in ending["quantities"]:
            name = quantity["name"].removesuffix("_bytes").replace("_", " ")
            (line,) = (one for one in text(pilot).splitlines() if one.startswith(f"│ {name} "))
            assert gib(quantity["predicted"]) in line
            assert gib(quantity["measured"]) in line
            assert f"{100 * (quantity['predicted'] / quantity['measured'] - 1):+.3f} %" in line
        for one in ending["differences"]:
            assert f"{one['predicted']} predicted, {one['measured']} measured" in text(pilot)

    drive(script, CANNED, answers=Canned(), machine=NO_GPU, size=(120, 44))


def test_a_result_survives_what_could_not_be_kept(runs: Callable[..., Runs]) -> None:
    runs(run_document(1.0), complaint="the record x.json cannot be written: No space left on device")

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v", "enter"])
        assert "HOLDS" in text(pilot)
        assert "No space left on device" in text(pilot)

    drive(script, CANNED, answers=Canned(), machine=NO_GPU)


def test_what_has_no_answer_is_not_validated() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v"])
        assert isinstance(pilot.app.screen, PlanScreen)
        (told,) = pilot.app._notifications
        assert "no answer that a run could be held against" in told.message

    drive(script, Question(BAD, "4090"), answers=Canned())


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Question:
    """A model of three small layers."""
    pytest.importorskip("torch")
    config = tmp_path / "tiny" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(FAMILIES["llama"] | {"num_hidden_layers": 3}))
    return Question(str(config), "4090", method=Method.FULL).change("batch_size", 2).change("seq_len", 16)


def test_a_real_run_ends_with_what_the_library_measures(tiny: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[int] = []

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v"])
        assert "--device cpu --layers 2" in _run(pilot).command
        await press(pilot, ["enter"])

        def ended() -> bool:
            phases.append(len(_run(pilot).measured))
            return _run(pilot).stage not in (Stage.RUNNING, Stage.STOPPING)

        await _until(pilot, ended)
        run = _run(pilot)
        assert run.outcome is not None, run.told
        report = api.validate(
            tiny.model, device="cpu", layers=[2], method="full", batch_size=2, seq_len=16, record=False
        )
        assert run.outcome.quantities == report.quantities
        assert run.outcome.phases == report.phases
        assert run.outcome.within
        assert [one.to_dict() for one in run.measured] == [one.to_dict() for one in report.measurement.phases]
        assert report.judged is not None
        assert run.peaks == (report.judged.predicted, report.judged.measured)
        assert f"✓ HOLDS   peak requested is {abs(report.judged.error):.3f} % off" in text(pilot)
        kept = nearest(report.model.name, report.setup)
        assert kept is not None
        assert kept.peak == report.judged

    drive(script, tiny, machine=NO_GPU)
    assert len(set(phases)) > 1, "phases are told one by one"


def _processes(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_text().split("\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("key", ["escape", "ctrl+q"])
def test_leaving_a_run_leaves_no_process(
    key: str, tiny: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(  # a run without end
        "import sys, time\nif 'fitplan.validation.child' in sys.orig_argv:\n    time.sleep(1000)\n"
    )
    mark = f"MARK={key}-{os.getpid()}"
    monkeypatch.setenv("MARK", mark.partition("=")[2])
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{Path(api.__file__).parents[1]}")

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["v", "enter"])
        await _until(pilot, lambda: any("fitplan.validation.child" in one for one in _processes(mark)))
        assert any("fitplan validate" in one for one in _processes(mark))
        await press(pilot, [key])
        if key == "escape":
            await _until(pilot, lambda: _run(pilot).stage is Stage.READY)
            assert not any("valid" in one for one in _processes(mark))

    drive(script, tiny, machine=NO_GPU)
    assert _processes(mark) == []
    assert list(folder.glob(f"{SCRATCH}*")) == []


def test_an_answer_is_a_document_whatever_the_code_and_the_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command in place of the real one: it prints what a library may print, and ends with a code."""
    package = tmp_path / "fitplan"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def answered(program: str) -> Any:
        (package / "__main__.py").write_text(f"import sys, json\n{program}")
        told: list[Any] = []
        return asyncio.run(ask(["validate"], told.append, told.append)), told

    noise = 'print("a warning", "[1]", \'{"x": 1}\', sep="\\n", file=sys.stderr)\n'
    say = 'print(json.dumps({"doing": "tracing"}), file=sys.stderr)\nprint(json.dumps({"a": 1}))\n'
    answer, told = answered(f"{noise}{say}sys.exit(4)")
    assert (answer.document, answer.complaint, told) == ({"a": 1}, "", ["tracing"])
    answer, _ = answered(f'{say}print("fitplan: error: no record", file=sys.stderr)\nsys.exit(2)')
    assert (answer.document, answer.complaint) == ({"a": 1}, "no record")
    for program, why in (
        ('print("fitplan: error: no GPU", file=sys.stderr)\nsys.exit(3)', "no GPU"),
        (f"{noise}sys.exit(4)", "a warning|1"),
        ("sys.exit(4)", "fitplan validate ended with code 4"),
        ('print(json.dumps({"a": 1})[:3])', "fitplan validate ended with code 0"),
    ):
        with pytest.raises(ChildFailed, match=why):
            answered(program)


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def _told(pilot: Pilot[None], words: str) -> None:
    await _until(pilot, lambda: words in str(pilot.app.screen.query_one("#told", Static).content), 60)


def test_the_report_is_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = folder / "fitplan-llama-3.1-8b-lora.html"

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["s"])
        assert file.name in text(pilot)
        await press(pilot, ["enter"])
        await _told(pilot, "Written:")
        await press(pilot, ["enter"])
        assert isinstance(pilot.app.screen, PlanScreen)

    drive(script, replace(LLAMA, method=Method.LORA).change("batch_size", 2), size=(140, 40))
    own = folder / "own.html"
    main(["report", "llama-8b", "--gpu", "4090", "--method", "lora", "--batch-size", "2", "--out", str(own)])
    assert file.read_text(encoding="utf-8") == own.read_text(encoding="utf-8")


def test_a_file_that_is_there_takes_a_second_enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def write(arguments: Any, progress: Any) -> None:
        asked.append(arguments[-1])

    monkeypatch.setattr(save_module, "write_report", write)
    (folder / "a.html").write_text("mine")
    (folder / "b.html").write_text("mine")

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["s", *"a.html", "enter"])
        assert "a.html is there already; Enter again writes over it." in text(pilot)
        await press(pilot, [*["backspace"] * 6, *"b.html", "enter"])
        assert "b.html is there already" in text(pilot)
        assert asked == []
        await press(pilot, ["enter"])
        await _told(pilot, "Written:")
        assert asked == ["--out=b.html"]

    drive(script)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([*"no/x.html"], "Not written: there is no folder no to write x.html in."),
        ([*"sub"], "Not written: sub is a folder; name a file in it, such as sub/report.html."),
    ],
    ids=["no folder", "a folder"],
)
def test_what_cannot_be_written_is_told(keys: list[str], words: str, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    (folder / "sub").mkdir()

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["s", *keys, "enter"])
        await _told(pilot, words)
        await press(pilot, ["escape"])
        assert plan_screen(pilot) is pilot.app.screen

    drive(script, size=(140, 40))


def test_without_the_extra_the_way_to_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "jinja2.py").write_text("raise ImportError('gone', name='jinja2')")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{Path(api.__file__).parents[1]}")

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["s", "enter"])
        await _told(pilot, "Not written: a report needs jinja2, which is not installed; pip install")
        assert isinstance(pilot.app.screen, SaveReport)

    drive(script, size=(140, 40))
    assert list(folder.glob("*.html")) == []
