"""Where footprints are made: in a process beside this one, or here.

A trace exchanges parts of torch and of other libraries while it lasts (:mod:`fitplan.guard`), and takes seconds of all
of Python. Whoever calls fitplan as a library has work of their own in this process, so it is asked of a process beside
it, which is kept for the next question. The ``fitplan`` command has a process of its own already, and traces here.
"""

import atexit
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fitplan import errors
from fitplan.errors import FitplanError, TraceFailed
from fitplan.footprint.document import footprint_from_dict
from fitplan.footprint.footprint import Footprint
from fitplan.footprint.job import TrainingJob
from fitplan.surveyor import surveyed, traced
from fitplan.tracer import Progress, traces_here

if TYPE_CHECKING:
    from fitplan.process import Child

IDLE_SECONDS = 300
"""After which the process ends: it holds half a GiB."""

MODULE = "fitplan.making_child"


class Made(StrEnum):
    """What is made: the footprint of one shape, or one that holds for many."""

    POINT = "point"
    FORMULA = "formula"


MAKERS: dict[Made, Callable[[TrainingJob, Progress], Footprint]] = {Made.POINT: traced, Made.FORMULA: surveyed}


def made(what: Made, job: TrainingJob, progress: Progress) -> Footprint:
    """A footprint of the job.

    Raises:
        TraceFailed: the process in which it is made was ended from outside.
        As :func:`fitplan.surveyor.traced` and :func:`fitplan.surveyor.surveyed`.

    """
    return MAKERS[what](job, progress) if traces_here() else _PROCESS.made(what, job, progress)


def question_about(what: Made, job: TrainingJob) -> dict[str, Any]:
    """A job as JSON, for :mod:`fitplan.making_child`."""
    return {
        "what": what,
        "model": {"name": job.model.name, "source": job.model.source, "settings": dict(job.model.settings)},
        "setup": job.setup.to_dict(),
        "capability": job.capability,
    }


class _Process:
    """The process, started when it is first asked; threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._rest: threading.Timer | None = None

    def forget(self) -> None:
        """A forked process has no share in the process of the one that it was forked from."""
        if self._child is not None:
            self._child.abandon()
        self._lock, self._child, self._rest = threading.Lock(), None, None

    def made(self, what: Made, job: TrainingJob, progress: Progress) -> Footprint:
        with self._lock:
            self._stay()
            child = self._started()
            try:
                child.ask(question_about(what, job))
                while "doing" in (said := child.hear()):
                    progress(said["doing"])
            except BaseException:  # interrupted, or ended: whatever it would still say is no answer to the next one
                self._end()
                raise
            self._rest = threading.Timer(IDLE_SECONDS, self.end)
            self._rest.daemon = True
            self._rest.start()
        if "failed" in said:
            raise _error(**said["failed"])
        return footprint_from_dict(said["footprint"])

    def end(self) -> None:
        """End the process, if there is one; the next question starts another."""
        with self._lock:
            self._stay()
            self._end()

    def _started(self) -> "Child":
        if self._child is None or not self._child.is_running:
            from fitplan.process import Child  # a shipped answer starts none, and sooner

            self._end()
            self._child = Child(MODULE, {}, what="tracing", failure=TraceFailed)
            self._child.start()
        return self._child

    def _stay(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _end(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.__exit__()


def _error(kind: str, arguments: list[Any]) -> Exception:
    """The error that was raised there."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, FitplanError):
        error: Exception = found(*arguments)
        return error
    return RuntimeError(f"a defect of fitplan; please report it with these lines:\n{arguments[0]}")


_PROCESS = _Process()
atexit.register(_PROCESS.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forget)
