"""When the memory is held: the moments of the step, one under the other in the order of time."""

from textual.content import Content

from fitplan.devices.device import Device
from fitplan.memory import MemoryMoment
from fitplan.plan import Plan
from fitplan.tui.look import QUIET, bar, device_bytes_of, lines, parts_of, shortened
from fitplan.tui.view import View
from fitplan.tui.widgets.panel import Panel, waiting
from fitplan.units import GIB, gib

PEAK = "◀ peak"
_WIDE, _NAME, _SHORT_NAME = 60, 24, 22


class MomentsPanel(Panel[View]):
    """A bar for each moment, with the line of what allocated memory may reach; the peak is named."""

    def draw(self, view: View) -> Content:
        """A line for each moment, the lowest left out where there is no room."""
        if view.plan is None or view.device is None:
            return waiting()
        width, height = self.room
        moments = _highest(view.plan, height)
        thick = max(1, min(2, height // len(moments)))
        return lines(row for moment in moments for row in _rows(moment, view.plan, view.device, width)[:thick])


def _highest(plan: Plan, most: int) -> list[MemoryMoment]:
    """The highest moments, in the order of time."""
    moments = plan.estimate.moments
    kept = sorted(moments, key=lambda moment: -moment.bytes)[:most]
    return [moment for moment in moments if moment in kept][:most]


def _rows(moment: MemoryMoment, plan: Plan, device: Device, width: int) -> list[Content]:
    """The moment's line, and its bar once more for where there is room to make it thick."""
    estimate = plan.estimate
    limit = device.usable_bytes - (device_bytes_of(plan, device) - estimate.peak_allocated_bytes)
    is_peak = moment.name == estimate.peak_moment
    name_room = _NAME if width >= _WIDE else _SHORT_NAME
    size = f"{gib(moment.bytes):>11}" if width >= _WIDE else f"{moment.bytes / GIB:>6.1f}"
    tail = (
        f"{size} {PEAK if is_peak else ' ' * len(PEAK)}" if width >= _WIDE else f"{size} {PEAK[0] if is_peak else ' '}"
    )
    room = max(4, width - name_room - len(tail))
    full = max(estimate.peak_allocated_bytes, limit)
    style = "bold" if is_peak else ""
    drawn = bar(parts_of(moment), full, room, max(0, limit))
    name = shortened(moment.name, name_room - 1)
    return [
        Content.assemble((f"{name:<{name_room}}", style), drawn, (tail, style or QUIET)),
        Content.assemble(" " * name_room, drawn),
    ]
