"""A line of tabs, where there is no room for all panels at once."""

from typing import Any

from textual import events
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from fitplan.tui.look import QUIET


class Strip(Widget):
    """``1 Memory  2 Moments ...``; the shown one in brackets."""

    shown: reactive[int] = reactive(0)

    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, names: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self._names = names

    def render(self) -> Content:
        """The tabs."""
        return Content.assemble(*[
            (text, "bold $primary" if number == self.shown else QUIET) for number, text in enumerate(self._texts())
        ])  # fmt: skip

    def _texts(self) -> list[str]:
        return [
            f"[{number} {name}]" if number == self.shown + 1 else f" {number} {name} "
            for number, name in enumerate(self._names, 1)
        ]

    def on_click(self, event: events.Click) -> None:
        """A click chooses the tab below the mouse."""
        offset = event.get_content_offset(self)
        end = 0
        for number, text in enumerate(self._texts()):
            end += len(text)
            if offset is not None and offset.x < end:
                self.post_message(self.Chosen(number))
                return
