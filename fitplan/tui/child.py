"""Commands in a process of their own: a trace holds Python for itself, and an app must never wait.

The child is the command line itself (``fitplan check ... --json``). What it traces it keeps in the user's cache, from
which the app then reads it like anything that is known. Its stderr tells the progress, a line at a time. A command that
runs a real job (``fitplan validate ... --json``) can be asked in the same way.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fitplan.errors import FitplanError
from fitplan.tui import PROGRESS_LINES

PREFIX, ERROR_PREFIX = "fitplan: ", "fitplan: error: "
ANSWERED = (0, 1)
"""The exit codes with an answer: it fits, or it does not."""

LONGEST_LINE = 2**20
LESS_URGENT = 10
"""How nice a child is to the app and to what else runs here."""


class ChildFailed(FitplanError):
    """The command has no answer; the message is what it said."""


async def ask(arguments: Sequence[str], progress: Callable[[str], None]) -> Any:
    """The JSON document of one command; a cancelled caller kills it.

    Args:
        arguments: what follows ``fitplan`` on the command line, without ``--json``.
        progress: is told what is being done.

    Raises:
        ChildFailed: it ended without an answer.

    """
    process = await _started(arguments)
    _be_nice(process.pid)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        answer, complaint = await asyncio.gather(process.stdout.read(), _narrate(process.stderr, progress))
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code not in ANSWERED:
        raise ChildFailed(complaint or f"fitplan {arguments[0]} ended with code {code}")
    try:
        return json.loads(answer)
    except ValueError as error:
        raise ChildFailed(f"fitplan {arguments[0]} answered with what is no JSON document") from error


async def _started(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fitplan", *arguments, "--json",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, PROGRESS_LINES: "lines"},
            limit=LONGEST_LINE,
        )  # fmt: skip
    except OSError as error:
        raise ChildFailed(f"another process cannot be started: {error.strerror or error}") from error


def _be_nice(pid: int) -> None:
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, LESS_URGENT)


async def _narrate(stream: asyncio.StreamReader, progress: Callable[[str], None]) -> str:
    """Pass on what is told; the complaint, if there is one, else the last line."""
    last = ""
    async for line in stream:
        text = line.decode(errors="replace").strip()
        if text.startswith(ERROR_PREFIX):
            last = text.removeprefix(ERROR_PREFIX)
        elif text.startswith(PREFIX):
            progress(text.removeprefix(PREFIX))
        elif text:
            last = text
    return last
