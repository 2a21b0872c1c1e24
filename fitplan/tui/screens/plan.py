"""The main screen: one question, its answer, and everything that can be changed about it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer

from fitplan.devices.detect import Machine
from fitplan.errors import FitplanError, InputError
from fitplan.footprint.store import SHIPPED
from fitplan.tui import sources
from fitplan.tui.answers import Answers, Superseded
from fitplan.tui.child import ask
from fitplan.tui.help import PLAN_HELP
from fitplan.tui.knobs import METHOD_NAMES, knob_of
from fitplan.tui.reproduce import arguments, command_line, python_call, validation_words
from fitplan.tui.screens.compare import CompareScreen
from fitplan.tui.screens.dialogs import Help, TakeAway
from fitplan.tui.screens.picker import Picker
from fitplan.tui.state import History, Question
from fitplan.tui.view import Stage, View, view_of
from fitplan.tui.widgets.advice import AdvicePanel
from fitplan.tui.widgets.fitmap import MapPanel
from fitplan.tui.widgets.heading import Heading
from fitplan.tui.widgets.memory import MemoryPanel
from fitplan.tui.widgets.moments import MomentsPanel
from fitplan.tui.widgets.panel import Panel
from fitplan.tui.widgets.settings import GPU, MODEL, SettingsPanel
from fitplan.tui.widgets.strip import Strip
from fitplan.tui.widgets.verdict import VerdictPanel
from fitplan.validation.records import plain_name

PAUSE = 0.12
"""Seconds without another key after which what is costly is looked up."""

TELL_EVERY = 1.0
"""Seconds between two words on how far a child is."""

ALL_AT_ONCE, VERY_WIDE = (110, 36), 165
"""Columns and lines from which all panels are shown; columns from which they stand in three columns."""

PANELS = ("Memory", "Moments", "Advice", "Map")


class PlanScreen(Screen[None]):
    """Asks a question, shows the answer at once, and what takes longer when it is there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("m", "pick('model')", "Model"),
        Binding("g", "pick('gpu')", "GPU"),
        Binding("u", "undo", "Undo"),
        Binding("r,ctrl+r", "redo", "Redo", show=False),
        Binding("c", "compare", "Compare"),
        Binding("v", "validate", "Validate"),
        Binding("s", "save", "Save"),
        Binding("y", "take('command')", "Copy"),
        Binding("Y", "take('call')", "Copy as Python", show=False),
        Binding("q", "app.quit", "Quit"),
        Binding("h", "hold", "Hold"),  # 80 columns end here
        Binding("t", "app.turn_theme", "Theme"),
        *(Binding(str(n), f"panel({n - 1})", name, show=False) for n, name in enumerate(PANELS, 1)),
    ]

    def __init__(self, question: Question, answers: Answers, machine: Machine, *, to_choose: tuple[str, ...]) -> None:
        super().__init__()
        self.history = History(question)
        self.held: tuple[Question, ...] = ()
        self.view: View | None = None
        self._answers, self._machine, self._to_choose = answers, machine, to_choose

    def compose(self) -> ComposeResult:
        """The panels, in the order in which the grid places them."""
        yield Heading("", id="head")
        with Container(id="panels"):
            yield SettingsPanel("Setup", id="settings")
            yield VerdictPanel("Verdict", id="verdict")
            yield Strip(PANELS, id="strip")
            yield MomentsPanel("2 Moments of the step", id="moments", classes="later")
            yield AdvicePanel("3 Advice", id="advice", classes="later")
            yield MemoryPanel("1 Memory at the peak", id="memory", classes="later -shown")
            yield MapPanel("4 Fit map: length x batch", id="map", classes="later")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Ask the first question; where none was given, choose one."""
        self.query_one(SettingsPanel).focus()
        self._answer()
        self._choose_next()

    def _choose_next(self) -> None:
        """What was left open at the start is chosen from lists, one after the other."""
        if self._to_choose:
            name, *rest = self._to_choose
            self._to_choose = tuple(rest)
            self.action_pick(name)

    def on_resize(self) -> None:
        """As many panels as there is room for."""
        width, height = self.size
        everything = width >= ALL_AT_ONCE[0] and height >= ALL_AT_ONCE[1]
        self.set_class(everything, "-all")
        self.set_class(everything and width >= VERY_WIDE, "-wide")

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(self, question: Question) -> None:
        """Ask another question; it can be taken back."""
        self.history = self.history.ask(question)
        self._answer()

    def _answer(self) -> None:
        """Show what is known at once; look up the rest when the keys rest."""
        view = view_of(self._answers, self.history.now, self.view)
        self._show(view, advice_too=view.plan is None)
        if view.stage is not Stage.FAILED:
            self._complete(view)
        else:
            self.workers.cancel_group(self, "answer")

    @work(group="answer", exclusive=True)
    async def _complete(self, view: View) -> None:
        """What takes longer: a trace where nothing is known, then advice and map. Another question cancels it."""
        await asyncio.sleep(PAUSE)
        try:
            if view.plan is None:
                view = await self._traced(view)
            view = await self._looked_up(view)
            if view.fit_map is None and view.plan is not None:
                await self._child("map", view, self._tell_later)
                view = await self._looked_up(view)
            if view.plan is not None and view.plan.source != SHIPPED:
                await self._child("advise", view, lambda _: None)
                await self._looked_up(view)
        except FitplanError as error:
            if view.plan is None:
                self._show(replace(view, stage=Stage.FAILED, told=str(error)))
            else:
                self._show(replace(self.view or view, later=str(error)))
        except Superseded:
            return

    async def _traced(self, view: View) -> View:
        """The answer of a child, which keeps what it traced where the app finds it."""
        await self._child("check", view, self._tell)
        if view.model is None:
            await asyncio.to_thread(self._answers.fetched, view.question)
        found = view_of(self._answers, view.question)
        if found.plan is None and found.stage is not Stage.FAILED:
            raise InputError("it was traced, but could not be kept: the cache folder cannot be written")
        self._show(found)
        return found

    async def _looked_up(self, view: View) -> View:
        """Advice and map, as far as they are known."""
        question = view.question

        def wanted() -> bool:
            return self.is_running and self.history.now is question

        advice = await asyncio.to_thread(self._answers.advice, question, wanted)
        offers = self._answers.offers(question, advice) if advice is not None else None
        fit_map = await asyncio.to_thread(self._answers.fit_map, question)
        view = replace(view, offers=offers, fit_map=fit_map)
        self._show(view)
        return view

    async def _child(self, command: str, view: View, tell: Callable[[str], None]) -> None:
        """Ask another process, and tell every second how far it is; what it finds it keeps where the app looks."""
        began = monotonic()
        latest = ["starting"]
        timer = self.set_interval(TELL_EVERY, lambda: tell(f"{latest[-1]} ({monotonic() - began:.0f} s)"))
        try:
            await ask(arguments(view.question, view.model, command), latest.append)
        finally:
            timer.stop()

    def _tell(self, progress: str) -> None:
        if self.view is not None:
            self._show(replace(self.view, told=progress))

    def _tell_later(self, progress: str) -> None:
        if self.view is not None:
            self._show(replace(self.view, later=progress))

    def _show(self, view: View, *, advice_too: bool = True) -> None:
        """Hand the view to the panels; advice and map keep the last one until there is another."""
        self.view = view
        for panel in self.query(Panel):
            if advice_too or not isinstance(panel, MapPanel):
                panel.view = view
        if advice_too:
            self.query_one(AdvicePanel).view = view

    # --- what the panels say ------------------------------------------------------------------------------------------

    def on_settings_panel_stepped(self, message: SettingsPanel.Stepped) -> None:
        """A setting goes to its next value."""
        knob = message.knob
        if self.view is not None and knob.applies(self.view.setup):
            now = getattr(self.view.setup, knob.name)
            value = knob.step(now, message.by, message.fine)
            if value != now:
                self.ask(self.history.now.change(knob.name, value))

    def on_settings_panel_asked(self, message: SettingsPanel.Asked) -> None:
        """A value is to be picked."""
        self.action_pick(message.name)

    def on_advice_panel_taken(self, message: AdvicePanel.Taken) -> None:
        """An offer was taken; one that answers an older question is not."""
        if self.view is not None and self.view.offers is not None:
            self.ask(message.offer.question)

    def on_map_panel_chosen(self, message: MapPanel.Chosen) -> None:
        """A point of the map was chosen."""
        cell = message.cell
        self.ask(self.history.now.change("seq_len", cell.seq_len).change("batch_size", cell.batch_size))

    def on_strip_chosen(self, message: Strip.Chosen) -> None:
        """A tab was clicked."""
        self.action_panel(message.number)

    # --- what the keys do ---------------------------------------------------------------------------------------------

    def action_panel(self, number: int) -> None:
        """Show a panel, and give it the keys if it takes any."""
        self.query_one(Strip).shown = number
        for place, name in enumerate(("memory", "moments", "advice", "map")):
            self.query_one(f"#{name}").set_class(place == number, "-shown")
        panel = self.query_one(f"#{('memory', 'moments', 'advice', 'map')[number]}", Widget)
        (panel if panel.can_focus else self.query_one(SettingsPanel)).focus()

    def action_undo(self) -> None:
        """Take the last change back."""
        self.history = self.history.undo()
        self._answer()

    def action_redo(self) -> None:
        """Do again what was taken back."""
        self.history = self.history.redo()
        self._answer()

    def action_pick(self, name: str) -> None:
        """Choose a model, a GPU or the value of a setting from a list."""
        if name == MODEL:
            picker = Picker(
                "Model", "type to search, or a hub id (owner/name), a folder, a config.json", sources.models
            )
            self.app.push_screen(picker, self._model_picked)
        elif name == GPU:
            self._answers.forget_devices()
            source = partial(sources.gpus, self._machine)
            now = ("gpu", self.view.device.name if self.view is not None and self.view.device is not None else "")
            picker = Picker("GPU", "type to search, or an amount of memory: 24GiB", source, now)
            self.app.push_screen(picker, self._gpu_picked)
        elif self.view is not None and (knob := knob_of(name)) is not None:
            now = getattr(self.view.setup, name)
            hint = f"type {'a number' if knob.is_number else 'to search'}: {knob.help}"
            picker = Picker(knob.label, hint, partial(sources.values, knob), now)
            self.app.push_screen(picker, partial(self._value_picked, name))

    def _model_picked(self, name: str | None) -> None:
        if name is not None:
            self.ask(self.history.now.of(name))
        self._choose_next()

    def _gpu_picked(self, device: tuple[str, str] | None) -> None:
        if device is not None:
            self.ask(self.history.now.on(**dict([device])))
        self._choose_next()

    def _value_picked(self, name: str, value: Any) -> None:
        if value is not None:
            self.ask(self.history.now.change(name, value))

    def action_hold(self) -> None:
        """Keep this setup to compare others with it."""
        if self.history.now not in self.held:
            self.held = (*self.held, self.history.now)
        self.query_one(Heading).held = len(self.held)
        self.notify("held; c compares it with what you change from here", timeout=3)

    def action_compare(self) -> None:
        """Put this setup beside others."""
        self.app.push_screen(CompareScreen(self._answers, self.history.now, self.held), self._compared)

    def _compared(self, result: tuple[Question, tuple[Question, ...]] | None) -> None:
        if result is not None:
            question, self.held = result
            self.query_one(Heading).held = len(self.held)
            self.ask(question)

    def action_validate(self) -> None:
        """Run this for real."""
        from fitplan.tui.run import place_for
        from fitplan.tui.screens.validate import ValidateScreen

        view = self.view
        if view is None or view.stage is Stage.FAILED:
            self.notify("there is no answer that a run could be held against", severity="warning", timeout=3)
            return
        place = place_for(view.question, view.model, view.device, self._machine)
        words = validation_words(view.question, view.model, place.flags)
        title = f"Validate {_model_name(view)}, {METHOD_NAMES[view.question.method]}"
        self.app.push_screen(ValidateScreen(title, words, place))

    def action_save(self) -> None:
        """Write the report of this question."""
        from fitplan.tui.screens.save import SaveReport

        if self.view is not None:
            question = self.view.question
            name = f"fitplan-{plain_name(_model_name(self.view))}-{question.method}.html"
            self.app.push_screen(SaveReport(arguments(question, self.view.model, "report"), name))

    def action_take(self, what: str) -> None:
        """Copy the command line or the Python call that gives this answer."""
        question, model = self.history.now, self.view.model if self.view is not None else None
        text = python_call(question, model) if what == "call" else command_line(question, model)
        self.app.copy_to_clipboard(text)
        self.app.push_screen(TakeAway("Python" if what == "call" else "Command line", text))

    def action_help(self) -> None:
        """What the keys do."""
        self.app.push_screen(Help("Help", PLAN_HELP))


def _model_name(view: View) -> str:
    return view.model.name if view.model is not None else view.question.model
