"""Processes that are asked in lines of JSON and answer in lines of JSON: whoever asks, and whoever is asked.

Whoever asks sees to it that the process is gone afterwards, whatever happens: where it is killed itself, the process
sees the end of its stdin, and on Linux a keeper (:mod:`fitplan.keeper`) ends what does not look.

On stdout goes one JSON object a line, on stderr what libraries print and where an error comes from.
"""

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fitplan import keeper
from fitplan.errors import FitplanError
from fitplan.units import counted

GRACE_SECONDS = 5
"""Between asking a process to end and killing it."""

LAST_LINES = 60
"""Of what a process wrote to stderr, as the details of its failure: a traceback fits."""

Say = Callable[..., None]


# --- whoever asks -----------------------------------------------------------------------------------------------------


class Child:
    """A process that is asked a question, a line of JSON, and answers in lines of JSON.

    It may be started (:meth:`start`) before there is a question, and gets ready for it then.

    Args:
        module: what it runs; :func:`serve` is its part of this.
        environment: variables beside those of this process.
        what: what it does, as in ``"the run"``.
        failure: makes the error that is raised if it does not come to its end, of a sentence and what it wrote last.

    """

    def __init__(
        self, module: str, environment: Mapping[str, str], *, what: str, failure: Callable[[str, str], FitplanError]
    ) -> None:
        self._module, self._what, self._failure = module, what, failure
        path = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), python_path())))
        self._environment = {**environment, "PYTHONPATH": path}
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._timeout, self._late = 0.0, threading.Event()
        self._where: Callable[[], str] = lambda: "before it answered"
        self._complaints: list[str] = []

    def start(self) -> None:
        """Start the process; it ends with this one."""
        self._process = held(
            _end,
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",  # what libraries write to stderr may be anything
            env=kept(self._environment),
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
        if self._process is not None:
            _end(self._process)
            self.abandon()

    def abandon(self) -> None:
        """Close this end of what connects the two, and leave the process alone."""
        for stream in (self._running.stdin, self._running.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # closing writes what is left
                    stream.close()

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._process is not None and self._process.poll() is None

    def ask(
        self, question: Mapping[str, Any], timeout: float | None = None, where: Callable[[], str] | None = None
    ) -> None:
        """Put the question; the answer must be complete after ``timeout`` seconds. ``where`` says how far it is."""
        process = self._running
        self._where = where or self._where
        if timeout is not None:
            self._timeout = timeout
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
            FitplanError: it tells of an error, or says no more; of the kind that is made of failures.

        """
        stdout = self._running.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line.endswith("\n"):  # no more, or killed in the middle of a sentence
            raise self._failure(self._why(), self._last_words())
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise self._failure(said["error"], self._last_words())
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
            passed = counted(self._timeout, "second")
            return f"{self._what} was ended {where}: {passed} had passed; give it more with timeout"
        if code < 0:
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            return f"{self._what} was killed by {signal.Signals(-code).name} {where}{hint}"
        last = next(
            (line.strip() for line in reversed(self._last_words().splitlines()) if line.strip()), "it said nothing"
        )
        return f"{self._what} ended with exit code {code} {where}: {last}"

    def _last_words(self) -> str:
        """The end of what it wrote to stderr, once it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._running.wait(GRACE_SECONDS)
        self._listener.join(GRACE_SECONDS)
        return "".join(self._complaints[-LAST_LINES:])


def python_path() -> str:
    """Where this process finds its packages, a checkout that is not installed among them, for ``PYTHONPATH``.

    The working folder is no such place, though Python puts it first for ``python -m`` and ``-c``: a file ``json.py`` of
    whatever lies there is not to be run. It is one if fitplan itself comes from there.
    """
    own = Path(__file__).parents[1]
    here = Path.cwd()
    found = [path for path in sys.path if path and (Path(path).resolve() != here.resolve() or own == here.resolve())]
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, named), *found]))


class _Keeper:
    """The process that ends what this one has started, once this one is gone."""

    def __init__(self) -> None:
        self.mark = f"{_MARK}={os.getpid()}-{secrets.token_hex(8)}"
        self._pipe: int | None = None

    def start(self) -> None:
        if self._pipe is not None or sys.platform != "linux":
            return
        end, self._pipe = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, self.mark],
                stdin=end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
            process.returncode = 0  # nobody waits for it: it stays a moment longer than this process
        except OSError:  # where no more processes can be started, the next one will tell
            self.let_go()
        finally:
            os.close(end)

    def let_go(self) -> None:
        """A forked process has no share in the keeper of the one that it was forked from."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


_MARK = "FITPLAN_STARTED_BY"
_keeper, _one_keeper = _Keeper(), threading.Lock()


def kept(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that this one starts: it ends with this one, on Linux even if that is killed.

    With it does whatever it starts itself and leaves the environment to, in sessions of its own too.
    """
    with _one_keeper:
        _keeper.start()
    name, _, value = _keeper.mark.partition("=")
    return {**os.environ, **variables, name: value}


def _forked() -> None:
    global _keeper, _one_keeper
    _keeper.let_go()
    _keeper, _one_keeper = _Keeper(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def held(end: Callable[[Any], None], command: Sequence[str], **how: Any) -> "subprocess.Popen[Any]":
    """A process that is started, and held whatever happens meanwhile.

    An interrupt in the middle of ``Popen`` would leave a process behind that nobody knows of. It waits until the
    process is there, which ``end`` then ends.

    Args:
        end: ends it, if this process is interrupted meanwhile.
        command: what is run.
        how: as for ``subprocess.Popen``; ``env`` is made by :func:`kept`.

    Raises:
        OSError: it cannot be started.

    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        return subprocess.Popen(command, **how)
    waiting: list[int] = []
    before = {which: signal.signal(which, lambda which, _: waiting.append(which)) for which in _INTERRUPTS}
    try:
        process = subprocess.Popen(command, **how)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler or signal.SIG_DFL)
    if waiting:
        try:
            signal.raise_signal(waiting[0])
        except BaseException:
            end(process)
            raise
    return process


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


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


# --- whoever is asked -------------------------------------------------------------------------------------------------


def serve(
    run: Callable[[dict[str, Any], Say], None], get_ready: Callable[[], None] = lambda: None, *, again: bool = False
) -> int:
    """Get ready, then let ``run`` answer the question on stdin, or with ``again`` one after the other; the exit code.

    The process leaves when stdin is closed, as it is when the process that started it ends, whatever way.
    """
    channel = _own_channel()
    questions = _questions()

    def say(**what: Any) -> None:
        print(json.dumps(what), file=channel, flush=True)

    try:
        get_ready()
        while True:
            run(questions.get(), say)
            if not again:
                return 0
    except FitplanError as error:
        say(error=str(error))
    except Exception as error:  # whatever a library raises inside the step is the result of this run
        traceback.print_exc()
        sys.stderr.flush()
        say(error=f"the run failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return 1


def _own_channel() -> Any:
    """Stdout as it is, which from now on is stderr: what libraries print there, those in C too, is no answer."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    return channel


def _questions() -> "queue.SimpleQueue[dict[str, Any]]":
    """What is asked, line by line. The process leaves with whoever asks it, while it gets ready for a question too."""
    found: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        asked, rest = False, b""
        while read := os.read(0, 2**16):  # not through sys.stdin, whose lock would be held when Python ends
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                found.put(json.loads(line))
                asked = True
        os._exit(1 if asked else 0)

    threading.Thread(target=listen, daemon=True).start()
    return found
