"""The advice: what could be changed, each of it estimated; Enter takes one."""

from typing import Any

from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from fitplan.tui.answers import Offer
from fitplan.tui.look import QUIET, SIGNS, lines, slack_text
from fitplan.tui.view import View
from fitplan.units import gib

_SAVED = 11


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

    def watch_view(self, view: View | None) -> None:
        """Show the offers of a view; those of the question before stay until then, and cannot be taken."""
        if view is None or view.offers is None:
            if view is not None and view.later:
                self._show((), view.later)
            return
        self._show(view.offers, "nothing that is known here would save memory")

    def _show(self, offers: tuple[Offer, ...], otherwise: str) -> None:
        if offers == self._offers and self.option_count:
            return
        self._offers = offers
        self.clear_options()
        if offers:
            self.add_options([Option(_row(offer)) for offer in offers])
            self.highlighted = 0
        else:
            self.add_option(Option(Content.styled(otherwise, QUIET), disabled=True))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter or a click takes an offer, unless it answers an older question."""
        event.stop()
        if self.view is not None and self.view.offers == self._offers:
            self.post_message(self.Taken(self._offers[event.option_index]))


def _row(offer: Offer) -> Content:
    proposal = offer.proposal
    if proposal is None:
        return Content.assemble(("→ ", "bold $primary"), offer.title)
    sign = SIGNS[proposal.verdict.fit]
    saved = f"{gib(proposal.saved_bytes)} less" if proposal.saved_bytes >= 0 else f"{gib(-proposal.saved_bytes)} more"
    head = Content.assemble((f"{sign.mark} ", sign.style), offer.title)
    told = f"  {saved}, then {slack_text(proposal.verdict)}"
    return lines([head, Content.styled(f"{told}; {offer.note}" if offer.note else told, QUIET)])
