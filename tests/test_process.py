"""Processes that are started are held: an interrupt in the middle of it leaves none behind."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from fitplan import process
from fitplan.process import held

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def _kill(child: "subprocess.Popen[Any]") -> None:
    child.kill()
    child.wait()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_it_is_started_ends_it(which: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}

    class InTheMiddle(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            os.kill(os.getpid(), which)

    monkeypatch.setattr(process.subprocess, "Popen", InTheMiddle)
    try:
        with pytest.raises(KeyboardInterrupt):
            held(_kill, SLEEPS)
        assert signal.getsignal(which) is interrupt
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert [one.poll() is not None for one in started] == [True]


def test_without_an_interrupt_it_runs() -> None:
    child = held(_kill, SLEEPS)
    assert child.poll() is None
    _kill(child)
