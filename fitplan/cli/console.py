"""What is said on the terminal beside the answer: complaints and narration, all on stderr."""

import os
import sys
from typing import Any

from fitplan.tui import PROGRESS_LINES

EXIT_FITS, EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT, EXIT_NO_GPU, EXIT_MISSED, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


def complain(message: str) -> None:
    """One line, whatever a file name or a library's message holds: no line breaks, no terminal escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    print(f"fitplan: error: {text}", file=sys.stderr)


class Narration:
    """A spinner on stderr that says what is being done; silent where stderr is no terminal, unless lines are wanted."""

    def __enter__(self) -> Any:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._say

    def _say(self, what: str) -> None:
        if os.environ.get(PROGRESS_LINES) == "lines":
            print(f"fitplan: {what}", file=sys.stderr, flush=True)
        elif self._status is not None:
            self._status.update(what)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
