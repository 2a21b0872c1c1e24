"""The first line: what is asked, and where the answer comes from."""

from textual.content import Content
from textual.reactive import reactive

from fitplan.tui.knobs import METHOD_NAMES
from fitplan.tui.look import QUIET
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel

SOURCES = {"shipped": "shipped formula", "cache": "traced on this machine", "trace": "traced now"}


class Heading(Panel[View]):
    """Model, method, GPU, source; and how many setups are held."""

    held: reactive[int] = reactive(0)

    def draw(self, view: View) -> Content:
        """One line."""
        model = view.model.name if view.model is not None else view.question.model
        device = view.device.name if view.device is not None else view.question.gpu or view.question.vram or ""
        source = SOURCES[view.plan.source] if view.plan is not None else ""
        return Content.assemble(
            ("fitplan", "bold $primary"),
            ("  " + model, "bold"),
            (f"  {METHOD_NAMES[view.question.method]} on  ", QUIET),
            (device, "bold"),
            (f"   {source}", QUIET),
            (f"   {self.held} held" if self.held else "", "$primary"),
        )
