"""The verdict: does it fit, what is left, and a bar of the GPU's memory."""

from textual.content import Content

from fitplan.devices.device import Device
from fitplan.plan import Plan
from fitplan.tui.look import EDGE, QUIET, bar, device_bytes_of, device_parts, lines, sign_of, slack_text
from fitplan.tui.view import Stage, View
from fitplan.tui.widgets.panel import Panel
from fitplan.units import gib
from fitplan.verdict import Fit


class VerdictPanel(Panel):
    """The answer in one line, and the memory as a bar."""

    def draw(self, view: View) -> Content:
        """The verdict, or why there is none."""
        if view.plan is not None and view.device is not None:
            return self._answer(view.plan, view.device)
        if view.stage is Stage.TRACING:
            head = Content.styled("… tracing the real step, which does not ship for this setup", "bold $accent")
        else:
            head = Content.styled("! no answer", "bold $error")
        return lines([head, Content.styled(view.told, QUIET)])

    def _answer(self, plan: Plan, device: Device) -> Content:
        assert plan.verdict is not None
        width, height = self.room
        used = device_bytes_of(plan, device)
        full = max(used, device.total_bytes)
        drawn = bar(device_parts(plan, device), full, width, device.usable_bytes, device.total_bytes)
        head = Content.assemble(
            sign_of(plan.verdict), "  ", (gib(used), "bold"), f" of {gib(device.usable_bytes)}, ", (slack_text(plan.verdict), "bold")
        )  # fmt: skip
        told = plan.verdict.reason if plan.verdict.fit is Fit.TIGHT else f"peak: {plan.estimate.peak_moment}"
        rows = [head, *[drawn] * (2 if height > 4 else 1), _ruler(device, full, width), Content.styled(told, QUIET)]
        return lines(rows[:height])


def _ruler(device: Device, full: int, width: int) -> Content:
    """Below the bar: what its line stands for, beside the line."""
    place = min(width - 1, round(device.usable_bytes / full * width))
    taken = device.total_bytes - device.usable_bytes
    words = f"{EDGE} {gib(device.usable_bytes)} usable"
    if taken > 0:
        words += f", {gib(taken)} taken"
    if place + len(words) <= width:
        return Content.styled(" " * place + words, QUIET)
    words = f"{words.removeprefix(EDGE + ' ')} {EDGE}"
    return Content.styled(words.rjust(place + 1), QUIET)
