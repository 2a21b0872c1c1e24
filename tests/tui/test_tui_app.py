"""The app as a person uses it: keys and clicks, checked against the library."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from canned import BAD, UNKNOWN, Canned
from driver import LLAMA, drive, plan_screen, press, settled, text
from textual import events
from textual.pilot import Pilot

from fitplan.api import check
from fitplan.configs.resolve import resolve_model
from fitplan.devices.detect import Machine
from fitplan.names import printable
from fitplan.report.terminal import CATEGORY_NAMES
from fitplan.setup import Method
from fitplan.trace.events import OF_SEVERAL_GPUS
from fitplan.tui import start
from fitplan.tui.child import ChildFailed
from fitplan.tui.screens import plan as plan_module
from fitplan.tui.screens.compare import CompareScreen
from fitplan.tui.screens.dialogs import TakeAway
from fitplan.tui.screens.picker import Picker
from fitplan.tui.screens.plan import PlanScreen
from fitplan.tui.state import Question
from fitplan.tui.view import Stage
from fitplan.tui.widgets.compare import CompareTable
from fitplan.tui.widgets.fitmap import MapPanel
from fitplan.tui.widgets.settings import SettingsPanel
from fitplan.units import gib
from fitplan.whole import left_out_if_damaged, told_to

KEYS = [
    [],
    ["right"],
    ["left"],
    ["down", "right", "right"],
    ["down", "down", "right", "down", "right", "down", "left"],
    ["down", "shift+right"],
]


def _same_as_library(pilot: Pilot[None]) -> None:
    """What is on the screen is what ``fitplan.check`` says, to the last digit."""
    screen = plan_screen(pilot)
    view = screen.view
    assert view is not None
    assert view.plan is not None
    (plan,) = check(view.question.model, gpu=view.device, **view.setup.to_dict()).plans
    assert view.plan.estimate == plan.estimate
    assert view.plan.verdict == plan.verdict
    assert plan.verdict is not None
    shown = text(pilot)
    slack = plan.verdict.slack_bytes
    assert f"{gib(slack)} left" in shown if slack >= 0 else f"{gib(-slack)} too much" in shown
    assert f"needs {gib(plan.memory.bytes)} in {plan.estimate.peak_moment}" in shown or "allocator" in shown
    for category, size in plan.estimate.breakdown.items():
        if category in OF_SEVERAL_GPUS and not size:
            assert f" {CATEGORY_NAMES[category]} " not in shown
            continue
        line = next(line for line in shown.splitlines() if f" {CATEGORY_NAMES[category]} " in line)
        assert (gib(size) if size else "–") in line


@pytest.mark.parametrize("keys", KEYS, ids="-".join)
def test_every_key_answers_at_once(keys: Sequence[str]) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, keys)
        _same_as_library(pilot)

    drive(script)


def test_keys_that_come_faster_than_answers_all_count() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["down"])
        for _ in range(3):
            pilot.app.post_message(events.Key("right", None))
        await pilot.pause(0.2)
        assert plan_screen(pilot).history.now == LLAMA.change("batch_size", 8)

    drive(script)


def test_undo_takes_back_and_redo_does_again() -> None:
    async def script(pilot: Pilot[None]) -> None:
        before = text(pilot)
        await press(pilot, ["down", "right"])
        after = text(pilot)
        await press(pilot, ["u", "up"])
        assert text(pilot) == before
        await press(pilot, ["r", "down"])
        assert text(pilot) == after

    drive(script, size=(80, 24))


def test_an_offer_is_taken_with_enter_and_taken_back() -> None:
    async def script(pilot: Pilot[None]) -> None:
        view = await settled(pilot)
        assert view.offers is not None
        assert view.offers[0].proposal is not None
        await press(pilot, ["3", "enter"])
        now = plan_screen(pilot).view
        assert now is not None
        assert now.plan is not None
        assert now.plan.verdict == view.offers[0].proposal.verdict
        _same_as_library(pilot)
        await press(pilot, ["u"])
        assert plan_screen(pilot).history.now == view.question

    drive(script, replace(LLAMA, method=Method.LORA).change("batch_size", 8))


def test_a_point_of_the_map_is_chosen_with_the_keys_and_the_mouse() -> None:
    async def script(pilot: Pilot[None]) -> None:
        view = await settled(pilot)
        assert view.fit_map is not None
        await press(pilot, ["4", "up", "right", "enter"])
        cell = view.fit_map.cells[1][1]
        now = plan_screen(pilot).view
        assert now is not None
        assert now.plan is not None
        assert (now.setup.seq_len, now.setup.batch_size) == (cell.seq_len, cell.batch_size) == (1024, 2)
        assert now.plan.verdict == cell.verdict
        await settled(pilot)
        await pilot.click(MapPanel, offset=(12, 2))
        await pilot.pause()
        assert plan_screen(pilot).history.now == now.question.change("seq_len", 512).change("batch_size", 1)

    drive(script)


def test_rows_are_chosen_and_changed_with_the_mouse() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await pilot.click(SettingsPanel, offset=(4, 4))
        await pilot.click(SettingsPanel, offset=(17, 4))
        await pilot.pause()
        assert dict(plan_screen(pilot).history.now.settings) == {"batch_size": 2}
        await pilot.click(SettingsPanel, offset=(15, 4))
        await pilot.pause()
        assert dict(plan_screen(pilot).history.now.settings) == {"batch_size": 1}

    drive(script)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["m", *"qwen2.5-7b", "enter"], replace(LLAMA, model="qwen2.5-7b")),
        (["m", "escape"], LLAMA),
        (["g", *"h200", "enter"], LLAMA.on(gpu="H200")),
        (["g", *"20GiB", "enter"], LLAMA.on(vram="20GiB")),
        (["down", "enter", *"12", "enter"], LLAMA.change("batch_size", 12)),
        (["down", "enter", *"xyz", "enter", "escape"], LLAMA),
        (["end", "up", "up", "up", "up", "enter", *"adafactor", "enter"], LLAMA.change("optim", "adafactor")),
    ],
    ids=lambda keys: "".join(keys)[:14] if isinstance(keys, list) else "",
)
def test_choosing_from_a_list(keys: Sequence[str], expected: Question) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, keys)
        assert plan_screen(pilot).history.now == expected
        _same_as_library(pilot)

    drive(script)


def test_what_was_left_open_is_chosen_first() -> None:
    async def script(pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app.screen, Picker)
        await press(pilot, [*"mistral-7b-v0.3", "enter", *"l40s", "enter"])
        assert isinstance(pilot.app.screen, PlanScreen)
        now = plan_screen(pilot).history.now
        assert (now.model, now.gpu) == ("mistral-7b-v0.3", "L40S")

    drive(script, to_choose=("model", "gpu"))


def test_gpus_of_this_machine_come_first() -> None:
    from test_detect import machine

    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["g", *"h100"])
        shown = text(pilot)
        assert shown.index("on this machine") < shown.index("0: H100 80GB HBM3") < shown.index("known by name")

    drive(script, machine=machine("one_h100"))


def test_methods_and_gpus_stand_beside_each_other() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["c"])
        table = pilot.app.screen.query_one(CompareTable)
        assert [column.view.setup.method for column in table.columns] == list(Method)
        for column in table.columns:
            view = column.view
            assert view.plan is not None
            assert view.plan == check("llama-8b", gpu=view.device, **view.setup.to_dict()).plans[0]
            assert gib(view.plan.memory.bytes) in text(pilot)
        await press(pilot, ["2"])
        sizes = [column.view.device.usable_bytes for column in table.columns if column.view.device]
        assert sizes == sorted(sizes)
        assert table.columns[table.cursor].title == "RTX 4090"
        await press(pilot, ["right", "enter"])
        assert plan_screen(pilot).history.now.gpu == table.columns[table.cursor].title

    drive(script)


def test_a_held_setup_is_compared_with_later_ones_and_let_go() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["h", "down", "right", "c"])
        table = pilot.app.screen.query_one(CompareTable)
        assert [column.view.question for column in table.columns] == [LLAMA.change("batch_size", 2), LLAMA]
        assert "batch" in text(pilot)
        await press(pilot, ["right", "delete", "escape"])
        assert plan_screen(pilot).held == ()

    drive(script)


@pytest.mark.parametrize(("key", "begins"), [("y", "fitplan check llama-8b --gpu 4090"), ("Y", "import fitplan")])
def test_the_answer_can_be_taken_away(key: str, begins: str) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, [key])
        assert isinstance(pilot.app.screen, TakeAway)
        assert begins in text(pilot)
        assert pilot.app.clipboard.startswith(begins)

    drive(script)


def test_help_is_on_every_screen() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["question_mark"])
        assert "choose a row" in text(pilot)
        await press(pilot, ["escape", "c", "question_mark"])
        assert "choose a column" in text(pilot)
        await press(pilot, ["escape"])
        assert isinstance(pilot.app.screen, CompareScreen)

    drive(script)


class Children:
    """Stands in for other processes: each waits until it is told to end."""

    def __init__(self, answers: "Growing") -> None:
        self.asked: list[str] = []
        self.killed: list[str] = []
        self.end = asyncio.Event()
        self.error = ""
        self._answers = answers

    async def ask(self, arguments: Sequence[str], progress: Callable[[str], None]) -> Any:
        self.asked.append(arguments[0])
        progress("backward of layer 2")
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.killed.append(arguments[0])
            raise
        if self.error:
            raise ChildFailed(self.error)
        self._answers.known = True


class Growing(Canned):
    """Knows a model of the hub once a child was there."""

    known = False

    def model(self, question: Question) -> Any:
        return super().model(replace(question, model="canned") if self.known else question)

    def fetched(self, question: Question) -> None:
        assert self.known


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    found = Children(Growing())
    monkeypatch.setattr(plan_module, "ask", found.ask)
    return found


def test_a_trace_runs_elsewhere_and_tells_how_far_it_is(children: Children) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await pilot.pause(1.3)
        assert "TRACING" in text(pilot)
        assert "backward of layer 2 (1 s)" in text(pilot)
        children.end.set()
        view = await settled(pilot)
        assert view.stage is Stage.KNOWN
        assert "FITS" in text(pilot)
        assert children.asked == ["check"]

    drive(script, Question(UNKNOWN, "4090"), answers=children._answers)


def test_another_question_ends_the_trace(children: Children) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await pilot.pause(0.3)
        await press(pilot, ["down", "right"])
        await pilot.pause(0.3)
        assert children.killed == ["check"]
        assert children.asked == ["check", "check"]

    drive(script, Question(UNKNOWN, "4090"), answers=children._answers)
    assert children.killed == ["check", "check"]  # quitting ends the other


def test_why_there_is_no_answer_is_told(children: Children) -> None:
    children.error = "tracing a model needs torch, which is not installed; pip install 'fitplan[torch]'"
    children.end.set()

    async def script(pilot: Pilot[None]) -> None:
        await pilot.pause(0.5)
        assert "NO ANSWER" in text(pilot)
        assert "pip install 'fitplan[torch]'" in text(pilot)

    drive(script, Question(UNKNOWN, "4090"), answers=children._answers)


def test_nonsense_is_told_and_can_be_taken_back() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await press(pilot, ["m", *"no/such.json", "enter"])
        assert "NO ANSWER" in text(pilot)
        assert "does not exist" in text(pilot)
        await press(pilot, ["u"])
        _same_as_library(pilot)

    drive(script)


def test_a_bad_model_has_no_answer() -> None:
    async def script(pilot: Pilot[None]) -> None:
        assert "no model is known as 'bad'" in text(pilot)

    drive(script, Question(BAD, "4090"), answers=Canned())


def test_the_app_needs_no_torch() -> None:
    program = """
import asyncio, sys
from fitplan.devices.detect import Machine
from fitplan.tui.app import FitplanApp
from fitplan.tui.state import Question
async def run():
    async with FitplanApp(Question("llama-8b", "4090"), Machine()).run_test() as pilot:
        await pilot.press("right", "down", "right", "c", "escape", "s", "escape", "v")
        await pilot.pause(0.5)
asyncio.run(run())
print([m for m in ("torch", "transformers", "peft", "numpy", "huggingface_hub") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("no_machine", [Machine()])
def test_the_light_theme_is_for_light_terminals(no_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", "0;15")

    async def script(pilot: Pilot[None]) -> None:
        assert pilot.app.theme == "fitplan-light"
        await press(pilot, ["t"])
        assert pilot.app.theme == "fitplan-dark"

    drive(script, machine=no_machine)


def test_what_a_folder_is_called_only_shows(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b]0;PWN\x07b\x9b2J"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(resolve_model("gpt2").settings)))

    async def script(pilot: Pilot[None]) -> None:
        shown = text(pilot)
        assert "PWN" in shown
        assert all(printable(line) == line for line in shown.splitlines())

    drive(script, replace(LLAMA, model=str(folder)), size=(200, 40))


def test_what_is_left_out_as_damaged_is_told_in_the_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fitplan.tui.app import FitplanApp

    def damaged() -> None:
        with left_out_if_damaged(tmp_path / "[bold]x.json", "the record"):
            raise ValueError

    async def script(pilot: Pilot[None]) -> list[str]:
        app = cast("FitplanApp", pilot.app)
        with told_to(app.tell):
            await asyncio.to_thread(damaged)
            await asyncio.to_thread(damaged)
        await pilot.pause()
        return [one.message for one in app._notifications]

    (message,) = drive(script)
    assert str(tmp_path / "[bold]x.json") in message

    said: list[str] = []
    monkeypatch.setattr(FitplanApp, "tell", lambda _, message: said.append(message))
    monkeypatch.setattr(FitplanApp, "run", lambda _: damaged())
    start.run("gpt2", "4090", None, {})
    assert len(said) == 1
