"""The streams that answers are printed on, and what is said beside an answer: complaints and narration, on stderr."""

import codecs
import io
import json
import os
import sys
from contextvars import ContextVar
from typing import Any, Self

from fitplan.names import printable
from fitplan.tui import PROGRESS

EXIT_FITS, EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT, EXIT_NO_GPU, EXIT_MISSED, EXIT_ONLY_IF = range(6)
EXIT_DEFECT, EXIT_INTERRUPTED = 70, 130

ANSWERED = ContextVar("answered", default=False)
"""Whether the answer is on stdout: what goes wrong after that, as with a file beside it, is told on stderr alone."""


def prepare_streams() -> None:
    """Let nothing that befalls the output change the answer or its exit code.

    A stream that was closed by the caller (``>&-``) leads nowhere, a reader who leaves (``| head``) misses the rest,
    and a character that the encoding does not have is replaced by one like it.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_LIKE)
            if stream is getattr(sys, f"__{name}__") and not stream.isatty():
                leavable = _Leavable(stream.fileno(), "w", closefd=False)
                leavable.forgives = OSError if name == "stderr" else BrokenPipeError
                raw = io.BufferedWriter(leavable)
                setattr(
                    sys, name, io.TextIOWrapper(raw, stream.encoding, errors=_LIKE, line_buffering=name == "stderr")
                )


class _Leavable(io.FileIO):
    """A file or pipe to which nothing is written any more once that has failed.

    Attributes:
        forgives: what is no failure: that a reader left, and of what is said beside an answer anything.

    """

    forgives: type[OSError] = BrokenPipeError
    _left = False

    def write(self, data: Any, /) -> int:
        if not self._left:
            try:
                return super().write(data)
            except OSError as error:
                self._left = True  # else what is still in the buffers fails a second time, when Python ends
                if not isinstance(error, self.forgives):
                    raise
        return memoryview(data).nbytes


_LIKE = "fitplan.like"


def _like(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that an encoding does not have."""
    from fitplan.report.terminal import LIKE

    assert isinstance(error, UnicodeEncodeError)
    return "".join(LIKE.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error(_LIKE, _like)


def complain(message: str) -> None:
    """One line, whatever a file name or a library's message holds: no line breaks, no terminal escapes."""
    say("error: ", message)


def say(kind: str, message: str) -> None:
    """One line on stderr, not too long, whatever was repeated in it."""
    text = printable(" ".join(message.split()))
    print(f"fitplan: {kind}{text if len(text) <= LONGEST else text[:LONGEST] + '...'}", file=sys.stderr)


LONGEST = 2000
"""Characters."""


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
