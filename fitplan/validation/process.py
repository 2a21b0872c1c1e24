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

LAST_LINES = 60
"""Of what a process wrote to stderr, as the details of its failure: a traceback fits."""


def measure(
    job: Job,
    *,
    timeout: float,
    watch: Watch = lambda _: None,
    environment: Mapping[str, str] | None = None,
    child: "Child | None" = None,
) -> Measurement:
    """Run ``job`` and hear what it measures; ``watch`` is told of every phase as it ends.

    ``child`` is the process to run it in, with its own environment, where one was started before.

    Raises:
        ValidationFailed: the run failed, was killed, or took longer than ``timeout`` seconds.

    """
    phases: list[PhaseMemory] = []
    failed: OutOfMemory | None = None

    def where() -> str:
        return (
            f"after {phases[-1].phase} of step {phases[-1].step + 1}" if phases else "before its first phase was over"
        )

    with child or Child(RUNS_JOBS, environment or {}) as process:
        process.ask(job.to_dict(), timeout, where)
        while "done" not in (said := process.hear()):
            if "phase" in said:
                phases.append(PhaseMemory(**said["phase"]))
                watch(phases[-1])
            elif "out_of_memory" in said:
                failed = OutOfMemory(**said["out_of_memory"])
    return Measurement(tuple(phases), said["done"]["device"], said["done"]["versions"], failed)


RUNS_JOBS = "fitplan.validation.child"
"""The module of a process that runs a job."""


class Child:
    """A process that is asked one question, a line of JSON, and answers in lines of JSON.

    It may be started (:meth:`start`) before there is a question, and gets ready for it then.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._module = module
        path = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), _python_path())))
        self._environment = {**os.environ, **environment, "PYTHONPATH": path}
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._timeout, self._late = 0.0, threading.Event()
        self._where: Callable[[], str] = lambda: "before it answered"
        self._complaints: list[str] = []

    def start(self) -> None:
        """Start the process; it ends with this one."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",  # what libraries write to stderr may be anything
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the parent only, which ends the child
        )
        self._listener = threading.Thread(target=_drain, args=(self._process.stderr, self._complaints), daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._process is None:
            return
        _end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # closing writes what is left
                    stream.close()

    def ask(self, question: Mapping[str, Any], timeout: float, where: Callable[[], str] | None = None) -> None:
        """Put the question; the answer must be complete after ``timeout`` seconds. ``where`` says how far it is."""
        process = self._running
        self._timeout, self._where = timeout, where or self._where
        self._timer = threading.Timer(timeout, self._end_late)
        self._timer.daemon = True
        self._timer.start()
        with suppress(BrokenPipeError):  # it has ended already; its exit code tells
            assert process.stdin is not None
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()  # and stays open: the run ends with this process

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            ValidationFailed: it tells of an error, or says no more.

        """
        stdout = self._running.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line.endswith("\n"):  # no more, or killed in the middle of a sentence
            raise ValidationFailed(self._why(), self._last_words())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ValidationFailed(said["error"], self._last_words())
        return said

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it is started first"
        return self._process

    def _end_late(self) -> None:
        self._late.set()
        _end(self._running)

    def _why(self) -> str:
        """Why it says no more."""
        code, where = self._running.wait(), self._where()
        if self._late.is_set():
            return (
                f"the run was ended {where}: {counted(self._timeout, 'second')} had passed; give it more with timeout"
            )
        if code < 0:
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            return f"the run was killed by {signal.Signals(-code).name} {where}{hint}"
        last = next(
            (line.strip() for line in reversed(self._last_words().splitlines()) if line.strip()), "it said nothing"
        )
        return f"the run ended with exit code {code} {where}: {last}"

    def _last_words(self) -> str:
        """The end of what it wrote to stderr, once it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._running.wait(GRACE_SECONDS)
        self._listener.join(GRACE_SECONDS)
        return "".join(self._complaints[-LAST_LINES:])


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
