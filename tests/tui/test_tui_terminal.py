"""The app in a real terminal (tmux), and the command that starts it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fitplan.cli import commands, main
from fitplan.setup import Method
from fitplan.tui.start import FIRST_GPU, first_question

PATIENCE = 30
"""Seconds that a loaded machine may take to draw a screen."""


class Terminal:
    """A shell in tmux."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        self._run("new-session", "-d", "-x", "100", "-y", "40", "env", "PS1=$ ", "bash", "--norc", "--noprofile")
        self._run("set-option", "-g", "remain-on-exit", "on")

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True).stdout

    def type(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def wait(self, seen: Callable[[str], Any]) -> str:
        for _ in range(PATIENCE * 10):
            if seen(screen := self.screen()):
                return screen
            time.sleep(0.1)
        raise AssertionError(f"it never came:\n{self.screen()}")

    def end(self) -> None:
        self._run("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    found = Terminal(tmp_path)
    yield found
    found.end()


def _start(terminal: Terminal, arguments: str) -> None:
    root = Path(__file__).parents[2]
    terminal.wait(lambda screen: "$" in screen)
    terminal.type(f"PYTHONPATH={root} {sys.executable} -m fitplan {arguments}; echo code=$?", "Enter")


def test_it_starts_answers_and_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    _start(terminal, "tui llama-8b --gpu 4090 --method lora")
    terminal.wait(lambda screen: "FITS" in screen and "Quit" in screen)
    terminal.type("Down", "Right", "Right", "Right")
    terminal.wait(lambda screen: "DOES NOT FIT" in screen)
    terminal.type("q")
    screen = terminal.wait(lambda screen: "code=" in screen.replace("code=$?", ""))
    assert "code=0" in screen
    assert "Verdict" not in screen
    terminal.type("stty -a | grep -o -- '-*echo ' | head -1", "Enter")
    terminal.wait(lambda screen: "\necho" in screen)


def test_it_quits_while_a_trace_runs(terminal: Terminal) -> None:
    pytest.importorskip("torch")
    _start(terminal, "tui llama-8b --gpu 4090 --target-modules q_proj,k_proj --lora-r 3")
    terminal.wait(lambda screen: "TRACING" in screen and "importing" in screen)
    assert _children_of_the_app() == 1
    terminal.type("C-c")
    assert "code=0" in terminal.wait(lambda screen: "code=" in screen.replace("code=$?", ""))
    assert _children_of_the_app() == 0


def _children_of_the_app() -> int:
    wanted = "--lora-r\0003\0--target-modules\0q_proj,k_proj\0--json"
    return sum(wanted in _command_of(process) for process in Path("/proc").iterdir() if process.name.isdigit())


def _command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_fitplan_alone_starts_it_only_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([]) == 2
    assert "see fitplan --help" in capsys.readouterr().err
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(main, "at_terminal", lambda: True)
    monkeypatch.setattr(commands, "at_terminal", lambda: True)
    monkeypatch.setattr("fitplan.tui.start.run", lambda *given: started.append(given))
    assert main.main([]) == 0
    assert started == [(None, None, None, {})]


def test_why_it_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["tui"]) == 2
    assert "needs a terminal" in capsys.readouterr().err
    monkeypatch.setattr(commands, "at_terminal", lambda: True)
    for arguments, told in (
        (["tui", "no-such-model"], "no model is known"),
        (["tui", "llama-8b", "--gpu", "no-such-gpu"], "no GPU is known"),
        (["tui", "llama-8b", "--gpu", "4090", "--method", "full", "--lora-r", "8"], "full fine-tuning has no adapters"),
    ):
        assert main.main(arguments) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setattr(commands, "has_textual", lambda: False)
    assert main.main(["tui"]) == 2
    assert "[tui]'" in capsys.readouterr().err


def test_the_gpu_of_this_machine_is_asked_about_first() -> None:
    from test_detect import machine

    from fitplan.devices.detect import Machine, Reason

    question, open_ = first_question(machine("one_h100"), None, None, None, {"method": "lora", "lora_r": 8})
    assert (question.gpu, question.method, dict(question.settings)) == ("auto", Method.LORA, {"lora_r": 8})
    assert open_ == ("model",)
    question, open_ = first_question(Machine(reason=Reason.NO_GPU), "gpt2", None, None, {})
    assert (question.model, question.gpu, open_) == ("gpt2", FIRST_GPU, ("gpu",))
    assert first_question(Machine(), "gpt2", None, "24GiB", {})[1] == ()


def test_a_cancelled_question_kills_its_process() -> None:
    import asyncio

    from fitplan.tui.child import ask

    async def script() -> None:
        task = asyncio.create_task(ask(["check", "llama-8b", "--target-modules", "q_proj", "--lora-r", "5"], print))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(script())
    assert not any("--lora-r\0005\0" in _command_of(p) for p in Path("/proc").iterdir() if p.name.isdigit())


def test_a_child_answers_and_complains() -> None:
    import asyncio

    from fitplan.tui.child import ChildFailed, ask

    answer = asyncio.run(ask(["check", "llama-8b", "--gpu", "4090", "--method", "full"], print))
    assert answer.document["plans"][0]["verdict"] == "does_not_fit"
    assert answer.complaint == ""
    with pytest.raises(ChildFailed, match="no model is known"):
        asyncio.run(ask(["check", "no-such-model"], print))


def test_the_style_sheet_is_in_the_package() -> None:
    import fitplan.tui

    assert (Path(os.fspath(fitplan.tui.__path__[0])) / "app.tcss").is_file()
