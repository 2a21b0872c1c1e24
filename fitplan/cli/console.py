"""What is said on the terminal beside the answer: complaints and narration, all on stderr."""

import json
import os
import sys
from typing import Any, Self

from fitplan.tui import PROGRESS

EXIT_FITS, EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT, EXIT_NO_GPU, EXIT_MISSED, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


def complain(message: str) -> None:
    """One line, whatever a file name or a library's message holds: no line breaks, no terminal escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    print(f"fitplan: error: {text}", file=sys.stderr)


class Narration:
    """Says on stderr what is being done: a spinner at a terminal, lines of JSON where a program reads, else nothing."""

    def __enter__(self) -> Self:
        from rich.console import Console

        console = Console(stderr=True)
        self._for_program = os.environ.get(PROGRESS) == "json"
        self._status = console.status("starting") if console.is_terminal and not self._for_program else None
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, what: str, /) -> None:
        """Say what is being done."""
        if self._status is not None:
            self._status.update(what)
        self.tell(doing=what)

    def tell(self, **news: Any) -> None:
        """What only a program has a use for."""
        if self._for_program:
            print(json.dumps(news), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
