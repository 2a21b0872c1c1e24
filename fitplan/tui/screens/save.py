"""Save the report of a question: a name is typed, another process writes the page."""

from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from fitplan.tui.child import ChildFailed, write_report


class SaveReport(ModalScreen[None]):
    """Asks for the file; Enter writes it, and Enter again writes over one that is there.

    Args:
        words: the command, without ``fitplan`` and without the file.
        name: the file that is proposed, in the current folder.

    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back")]

    def __init__(self, words: list[str], name: str) -> None:
        super().__init__()
        self._words, self._name = words, name
        self._warned_of: Path | None = None
        self._is_busy = self._is_done = False

    def compose(self) -> ComposeResult:
        """The line, what is to be said, the keys."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Save the report"
            yield Input(self._name, placeholder="a file, such as report.html", compact=True)
            yield Static(Content("Everything about this question on one page, which needs nothing else."), id="told")
            yield Static("Enter write   Esc back", id="keys", classes="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Write it, where nothing is in the way; where it is written, Enter goes back."""
        if self._is_done:
            self.dismiss()
            return
        file = Path(event.value.strip()).expanduser()
        if self._is_busy:
            return
        if file.is_file() and file != self._warned_of:
            self._warned_of = file
            self._tell(f"{file} is there already; Enter again writes over it.", "$warning")
            return
        self._is_busy = True
        self._tell("starting")
        self._write(file)

    @work(group="save", exclusive=True)
    async def _write(self, file: Path) -> None:
        try:
            await write_report([*self._words, f"--out={file}"], self._tell)
        except ChildFailed as error:
            self._tell(f"Not written: {error}.", "$error")
        else:
            self._is_done = True
            self._tell(f"Written: {file.absolute()}", "$success")
            self.query_one("#keys", Static).update("Enter or Esc back")
        self._is_busy = False

    def _tell(self, what: str, colour: str = "$quiet") -> None:
        self.query_one("#told", Static).update(Content.styled(what, colour))
