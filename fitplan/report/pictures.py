"""The pictures of a report: each a function from an answer to an SVG document.

Text stays text, and every colour is one of :data:`LIGHT`, so that a page can put its own in their place. What a colour
tells is told by a pattern, a word or a sign as well: for print, and for eyes that see colours otherwise.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fitplan.fitmap import Cell, FitMap
from fitplan.plan import CheckReport
from fitplan.report.dossier import Series
from fitplan.report.terminal import BESIDE_NAMES, CATEGORY_NAMES, METHOD_NAMES, VERDICT_STYLES, beside
from fitplan.trace.events import Category
from fitplan.units import GIB, gib
from fitplan.verdict import Fit

Key = Patch | Line2D
Parts = Mapping[Any, int]
"""Bytes by category, or by what is held beside them."""
_WHOLE = "whole"

LIGHT: dict[str, str] = {
    "ground": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#5c6570",
    "rule": "#d8dce1",
    Category.BASE_WEIGHTS: "#0072b2",
    Category.ADAPTER_WEIGHTS: "#56b4e9",
    Category.GRADIENTS: "#cc79a7",
    Category.OPTIMIZER_STATES: "#e69f00",
    Category.ACTIVATIONS: "#009e73",
    Category.LOGITS_AND_LOSS: "#e3cf1d",
    Category.TEMPORARIES: "#d55e00",
    Category.WORKSPACES: "#8e98a3",
    Category.GATHERED_WEIGHTS: "#882255",
    Category.COMMUNICATION: "#117733",
    "kept": "#c3cad2",
    "context": "#4a525c",
    "nccl": "#999933",
    _WHOLE: "#0073b3",
    Fit.FITS: "#d3efe3",
    Fit.TIGHT: "#fbeab5",
    Fit.ONLY_IF: "#fbdbb5",
    Fit.DOES_NOT_FIT: "#f8d8c6",
}
"""The colours on white; those of the categories are Okabe and Ito's, the yellow a little darker."""

DARK: dict[str, str] = {
    **LIGHT,
    "ground": "#171b21",
    "ink": "#e9ecf0",
    "muted": "#a1abb7",
    "rule": "#39414c",
    Category.BASE_WEIGHTS: "#2b8fd0",
    Category.WORKSPACES: "#7b8691",
    "kept": "#525c68",
    "context": "#b4bdc7",
    _WHOLE: "#2b8fd1",
    Fit.FITS: "#12493a",
    Fit.TIGHT: "#57470f",
    Fit.ONLY_IF: "#5f3a12",
    Fit.DOES_NOT_FIT: "#66301a",
}
"""The same on a dark ground."""

_HATCHES: dict[str, str] = {
    Category.BASE_WEIGHTS: "",
    Category.ADAPTER_WEIGHTS: "///",
    Category.GRADIENTS: "xxx",
    Category.OPTIMIZER_STATES: "\\\\\\",
    Category.ACTIVATIONS: "|||",
    Category.LOGITS_AND_LOSS: "---",
    Category.TEMPORARIES: "+++",
    Category.WORKSPACES: "",
    Category.GATHERED_WEIGHTS: "...",
    Category.COMMUNICATION: "ooo",
    "kept": "xx",
    "context": "",
    "nccl": "**",
}
_NAMES: dict[Any, str] = {**CATEGORY_NAMES, **BESIDE_NAMES}
_HAIR = 1 / 400
"""Of the widest bar: what is thinner is not in the legend."""

WIDTH = 440
"""Of every picture, in CSS pixels: it can be read on a telephone, and two stand side by side on a screen."""
_ROW = 27  # height of a row
_TEXT, _SMALL_TEXT = 12, 11  # heights of letters
_LETTER = 6.9  # width of a letter, on average, in the wider of the fonts below
_VALUE = 84  # width of the column of values
_KEY = 18  # height of a line of the legend
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": _TEXT,
    "hatch.linewidth": 0.7,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


def totals_svg(report: CheckReport) -> str:
    """Device memory at the peak of each plan, by category, beside what the GPU has."""
    bars: dict[str, Parts] = {
        METHOD_NAMES[plan.setup.method]: {**plan.estimate.breakdown, **beside(plan.memory)} for plan in report.plans
    }
    sizes = [plan.memory.bytes for plan in report.plans]
    usable = report.gpu.usable_bytes if report.gpu else None

    def draw() -> Figure:
        keys = _keys(bars.values(), max(sizes))
        figure, axes = _rows(tuple(bars), _reach(max(sizes), usable), keys, height=2 * _ROW)
        if usable is not None:
            _limit(axes, usable, f"{gib(usable)} usable")
        for row, (parts, size) in enumerate(zip(bars.values(), sizes, strict=True)):
            _stack(axes, row, parts)
            _value(axes, row, gib(size), bold=True)
        return figure

    return _drawn(draw, "Device memory at the peak, by what it holds")


def timelines_svg(series: Sequence[Series], room: int | None = None) -> str:
    """Memory over the moments of a step, from top to bottom; the first series as bars, the others as lines over them.

    Args:
        series: what is compared; the parts of the first are shown where they are known.
        room: the most that can be allocated, in bytes.

    """
    first, *others = series
    moments = _in_order(one.totals for one in series)
    peak = max(first.totals, key=lambda moment: first.totals[moment])
    most = max(size for one in series for size in one.totals.values())

    def draw() -> Figure:
        whole = Patch(label=first.name, **_look(_WHOLE))
        keys: list[Key] = [*_keys(first.parts.values(), most)] if first.parts else [whole]
        keys += [Line2D([], [], label=one.name, **_line(number)) for number, one in enumerate(others)]
        figure, axes = _rows(moments, _reach(most, room), keys, bold=peak, right=_VALUE + 56 * len(others))
        if room is not None:
            _limit(axes, room, f"room for {gib(room)}")
        for row, moment in enumerate(moments):
            sizes = [one.totals.get(moment) for one in series]
            _stack(axes, row, first.parts.get(moment) or {_WHOLE: first.totals.get(moment, 0)})
            text = " / ".join(map(_short, sizes)) if others else gib(sizes[0] or 0)
            _value(axes, row, text, bold=moment == peak)
        for number, one in enumerate(others):
            at = [(one.totals[moment], row) for row, moment in enumerate(moments) if moment in one.totals]
            axes.plot(*zip(*at, strict=True), clip_on=False, zorder=5, **_line(number))
        if others:
            _value(axes, -1, " / ".join(one.name for one in series), bold=False)
        return figure

    names = " and ".join(one.name for one in series)
    return _drawn(draw, f"Allocated memory over the moments of the step, {names}; it peaks in the {peak}")


def fit_map_svg(found: FitMap) -> str:
    """Allocated memory at the peak for each length and batch size, and what fits."""
    lengths = [row[0].seq_len for row in found.cells]
    batches = [cell.batch_size for cell in found.cells[0]]
    asked = found.setup.batch_size, found.setup.seq_len

    def draw() -> Figure:
        figure, axes = _canvas((len(lengths) + 1) * _ROW, left=60, right=56, top=46, bottom=38)
        axes.set(xlim=(0, len(batches)), ylim=(len(lengths) + 1, 0))
        write = partial(axes.text, ha="center", va="center")
        muted: dict[str, Any] = {"color": LIGHT["muted"]}
        bold: dict[str, Any] = {"weight": "bold"}
        before, after = -0.15, len(batches) + 0.25

        write(len(batches) / 2, -1.05, "batch size", **muted)
        write(before, -0.3, "length", ha="right", **muted)
        write(before, len(lengths) + 0.55, "longest", ha="right", **muted)
        write(after, -0.67, "largest\nbatch", ha="left", linespacing=1.1, **muted)
        for x, batch in enumerate(batches):
            write(x + 0.5, -0.3, str(batch))
            longest = found.longest_seq[batch]
            text = f"{longest:,}" if longest else "none"
            write(x + 0.5, len(lengths) + 0.55, text, fontsize=_SMALL_TEXT, **bold)
        for y, (length, row) in enumerate(zip(lengths, found.cells, strict=True)):
            write(before, y + 0.5, f"{length:,}", ha="right")
            write(after, y + 0.5, str(found.largest_batch[length] or "none"), ha="left", **bold)
            for x, cell in enumerate(row):
                _cell(axes, x, y, cell)
        keys: list[Key] = [Patch(label=name, **_verdict_look(fit)) for fit, (name, _) in VERDICT_STYLES.items()]
        if asked[0] in batches and asked[1] in lengths:
            frame: dict[str, Any] = {"fill": False, "edgecolor": LIGHT["ink"], "linewidth": 2}
            axes.add_patch(_square(batches.index(asked[0]), lengths.index(asked[1]), **frame))
            keys.append(Patch(label="as asked", **frame))
        _legend(figure, keys, len(keys))
        return figure

    return _drawn(
        draw, f"GiB of device memory at the peak by batch size and sequence length, and what fits {found.gpu.name}"
    )


def _cell(axes: Axes, x: int, y: int, cell: Cell) -> None:
    """The peak of one cell, on the colour of its verdict; a dash where no formula reaches."""
    if cell.verdict is None:
        text, look = "–", {"color": LIGHT["muted"]}
    else:
        axes.add_patch(_square(x, y, **_verdict_look(cell.verdict.fit)))
        size = cell.verdict.memory.bytes / GIB
        text = f"{size:.1f}" if size < 1000 else f"{size:.0f}"
        look = {"weight": "bold" if cell.verdict.fit is Fit.FITS else "normal"}
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=_SMALL_TEXT, **look)  # type: ignore[arg-type]


def _square(x: int, y: int, **look: Any) -> Rectangle:
    return Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, **look)


def _verdict_look(fit: Fit) -> dict[str, Any]:
    hatch = {Fit.FITS: "", Fit.TIGHT: "\\\\", Fit.ONLY_IF: "xx", Fit.DOES_NOT_FIT: "///"}[fit]
    return {"facecolor": LIGHT[fit], "edgecolor": LIGHT["ground"], "hatch": hatch, "linewidth": 0}


def _in_order(several: Iterable[Iterable[str]]) -> list[str]:
    """All names once; one that only a later sequence has comes after the name that it follows there."""
    merged: list[str] = []
    for names in several:
        place = 0
        for name in names:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


def _rows(
    names: Sequence[str], reach: int, keys: Sequence[Key], bold: str = "", right: int = _VALUE, height: int = _ROW
) -> tuple[Figure, Axes]:
    """A legend, and axes from 0 to ``reach`` bytes with a named row for each bar."""
    left = 18 + _LETTER * max(map(len, names))
    longest = max(len(str(key.get_label())) for key in keys)
    abreast = min(3, int(WIDTH / (30 + (_LETTER - 0.4) * longest)))
    bottom = 18 + _KEY * -(-len(keys) // abreast)
    figure, axes = _canvas(len(names) * height, left=left, right=right, top=26, bottom=bottom)
    axes.set(xlim=(0, reach), ylim=(len(names) - 0.5, -0.5))
    for row, name in enumerate(names):
        weight = "bold" if name == bold else "normal"
        axes.annotate(name, (0, row), (-8, 0), textcoords="offset points", ha="right", va="center", weight=weight)
    axes.axvline(0, color=LIGHT["muted"], linewidth=1)
    _legend(figure, keys, abreast)
    return figure, axes


def _reach(most: int, limit: int | None) -> int:
    """How far the axis goes: to the largest bar, or to the device's end if that is not far beyond it."""
    return limit if limit is not None and most < limit <= 1.7 * most else most


def _limit(axes: Axes, limit: int, text: str) -> None:
    """Where the device ends; what lies beyond the axis is told in words only."""
    reach = axes.get_xlim()[1]
    if limit > reach:
        _over(axes, 1.0, f"{text} →", right=True)
        return
    axes.axvline(limit, color=LIGHT["ink"], linewidth=1.4, linestyle=(0, (4, 2)), zorder=6, clip_on=False)
    _over(axes, limit / reach, text, right=limit > reach / 2)


def _over(axes: Axes, place: float, text: str, right: bool = False) -> None:
    """Text above the bars, that begins or ends at ``place`` of their width."""
    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(text, (place, 1), (0 if right else 7, 7), ha="right" if right else "left", **where)


def _stack(axes: Axes, row: int, parts: Parts) -> None:
    """One bar, of parts one beside the other."""
    reached = 0
    for category, size in parts.items():
        if size:
            axes.add_patch(Rectangle((reached, row - 0.33), size, 0.66, zorder=3, **_look(category)))
            reached += size


def _value(axes: Axes, row: int, text: str, bold: bool) -> None:
    """What a bar stands for, in a column at the right edge."""
    where: dict[str, Any] = {"xycoords": ("figure fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (1, row), (-4, 0), ha="right", va="center", weight="bold" if bold else "normal", **where)


def _short(size: int | None) -> str:
    return "–" if size is None else f"{size / GIB:.2f}"


def _keys(several: Iterable[Parts], most: int) -> list[Patch]:
    """Keys of the categories that can be seen in any of the bars."""
    several = list(several)
    return [
        Patch(label=name, **_look(category))
        for category, name in _NAMES.items()
        if any(parts.get(category, 0) >= most * _HAIR for parts in several)
    ]


def _line(number: int) -> dict[str, Any]:
    """How the line of a further series looks."""
    marker, dashes = (("o", "-"), ("s", "--"), ("D", ":"), ("^", "-."))[number % 4]
    look = {"color": LIGHT["ink"], "marker": marker, "linestyle": dashes}
    return {**look, "markersize": 6.5, "linewidth": 1.4, "markeredgecolor": LIGHT["ground"]}


def _look(category: str) -> dict[str, Any]:
    hatch = _HATCHES.get(category, "")
    return {"facecolor": LIGHT[category], "edgecolor": LIGHT["ground"], "hatch": hatch, "linewidth": 0.5}


def _legend(figure: Figure, keys: Sequence[Key], abreast: int) -> None:
    figure.legend(
        handles=list(keys),
        loc="lower left",
        bbox_to_anchor=(0, 0),
        ncols=abreast,
        frameon=False,
        borderpad=0.2,
        borderaxespad=0,
        columnspacing=1.4,
        handlelength=1.5,
        handletextpad=0.5,
        labelspacing=0.45,
        labelcolor=LIGHT["muted"],
    )


def _canvas(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure of :data:`WIDTH` pixels, and axes ``height`` high without lines of their own."""
    whole = top + height + bottom
    figure = Figure(figsize=(WIDTH / 72, whole / 72), facecolor=LIGHT["ground"])
    axes = figure.add_axes((left / WIDTH, bottom / whole, (WIDTH - left - right) / WIDTH, height / whole))
    axes.axis("off")
    return figure, axes


def _drawn(draw: Callable[[], Figure], label: str) -> str:
    """The SVG document of a figure, with a label for those who do not see it."""
    with rc_context():
        rcdefaults()  # whatever the user's own style is
        rcParams.update({**_STYLE, "svg.hashsalt": label})
        file = io.StringIO()
        draw().savefig(file, format="svg", metadata={"Date": None})
    namespaces = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
    for prefix, address in namespaces.items():
        ElementTree.register_namespace(prefix, address)
    root = ElementTree.fromstring(file.getvalue())
    metadata = root.find("{*}metadata")
    if metadata is not None:
        root.remove(metadata)
    for element in root.iter("{*}g"):
        element.attrib.pop("id", None)  # nothing refers to a group
    for element in root.iterfind("{*}defs/{*}style/.."):
        root.remove(element)  # its one rule would hold for the whole page
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "group")  # not "img": its text is there to be read out
    root.set("aria-label", label)
    for name in ("width", "height"):
        root.set(name, root.get(name, "").removesuffix("pt"))
    for text in root.iterfind(".//{*}text"):
        text.set("style", re.sub(r"font-family: [^;]+", f"font-family: {_FONTS}", text.get("style", "")))
    return ElementTree.tostring(root, encoding="unicode")
