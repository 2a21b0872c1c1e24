"""What is printed on a terminal shows there, and does nothing else to it."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment

from fitplan.names import printable


class Harmless(RenderHook):
    """Whatever is rendered, its text is :func:`fitplan.names.printable`; Rich's own controls stay."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """As Rich asks it, of everything before it is rendered."""
        return [_Printable(one) for one in renderables]


class _Printable:
    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
