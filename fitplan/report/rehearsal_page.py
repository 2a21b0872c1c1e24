"""A rehearsal as a page: verdict, timeline, what the peak is made of."""

from typing import Any

from fitplan.rehearsal.report import Rank, RehearsalReport
from fitplan.report.rehearsal import gpus, headline, remarks
from fitplan.report.template import embedded, environment
from fitplan.units import gib


def rehearsal_page(report: RehearsalReport) -> str:
    """One self-contained HTML page: verdict, timeline, peak, and the document itself."""
    templates = environment()
    templates.filters.update(gib=gib)
    return templates.get_template("rehearsal.html").render(
        headline=headline(report),
        gpus=gpus(report),
        command=" ".join(report.command),
        ranks=[_drawn(rank, report) for rank in report.ranks],
        out_of_memory=report.out_of_memory,
        remarks=remarks(report),
        document=embedded(report.to_dict()),
    )


WIDTH, HEIGHT = 900, 240


def _drawn(rank: Rank, report: RehearsalReport) -> dict[str, Any]:
    """A rank with its timeline as the points of two lines."""
    points = rank.timeline["points"]
    end = max((place for place, _, _ in points), default=1) or 1
    top = max(report.gpu.usable_bytes if rank.device_bytes * 4 > report.gpu.usable_bytes else 0, rank.device_bytes) or 1

    def line(column: int) -> str:
        return " ".join(f"{WIDTH * one[0] / end:.1f},{HEIGHT * (1 - one[column] / top):.1f}" for one in points)

    marks = [
        {"x": round(WIDTH * place / end, 1), "phase": phase, "step": step}
        for place, phase, step in rank.timeline["phases"]
        if phase in ("backward", "optimizer")
    ]
    return {
        "rank": rank, "allocated": line(1), "reserved": line(2), "marks": marks, "top": top,
        "width": WIDTH, "height": HEIGHT, "limit": HEIGHT * (1 - report.gpu.usable_bytes / top),
    }  # fmt: skip
