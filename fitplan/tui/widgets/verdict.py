"""The verdict: does it fit, what is left, and a bar of the GPU's memory."""

from collections.abc import Sequence

from textual.content import Content

from fitplan.devices.device import Device
from fitplan.plan import Plan
from fitplan.report.terminal import slack_text
from fitplan.tui.look import (
    EDGE,
    QUIET,
    badge,
    badge_of,
    bar,
    device_bytes_of,
    device_parts,
    lines,
    wrapped,
)
from fitplan.tui.view import Stage, View
from fitplan.tui.widgets.panel import Panel
from fitplan.units import gib


class VerdictPanel(Panel[View]):
    """The answer in one line, and the memory as a bar."""

    def draw(self, view: View) -> Content:
        """The verdict, or why there is none."""
        if view.plan is not None and view.device is not None:
            return self._answer(view.plan, view.device, view.warnings)
        if view.stage is Stage.TRACING:
            head = badge("…", "tracing", "$primary")
            told = f"This setup does not ship: its step is run without memory, in another process. {view.told}"
        else:
            head, told = badge("!", "no answer", "$error"), view.told
        return lines([head, *wrapped(told, self.room[0])])

    def _answer(self, plan: Plan, device: Device, warnings: Sequence[str]) -> Content:
        assert plan.verdict is not None
        width, height = self.room
        used = device_bytes_of(plan, device)
        full = max(used, device.total_bytes)
        drawn = bar(device_parts(plan), full, width, device.usable_bytes, device.total_bytes)
        head = Content.assemble(badge_of(plan.verdict), "  ", (slack_text(plan.verdict), "bold"))
        told = plan.verdict.reason
        if not plan.verdict.needs_words:
            told = f"needs {gib(used)} (up to {gib(plan.ask_for_bytes)}) in {plan.estimate.peak_moment}"
        words = wrapped("; ".join([told, *(f"note: {warning}" for warning in warnings)]), width)
        thick = max(1, min(3, height - 2 - len(words)))
        return lines([head, *[drawn] * thick, _ruler(device, full, width), *words][:height])


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
