"""What a trace may take: a config of a few bytes can ask for a model that no machine can even describe."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fitplan.errors import ModelNotSupported

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS = 60
"""Of processor time. The largest of the shipped models takes 4, traced at full depth 13."""
GROWTH = 2 * 2**30
"""Bytes that the process may take beside what it holds. The largest of the shipped models takes 0.03 GiB."""
SECONDS_VARIABLE = "FITPLAN_TRACE_SECONDS"


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Inside, this process may take :data:`GROWTH` more memory and :data:`SECONDS` of processor time.

    Time is limited in the main thread only, to which signals go, and memory where the system counts it (Linux,
    ``RLIMIT_DATA``, ``getrlimit(2)``).

    Raises:
        ModelNotSupported: it takes more; ``what`` begins the sentence.

    """
    try:
        with _limited_memory(), _limited_time(what):
            yield
    except (MemoryError, RuntimeError, ModelNotSupported) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # c10/core/impl/alloc_cpu.cpp
            raise ModelNotSupported(
                f"{what} takes more than {GROWTH // 2**30} GiB of this machine's memory; check the sizes in its config"
            ) from error
        raise


@contextmanager
def _limited_memory() -> Iterator[None]:
    held = _held()
    if resource is None or held is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = min([held + GROWTH, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held() -> int | None:
    """What the limit counts, in bytes, as ``/proc/self/status`` tells it (``proc(5)``)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return None


@contextmanager
def _limited_time(what: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "ITIMER_PROF"):
        yield
        return
    seconds = _seconds()

    def too_long(_signal: int, _frame: FrameType | None) -> None:
        raise ModelNotSupported(
            f"{what} takes more than {seconds:g} seconds of processor time; check the sizes in its config, or set "
            f"{SECONDS_VARIABLE} to more"
        )

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds, max(seconds / 10, 1))  # again, should a library swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _seconds() -> float:
    with suppress(ValueError):
        if (seconds := float(os.environ.get(SECONDS_VARIABLE, ""))) > 0:
            return seconds
    return SECONDS
