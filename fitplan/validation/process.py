"""Runs a job in a process of its own, and sees to it that the process is gone afterwards, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
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
        [sys.executable, "-m", "fitplan.validation.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # Ctrl-C reaches the parent only, which ends the child
    )
    late = threading.Event()

    def end_late() -> None:
        late.set()
        _end(child)

    timer = threading.Timer(timeout, end_late)
    timer.daemon = True
    timer.start()
    complaints: list[str] = []
    listener = threading.Thread(target=_drain, args=(child.stderr, complaints), daemon=True)
    listener.start()
    try:
        return _heard(child, job, watch, late, complaints, timeout)
    finally:
        timer.cancel()
        _end(child)
        listener.join(GRACE_SECONDS)


def _heard(
    child: subprocess.Popen[str],
    job: Job,
    watch: Watch,
    late: threading.Event,
    complaints: list[str],
    timeout: float,
) -> Measurement:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(job.to_dict()))
        child.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already; its exit code tells
    phases: list[PhaseMemory] = []
    failed: OutOfMemory | None = None
    for line in child.stdout:
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
    where = f"in the phase after {phases[-1].phase} of step {phases[-1].step}" if phases else "before its first phase"
    if late.is_set():
        raise ValidationFailed(f"the run was ended {where}, after {timeout:g} seconds; give it more with timeout")
    code = child.wait()
    if code < 0:
        killer = signal.Signals(-code).name
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        raise ValidationFailed(f"the run was killed by {killer} {where}{hint}")
    last = complaints[-1].strip() if complaints else "it said nothing"
    raise ValidationFailed(f"the run ended with exit code {code} {where}: {last}")


def _drain(stream: Any, into: list[str]) -> None:
    into.extend(stream)


def _end(child: subprocess.Popen[str]) -> None:
    """Ask it to end, then make it; with all that it has started."""
    deadline = time.monotonic() + GRACE_SECONDS
    for how in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        os.killpg(child.pid, how)
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        deadline += GRACE_SECONDS
    for stream in (child.stdin, child.stdout):
        if stream is not None and not stream.closed:
            stream.close()
