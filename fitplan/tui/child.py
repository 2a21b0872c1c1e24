"""Commands in a process of their own: a trace holds Python for itself, and an app must never wait.

The child is the command line itself (``fitplan check ... --json``). What it traces it keeps in the user's cache, from
which the app then reads it like anything that is known. Its stderr tells the progress (:data:`fitplan.tui.PROGRESS`).
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fitplan.errors import ERROR_SCHEMA, FitplanError
from fitplan.process import GRACE_SECONDS, kept, python_path
from fitplan.tui import PROGRESS
from fitplan.validation.job import Expectation, PhaseMemory

ERROR_PREFIX = "fitplan: error: "
WRITTEN = (0, 1, 5)
"""The exit codes of a report that was written: it fits, it does not, or only if."""

LONGEST_LINE = 2**20
LESS_URGENT = 10
"""How nice a child is to the app and to what else runs here."""

PATIENCE = GRACE_SECONDS + 1
"""Seconds that a child may take to end, and a validation run its own process before it."""

Doing = Callable[[str], None]
Watch = Callable[[Expectation | PhaseMemory], None]


class ChildFailed(FitplanError):
    """The command has no answer; the message is what it said."""


@dataclass(frozen=True)
class Answer:
    """What a command answered.

    Attributes:
        document: its JSON document.
        complaint: what could not be done beside it, such as to keep a record.

    """

    document: Any
    complaint: str = ""


async def ask(arguments: Sequence[str], progress: Doing, watch: Watch = lambda _: None) -> Answer:
    """The answer of one command, whatever its verdict; a cancelled caller ends it.

    Args:
        arguments: what follows ``fitplan`` on the command line, without ``--json``.
        progress: is told what is being done.
        watch: is told what a validation run is expected to measure, and what it measures.

    Raises:
        ChildFailed: it ended without an answer.

    """
    ended = await _run([*arguments, "--json"], progress, watch)
    try:
        document = json.loads(ended.output)
    except ValueError:
        raise ChildFailed(ended.why) from None
    if document.get("schema") == ERROR_SCHEMA:
        raise ChildFailed(ended.why)
    return Answer(document, ended.complaint)


async def write_report(arguments: Sequence[str], progress: Doing) -> None:
    """Have a command write a file; a cancelled caller ends it.

    Args:
        arguments: what follows ``fitplan`` on the command line.
        progress: is told what is being done.

    Raises:
        ChildFailed: it wrote none.

    """
    ended = await _run(arguments, progress, lambda _: None)
    if ended.code not in WRITTEN:
        raise ChildFailed(ended.why)


@dataclass(frozen=True)
class _Ended:
    """What a command left: its exit code, its stdout, its complaint, and why it has no answer if it has none."""

    code: int
    output: bytes
    complaint: str
    why: str


async def _run(arguments: Sequence[str], progress: Doing, watch: Watch) -> _Ended:
    process = await _started(arguments)
    _be_nice(process.pid)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        output, (complaint, last) = await asyncio.gather(
            process.stdout.read(), _narrate(process.stderr, progress, watch)
        )
        code = await process.wait()
    finally:
        await _end(process)
    return _Ended(code, output, complaint, complaint or last or f"fitplan {arguments[0]} ended with code {code}")


async def _started(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "fitplan", *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=kept({PROGRESS: "json", "PYTHONPATH": python_path()}),
            limit=LONGEST_LINE,
        )  # fmt: skip
    except OSError as error:
        raise ChildFailed(f"another process cannot be started: {error.strerror or error}") from error


def _be_nice(pid: int) -> None:
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, LESS_URGENT)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupt it as Ctrl-C does, so that it cleans up after itself; kill it if it does not listen.

    Whoever is cancelled once more meanwhile, as by an app that quits, waits on.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE
    with contextlib.suppress(ProcessLookupError, ValueError):  # ValueError: Windows sends no interrupt
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
    while process.returncode is None:
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout_at(deadline):
                await process.wait()
        if process.returncode is None and asyncio.get_running_loop().time() >= deadline:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            deadline += PATIENCE


async def _narrate(stream: asyncio.StreamReader, progress: Doing, watch: Watch) -> tuple[str, str]:
    """Pass on what is told; the complaint, if there is one, and the last line of anything else."""
    complaint = last = ""
    async for line in stream:
        text = line.decode(errors="replace").strip()
        if text.startswith(ERROR_PREFIX):
            complaint = text.removeprefix(ERROR_PREFIX)
        elif (news := _news(text)) is None:
            last = text or last
        elif "doing" in news:
            progress(news["doing"])
        elif "expected" in news:
            watch(Expectation(tuple(PhaseMemory(**phase) for phase in news["expected"])))
        elif "phase" in news:
            watch(PhaseMemory(**news["phase"]))
    return complaint, last


def _news(text: str) -> dict[str, Any] | None:
    """One line of progress; ``None`` for what a library printed."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
