"""Runs a job in a process of its own, and sees to it that the process is gone afterwards, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from fitplan.errors import ValidationFailed
from fitplan.units import counted
from fitplan.validation.job import Job, Measurement, OutOfMemory, PhaseMemory

Watch = Callable[[PhaseMemory], None]

GRACE_SECONDS = 5
"""Between asking a process to end and killing it."""


def measure(
    job: Job, *, timeout: float, watch: Watch = lambda _: None, environment: Mapping[str, str] | None = None
) -> Measurement:
    """Run ``job`` and hear what it measures; ``watch`` is told of every phase as it ends.

    Raises:
        ValidationFailed: the run failed, was killed, or took longer than ``timeout`` seconds.

    """
    phases: list[PhaseMemory] = []
    failed: OutOfMemory | None = None

    def where() -> str:
        return (
            f"after {phases[-1].phase} of step {phases[-1].step + 1}" if phases else "before its first phase was over"
        )

    child = Child("fitplan.validation.child", job.to_dict(), timeout, environment or {}, where)
    with child:
        while "done" not in (said := child.hear()):
            if "phase" in said:
                phases.append(PhaseMemory(**said["phase"]))
                watch(phases[-1])
            elif "out_of_memory" in said:
                failed = OutOfMemory(**said["out_of_memory"])
    return Measurement(tuple(phases), said["done"]["device"], said["done"]["versions"], failed)


class Child:
    """A process that is asked one question, a line of JSON, and answers in lines of JSON."""

    def __init__(
        self,
        module: str,
        question: Mapping[str, Any],
        timeout: float,
        environment: Mapping[str, str],
        where: Callable[[], str] = lambda: "before it answered",
    ) -> None:
        self._module, self._question, self._where = module, json.dumps(question), where
        self._environment = {**os.environ, "PYTHONPATH": _python_path(), **environment}
        self._timeout, self._late = timeout, threading.Event()
        self._complaints: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the parent only, which ends the child
        )
        self._timer = threading.Timer(self._timeout, self._end_late)
        self._timer.daemon = True
        self._listener = threading.Thread(target=_drain, args=(self._process.stderr, self._complaints), daemon=True)
        try:
            self._timer.start()
            self._listener.start()
            self._ask()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # closing writes what is left
                    stream.close()

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            ValidationFailed: it tells of an error, or says no more.

        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # no more, or killed in the middle of a sentence
            raise ValidationFailed(self._why())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ValidationFailed(said["error"])
        return said

    def _ask(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already; its exit code tells
            self._process.stdin.write(self._question + "\n")
            self._process.stdin.flush()  # and stays open: the run ends with this process

    def _end_late(self) -> None:
        self._late.set()
        _end(self._process)

    def _why(self) -> str:
        """Why it says no more."""
        code, where = self._process.wait(), self._where()
        if self._late.is_set():
            return (
                f"the run was ended {where}: {counted(self._timeout, 'second')} had passed; give it more with timeout"
            )
        if code < 0:
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            return f"the run was killed by {signal.Signals(-code).name} {where}{hint}"
        self._listener.join(GRACE_SECONDS)
        last = next((line.strip() for line in reversed(self._complaints) if line.strip()), "it said nothing")
        return f"the run ended with exit code {code} {where}: {last}"


def _python_path() -> str:
    """Where this process finds its packages, a checkout that is not installed among them."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, own), *(path or os.getcwd() for path in sys.path)]))  # noqa: PTH109


def _drain(stream: Any, into: list[str]) -> None:
    with stream:
        into.extend(stream)


def _end(child: subprocess.Popen[str]) -> None:
    """Ask it to end, then make it; with all that it has started."""
    deadline = time.monotonic() + GRACE_SECONDS
    for how in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        deadline += GRACE_SECONDS
