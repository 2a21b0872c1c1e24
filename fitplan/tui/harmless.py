"""What the app shows does nothing else to the terminal."""

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from fitplan.names import printable


class Harmless(LineFilter):
    """Characters that act on a terminal stand as one that says so, as wide as a letter (U+FFFD)."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002  Textual passes it by name
        """As Textual asks it, of every line that is drawn."""
        if all(text.isprintable() for text, _, _ in segments):
            return segments
        return [segment if segment.control else Segment(_shown(segment.text), segment.style) for segment in segments]


def _shown(text: str) -> str:
    return "".join("\N{REPLACEMENT CHARACTER}" if printable(one) != one else one for one in text)
