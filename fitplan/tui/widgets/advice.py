"""The advice: what could be changed, each of it estimated; Enter takes one."""

from typing import Any

from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from fitplan.report.terminal import slack_text
from fitplan.tui.answers import Offer
from fitplan.tui.look import QUIET, SIGNS, lines, wrapped
from fitplan.tui.view import View
from fitplan.units import gib


class AdvicePanel(OptionList):
    """A list of offers; with each its verdict, what it saves, and its price."""

    view: reactive[View | None] = reactive(None)

    class Taken(Message):
        """An offer was taken."""

        def __init__(self, offer: Offer) -> None:
            super().__init__()
            self.offer = offer

    def __init__(self, title: str, **options: Any) -> None:
        super().__init__(**options)
        self.border_title = title
        self._offers: tuple[Offer, ...] = ()
        self._width = 0

    def watch_view(self, view: View | None) -> None:
        """Show the offers of a view."""
        if view is None:
            return
        if view.offers is not None:
            self._show(view.offers, "nothing that is known here would save memory")
        elif view.plan is None:
            self._show((), "no answer yet")

    def on_resize(self) -> None:
        """The lines are broken anew."""
        self._width = 0
        self.watch_view(self.view)

    def _show(self, offers: tuple[Offer, ...], otherwise: str) -> None:
        width = self.scrollable_content_region.width - 1
        if (offers, width) == (self._offers, self._width) and offers:
            return
        self._offers, self._width = offers, width
        self.clear_options()
        if offers:
            self.add_options([Option(_row(offer, width)) for offer in offers])
            self.highlighted = 0
        else:
            self.add_option(Option(Content.styled(otherwise, QUIET), disabled=True))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter or a click takes an offer."""
        event.stop()
        self.post_message(self.Taken(self._offers[event.option_index]))


def _row(offer: Offer, width: int) -> Content:
    """What is done, what that saves, what it costs."""
    proposal = offer.proposal
    room = max(10, width - 2)
    if proposal is None:
        mark, style, told = "→", "bold $primary", ""
    else:
        mark, style = SIGNS[proposal.verdict.fit].mark, SIGNS[proposal.verdict.fit].style
        saved = proposal.saved_bytes
        told = f"{gib(abs(saved))} {'less' if saved >= 0 else 'more'}, then {slack_text(proposal.verdict)}"
    first, *rest = wrapped(offer.title, room, "bold")
    below = [*rest, *wrapped(told, room, ""), *wrapped(offer.note, room)]
    return lines([Content.assemble((f"{mark} ", style), first), *(line.pad_left(2) for line in below)])
