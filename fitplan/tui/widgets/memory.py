"""Where the memory goes at the peak, category by category."""

from textual.content import Content

from fitplan.audit import unquantised_share
from fitplan.devices.device import Device
from fitplan.plan import Plan
from fitplan.report.terminal import LOUD_SHARE
from fitplan.setup import Method
from fitplan.tui.look import EDGE, FREE, QUIET, Part, device_parts, lines
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel, waiting
from fitplan.units import count, gib

_NUMBERS = 18


class MemoryPanel(Panel[View]):
    """The legend of the bar, with sizes and shares."""

    def draw(self, view: View) -> Content:
        """A line for each category, then facts as far as there is room."""
        if view.plan is None or view.device is None:
            return waiting()
        width, height = self.room
        rows = _legend(view.plan, view.device, width)
        facts = [Content(), *_facts(view.plan)]
        return lines([*rows, *facts][:height])


def _legend(plan: Plan, device: Device, width: int) -> list[Content]:
    parts = device_parts(plan)
    total = sum(part.bytes for part in parts)
    whole = max(total, device.usable_bytes)
    rows = [_row(part, whole, width) for part in parts]
    slack = device.usable_bytes - total
    left = Part(FREE if slack >= 0 else EDGE, QUIET, "left" if slack >= 0 else "too much", abs(slack))
    return [*rows, _row(left, whole, width)]


def _row(part: Part, total: int, width: int) -> Content:
    style = "" if part.bytes else QUIET
    size, share = (gib(part.bytes), f"{100 * part.bytes / total:.0f} %") if part.bytes else ("–", "")
    return Content.assemble(
        (part.mark, part.style), (f" {part.name}".ljust(width - _NUMBERS), style), (f"{size:>11}{share:>6}", style)
    )


def _facts(plan: Plan) -> list[Content]:
    trained = 100 * plan.trainable_parameters / plan.base_parameters
    told = [f"trains {count(plan.trainable_parameters)} of {count(plan.base_parameters)} ({trained:.2f} %)"]
    if plan.adapter_checkpoint_bytes is not None:
        told.append(f"adapter on disk: {gib(plan.adapter_checkpoint_bytes)}")
    rows = [Content.styled(text, QUIET) for text in told]
    if plan.setup.method is Method.QLORA:
        share = unquantised_share(plan.parameters)
        loud = share > LOUD_SHARE
        text = f"{'! ' if loud else ''}not quantised: {100 * share:.1f} % of parameters"
        rows.append(Content.styled(text, "bold $error" if loud else QUIET))
    return rows
