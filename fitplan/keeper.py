"""Ends what a process has started once that process is gone, killed included: Linux only.

Whoever is killed (``kill -9``, the kernel short of memory) cleans up after nobody. So a process that starts others has
this one beside it, which holds the end of a pipe and sees it close. What was started, and what that has started in
turn, in sessions of its own too, is known by a mark in its environment (proc(5), ``/proc/PID/environ``).

It is run as a file, ``python -I -S keeper.py MARK``, so that it is there at once: it imports nothing of fitplan.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress


def end_all(mark: str) -> None:
    """Kill every process with ``mark``, as in ``"NAME=value"``, in its environment, but not this one."""
    ended: set[int] = set()
    while fresh := set(_marked(mark.encode())) - ended:  # they may start more meanwhile
        for process in fresh:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        ended |= fresh


def _marked(mark: bytes) -> Iterator[int]:
    if not os.path.isdir("/proc/self"):  # noqa: PTH112  pathlib takes longer to import than the rest
        return
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:  # noqa: PTH123
                if mark in environment.read().split(b"\0"):
                    yield int(name)


def main(mark: str) -> None:
    """Wait for the end of stdin, then end all that bears the mark."""
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whoever stops all of it wants this done first
        signal.signal(which, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end_all(mark)


if __name__ == "__main__":
    main(sys.argv[1])
