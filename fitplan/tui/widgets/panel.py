"""A frame with a title that draws a view."""

from typing import Any, Generic, TypeVar

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from fitplan.tui.look import QUIET

Shown = TypeVar("Shown")


class Panel(Widget, Generic[Shown]):
    """Draws ``view`` with :meth:`draw`, within the size it is given."""

    view: reactive[Shown | None] = reactive(None)

    def __init__(self, title: str, **options: Any) -> None:
        super().__init__(**options)
        self.border_title = title

    def render(self) -> Content:
        """What :meth:`draw` draws; nothing while there is no view."""
        return self.draw(self.view) if self.view is not None else Content()

    def draw(self, view: Shown) -> Content:
        """The content of the frame."""
        raise NotImplementedError

    @property
    def room(self) -> tuple[int, int]:
        """Columns and lines within the frame."""
        return max(1, self.content_size.width), max(1, self.content_size.height)


def waiting() -> Content:
    """In place of an answer that is not there."""
    return Content.styled("no answer yet", QUIET)
