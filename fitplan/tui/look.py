"""Colours, marks and words, the same on every screen.

Nothing is told by colour alone: each category has a mark and each verdict a sign and a word. The colours are those of
Okabe and Ito (jfly.uni-koeln.de/color), which the colour-blind can tell apart; yellow is darker on a light ground.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from textual.content import Content
from textual.theme import Theme

from fitplan.devices.device import Device
from fitplan.memory import MemoryMoment
from fitplan.plan import Plan
from fitplan.report.terminal import BESIDE_NAMES, CATEGORY_NAMES, beside
from fitplan.trace.events import OF_SEVERAL_GPUS, Category
from fitplan.verdict import Fit, Verdict

_COLOURS = {
    "base-weights": "#0072B2",
    "adapter-weights": "#56B4E9",
    "gradients": "#CC79A7",
    "optimizer-states": "#E69F00",
    "activations": "#009E73",
    "logits-and-loss": "#F0E442",
    "temporaries": "#999999",
    "workspaces": "#B8860B",
    "gathered-weights": "#882255",
    "communication": "#117733",
    "context": "#7F7F7F",
}

DARK = Theme(
    name="fitplan-dark",
    primary="#56B4E9",
    secondary="#0072B2",
    accent="#E69F00",
    success="#2DBE92",
    warning="#E69F00",
    error="#F0793A",
    foreground="#D9DEE4",
    background="#11151A",
    surface="#171C22",
    panel="#222932",
    dark=True,
    variables={**_COLOURS, "quiet": "#9AA5B1"},
)
LIGHT = Theme(
    name="fitplan-light",
    primary="#005F96",
    secondary="#56B4E9",
    accent="#9A6A00",
    success="#00724F",
    warning="#8F6200",
    error="#B04300",
    foreground="#1D242B",
    background="#FBFBF9",
    surface="#F3F3EF",
    panel="#E4E5E0",
    dark=False,
    variables={**_COLOURS, "logits-and-loss": "#B8A500", "quiet": "#56606A"},
)


@dataclass(frozen=True)
class Sign:
    """How a verdict is told: a sign, a word, a style."""

    mark: str
    word: str
    style: str


SIGNS = {
    Fit.FITS: Sign("✓", "fits", "bold $success"),
    Fit.TIGHT: Sign("~", "tight", "bold $warning"),
    Fit.ONLY_IF: Sign("?", "only if", "bold $warning"),
    Fit.DOES_NOT_FIT: Sign("✗", "does not fit", "bold $error"),
}
QUIET = "$quiet"
FREE, TAKEN, EDGE, MEASURED = "·", "╱", "┃", "█"


@dataclass(frozen=True)
class Part:
    """A piece of a stacked bar."""

    mark: str
    style: str
    name: str
    bytes: int


_MARKS = dict(zip(Category, "█▓▒░▞▚▖▘▥▧", strict=True))
_MARKS_BESIDE = "▤▮▨"


def parts_of(moment: MemoryMoment) -> list[Part]:
    """What is allocated at a moment, by category; without what one GPU alone never has."""
    return [
        Part(_MARKS[category], f"${category.value.replace('_', '-')}", CATEGORY_NAMES[category], size)
        for category, size in moment.breakdown.items()
        if size or category not in OF_SEVERAL_GPUS
    ]


def device_parts(plan: Plan) -> list[Part]:
    """What the device holds at the peak: what is allocated, and what the verdict counts beside it."""
    others = zip(_MARKS_BESIDE, beside(plan.memory).items(), strict=True)
    return [
        *parts_of(plan.estimate.peak),
        *(Part(mark, "$context", BESIDE_NAMES[key], size) for mark, (key, size) in others if size),
    ]


def device_bytes_of(plan: Plan, device: Device) -> int:
    """What the verdict says the device holds at the peak."""
    assert plan.verdict is not None, "the app always judges"
    return device.usable_bytes - plan.verdict.slack_bytes


def sign_of(verdict: Verdict) -> Content:
    """``✓ fits``, in its style."""
    sign = SIGNS[verdict.fit]
    return Content.styled(f"{sign.mark} {sign.word}", sign.style)


def badge_of(verdict: Verdict) -> Content:
    """``✓ FITS``, on its colour."""
    sign = SIGNS[verdict.fit]
    return badge(sign.mark, sign.word, sign.style.split()[-1])


def badge(mark: str, word: str, colour: str) -> Content:
    """A mark and a word, on a colour."""
    return Content.styled(f" {mark} {word.upper()} ", f"bold $background on {colour}")


def bar(parts: Iterable[Part], full: int, width: int, edge: int | None = None, end: int | None = None) -> Content:
    """A stacked bar of ``width`` cells for ``full`` bytes.

    Args:
        parts: what fills it.
        full: the bytes of the whole width.
        width: its cells.
        edge: a line is drawn after so many bytes.
        end: the memory ends after so many bytes: what a job cannot have, beyond ``edge``, is marked.

    """
    cells: list[tuple[str, str]] = []
    reached = 0
    for part in parts:
        reached += part.bytes
        cells += [(part.mark, part.style)] * (_cell(reached, full, width) - len(cells))
    usable = _cell(full if edge is None else edge, full, width)
    total = usable if end is None else _cell(end, full, width)
    cells += [(FREE, QUIET)] * (usable - len(cells))
    cells += [(TAKEN, QUIET)] * (total - len(cells))
    cells += [(" ", "")] * (width - len(cells))
    if edge is not None:
        cells[min(usable, width - 1)] = (EDGE, "bold $foreground")
    return _joined(cells)


def _cell(size: int, full: int, width: int) -> int:
    return round(size / full * width) if full else 0


def _joined(cells: list[tuple[str, str]]) -> Content:
    """Neighbours of one style as one span."""
    pieces: list[tuple[str, str]] = []
    for mark, style in cells:
        if pieces and pieces[-1][1] == style:
            pieces[-1] = (pieces[-1][0] + mark, style)
        else:
            pieces.append((mark, style))
    return Content.assemble(*pieces)


def shortened(text: str, room: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


def wrapped(text: str, width: int, style: str = QUIET) -> list[Content]:
    """A text in as many lines as it takes."""
    return [Content.styled(line, style) for line in textwrap.wrap(text, max(1, width), break_on_hyphens=False)]


def lines(parts: Iterable[Content]) -> Content:
    """Lines, one under the other."""
    return Content("\n").join(parts)
