"""A question, run for real: what will be run, how far it is, and whether the prediction holds."""

import asyncio
import shlex
from dataclasses import replace
from time import monotonic
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from fitplan.tui.child import ChildFailed, ask
from fitplan.tui.help import VALIDATE_HELP
from fitplan.tui.run import Place, Run, Stage
from fitplan.tui.screens.dialogs import Help, TakeAway
from fitplan.tui.widgets.panel import Panel
from fitplan.tui.widgets.run import DifferencesPanel, PeaksPanel, PhasesPanel, RunPanel
from fitplan.tui.widgets.strip import Strip
from fitplan.validation.job import Expectation, PhaseMemory
from fitplan.validation.report import read_comparison

PANELS = ("Phases", "Peaks", "Differences")
ALL_AT_ONCE = 36
"""Lines from which all panels are shown."""


class ValidateScreen(Screen[None]):
    """Runs a command when it is told to, and ends it when it is left.

    Args:
        title: what is run.
        words: the command, without ``fitplan``.
        place: where it is done.

    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("enter", "start", "Run"),
        Binding("escape,q", "stop", "Stop"),
        Binding("escape,q", "leave", "Back"),
        *(Binding(str(n), f"panel({n - 1})", name, show=False) for n, name in enumerate(PANELS, 1)),
        Binding("tab", "next_panel", "Next", show=False),
        Binding("y", "take", "Copy"),
        Binding("t", "app.turn_theme", "Theme"),
    ]

    def __init__(self, title: str, words: list[str], place: Place) -> None:
        super().__init__()
        self._title, self._words = title, words
        self.run = Run(place, shlex.join(["fitplan", *words]))

    def compose(self) -> ComposeResult:
        """The run, and what it measures."""
        yield RunPanel(self._title, id="run")
        yield Strip(PANELS, id="strip")
        yield PhasesPanel("1 Phases", id="phases", classes="later -shown")
        yield PeaksPanel("2 Peaks", id="peaks", classes="later")
        yield DifferencesPanel("3 Differences", id="differences", classes="later")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Nothing runs yet."""
        self._show(self.run)

    def on_resize(self) -> None:
        """As many panels as there is room for."""
        self.set_class(self.size.height >= ALL_AT_ONCE, "-all")

    def _show(self, run: Run) -> None:
        changed = run.stage is not self.run.stage
        self.run = run
        for panel in self.query(Panel):
            panel.view = run
        if changed:
            self.refresh_bindings()

    # --- the run ------------------------------------------------------------------------------------------------------

    @work(group="run", exclusive=True)
    async def _go(self) -> None:
        """Run it; whoever cancels this ends the process, and waits until it has ended."""
        began = monotonic()

        def tick() -> None:
            self._show(replace(self.run, seconds=round(monotonic() - began)))

        timer = self.set_interval(1, tick)
        try:
            answer = await ask(self._words, self._tell, self._hear)
            outcome = read_comparison(answer.document)
            self._show(replace(self.run, stage=Stage.DONE, told=answer.complaint, outcome=outcome))
        except ChildFailed as error:
            self._show(replace(self.run, stage=Stage.FAILED, told=str(error)))
        except asyncio.CancelledError:
            if self.is_running:
                self._show(Run(self.run.place, self.run.command, told=f"stopped after {self.run.seconds} s"))
            raise
        finally:
            timer.stop()

    def _tell(self, what: str) -> None:
        if self.run.stage is Stage.RUNNING:
            self._show(replace(self.run, told=what))

    def _hear(self, news: Expectation | PhaseMemory) -> None:
        self._show(self.run.heard(news))

    # --- what the keys do ---------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Only what is running can be stopped, and only what is not can be started."""
        if action == "start":
            return self.run.stage not in (Stage.RUNNING, Stage.STOPPING)
        return self.run.stage is Stage.RUNNING if action == "stop" else True

    def action_start(self) -> None:
        """Run it, or run it again."""
        self._show(Run(self.run.place, self.run.command, Stage.RUNNING, "starting"))
        self._go()

    def action_stop(self) -> None:
        """End the process."""
        self._show(replace(self.run, stage=Stage.STOPPING, told="the run is being ended"))
        self.workers.cancel_group(self, "run")

    def action_leave(self) -> None:
        """Back to the plan."""
        self.dismiss()

    def action_panel(self, number: int) -> None:
        """Show a panel."""
        self.query_one(Strip).shown = number
        for place, name in enumerate(PANELS):
            self.query_one(f"#{name.lower()}").set_class(place == number, "-shown")

    def action_next_panel(self) -> None:
        """The panels go round."""
        self.action_panel((self.query_one(Strip).shown + 1) % len(PANELS))

    def on_strip_chosen(self, message: Strip.Chosen) -> None:
        """A tab was clicked."""
        self.action_panel(message.number)

    def action_take(self) -> None:
        """Copy the command."""
        self.app.copy_to_clipboard(self.run.command)
        self.app.push_screen(TakeAway("Command line", self.run.command))

    def action_help(self) -> None:
        """What the keys do."""
        self.app.push_screen(Help("Help: validate", VALIDATE_HELP))
