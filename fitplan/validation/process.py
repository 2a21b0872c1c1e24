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
from typing import Any

from fitplan.errors import ValidationFailed
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
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "fitplan.validation.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": _python_path(), **(environment or {})},
        start_new_session=True,  # Ctrl-C reaches the parent only, which ends the child
    )
    late = threading.Event()

    def end_late() -> None:
        late.set()
        _end(child)

    timer = threading.Timer(timeout, end_late)
    timer.daemon = True
    complaints: list[str] = []
    listener = threading.Thread(target=_drain, args=(child.stderr, complaints), daemon=True)

    def last_words() -> str:
        listener.join(GRACE_SECONDS)
        return next((line.strip() for line in reversed(complaints) if line.strip()), "it said nothing")

    try:
        timer.start()
        listener.start()
        return _heard(child, job, watch, late, last_words, timeout)
    finally:
        timer.cancel()
        _end(child)
        _close(child)


def _python_path() -> str:
    """Where this process finds its packages, a checkout that is not installed among them."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, own), *(path or os.getcwd() for path in sys.path)]))  # noqa: PTH109


def _heard(
    child: subprocess.Popen[str],
    job: Job,
    watch: Watch,
    late: threading.Event,
    last_words: Callable[[], str],
    timeout: float,
) -> Measurement:
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):  # it has ended already; its exit code tells
        child.stdin.write(json.dumps(job.to_dict()) + "\n")
        child.stdin.flush()  # and stays open: the run ends with this process
    phases: list[PhaseMemory] = []
    failed: OutOfMemory | None = None
    for line in child.stdout:
        if not line.endswith("\n"):
            break  # killed in the middle of a sentence
        said: dict[str, Any] = json.loads(line)
        if "phase" in said:
            phases.append(PhaseMemory(**said["phase"]))
            watch(phases[-1])
        elif "out_of_memory" in said:
            failed = OutOfMemory(**said["out_of_memory"])
        elif "error" in said:
            raise ValidationFailed(said["error"])
        elif "done" in said:
            return Measurement(tuple(phases), said["done"]["device"], said["done"]["versions"], failed)
    code = child.wait()
    where = f"after {phases[-1].phase} of step {phases[-1].step + 1}" if phases else "before its first phase was over"
    if late.is_set():
        raise ValidationFailed(f"the run was ended {where}: {timeout:g} seconds had passed; give it more with timeout")
    if code < 0:
        killer = signal.Signals(-code).name
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        raise ValidationFailed(f"the run was killed by {killer} {where}{hint}")
    raise ValidationFailed(f"the run ended with exit code {code} {where}: {last_words()}")


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


def _close(child: subprocess.Popen[str]) -> None:
    """The child has ended, and nobody else reads what it says."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # closing writes what is left
                stream.close()
