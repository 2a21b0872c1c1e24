"""The report as one HTML page that needs nothing else: no network, no script, no file beside it."""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from markupsafe import Markup

from fitplan.audit import unquantised_share
from fitplan.explanation import Explanation
from fitplan.fitmap import FitMap
from fitplan.footprint.size import LENGTHS
from fitplan.plan import CheckReport, Plan
from fitplan.report.dossier import Dossier, Series
from fitplan.report.formula import CHANGE_NAMES, MIN_SHARE, product, short_owner, signed
from fitplan.report.pictures import DARK, LIGHT, fit_map_svg, timelines_svg, totals_svg
from fitplan.report.template import embedded, environment
from fitplan.report.terminal import (
    BESIDE_NAMES,
    CATEGORY_NAMES,
    LOUD_SHARE,
    METHOD_NAMES,
    VERDICT_STYLES,
    audit,
    beside,
    describe,
    describe_recipe,
    slack_words,
    told_devices,
    told_steps,
)
from fitplan.report.validation import timelines
from fitplan.setup import Method, TrainingSetup
from fitplan.units import MIB, count, gib
from fitplan.verdict import Fit, Verdict

SIGNS = {Fit.FITS: "✓", Fit.TIGHT: "≈", Fit.ONLY_IF: "?", Fit.DOES_NOT_FIT: "✕"}
"""Beside each verdict, for whom its colour says nothing."""

_SAID = {
    Fit.FITS: ("fits", "fit"),
    Fit.TIGHT: ("is tight", "are tight"),
    Fit.ONLY_IF: ("fits only if cache is given back", "fit only if cache is given back"),
    Fit.DOES_NOT_FIT: ("does not fit", "do not fit"),
}


def page(dossier: Dossier, drawn: Mapping[str, str]) -> str:
    """The page of a dossier with its :func:`pictures`.

    The numbers are those of the dossier's objects, and its JSON is in the page.
    """
    templates = environment()
    templates.filters.update(
        gib=gib,
        count=count,
        size=_size,
        signed=_signed,
        sentence=_sentence,
        name=METHOD_NAMES.__getitem__,
        describe=describe,
    )
    return templates.get_template("page.html").render(
        dossier=dossier,
        report=dossier.check,
        told=list(zip(dossier.check.plans, dossier.details, strict=True)),
        pictures={name: _inlined(name, svg) for name, svg in drawn.items()},
        headline=headline(dossier.check),
        light=LIGHT,
        dark=DARK,
        version=version("fitplan"),
        document=Markup(embedded(dossier.to_dict())),
        **_WORDS,
    )


def pictures(dossier: Dossier) -> dict[str, str]:
    """Every picture of the page as an SVG document of its own, by the name of its file."""
    found = {"totals": totals_svg(dossier.check)}
    for plan, details in zip(dossier.check.plans, dossier.details, strict=True):
        gpu, memory = dossier.check.gpu, plan.memory
        room = gpu.usable_bytes - (memory.least_bytes - memory.allocated_bytes) if gpu else None
        found[f"{plan.setup.method}-timeline"] = timelines_svg([Series.of("predicted", plan.estimate.moments)], room)
        if isinstance(details.fit_map, FitMap):
            found[f"{plan.setup.method}-map"] = fit_map_svg(details.fit_map)
        if plan.evidence is not None and plan.evidence.phases:
            found[f"{plan.setup.method}-evidence"] = timelines_svg(timelines(plan.evidence.phases))
    return found


def headline(report: CheckReport) -> str:
    """The verdicts in one sentence: ``"QLoRA fits; LoRA and full do not fit"``."""
    if report.gpu is None:
        return ", ".join(f"{METHOD_NAMES[plan.setup.method]} needs {gib(plan.memory.bytes)}" for plan in report.plans)
    parts = []
    for fit, (one, several) in _SAID.items():
        names = [METHOD_NAMES[plan.setup.method] for plan in report.plans if plan.verdict and plan.verdict.fit is fit]
        if names:
            listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            parts.append(f"{listed} {one if len(names) == 1 else several}")
    return "; ".join(parts)


_LEAST = MIB // 10


def _size(size: int) -> Markup:
    """Bytes as people read them, and exactly for programs."""
    return Markup('<data value="{}">{}</data>').format(size, gib(size) if size >= _LEAST else "< 0.1 MiB")


def _sentence(text: str) -> str:
    """What an error said, as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def _signed(size: int) -> Markup:
    return Markup('<data value="{}">{}</data>').format(size, signed(size).replace("-", "−"))


def _left(verdict: Verdict) -> Markup:
    """What is left, or what is missing."""
    return Markup("{} {}").format(_size(abs(verdict.slack_bytes)), slack_words(verdict))


Row = tuple[str, str, list[int]]
"""Of the table of the breakdown: a key, its name, and its bytes in each plan."""


def _breakdown(plans: tuple[Plan, ...]) -> list[Row]:
    """What the allocated memory holds at the peak of each plan, without what none of them has."""
    rows: list[Row] = [
        (category, name, [plan.estimate.breakdown.get(category, 0) for plan in plans])
        for category, name in CATEGORY_NAMES.items()
    ]
    return [row for row in rows if any(row[2])]


def _beside(plans: tuple[Plan, ...]) -> list[Row]:
    """What the device holds beside that."""
    rows: list[Row] = [(key, name, [beside(plan.memory)[key] for plan in plans]) for key, name in BESIDE_NAMES.items()]
    return [row for row in rows if any(row[2])]


def _terms(found: Explanation) -> dict[str, Any]:
    """The terms that are told one by one, the rest in one number, and what their letters mean."""
    shown = [term for term in found.terms if term.bytes >= MIN_SHARE * found.peak_bytes]
    return {
        "shown": shown,
        "rest": found.peak_bytes - sum(term.bytes for term in shown),
        "smaller": len(found.terms) - len(shown),
        "letters": [
            (name, LENGTHS[name], value)
            for name, value in found.values.items()
            if any(name in term.lengths for term in shown)
        ],
        "changes": [(CHANGE_NAMES[one.name].format(f"{one.by:,}"), one.bytes) for one in found.changes],
    }


def _audit(plan: Plan) -> tuple[bool, list[str]]:
    """The quantisation audit line by line, and whether it is a warning; no lines where nothing is quantised."""
    if plan.setup.method is not Method.QLORA:
        return False, []
    return unquantised_share(plan.parameters) > LOUD_SHARE, audit(plan.parameters).plain.splitlines()


def _ran(plan: Plan) -> tuple[str, list[str]]:
    """What the run did that is the evidence of a plan, and which of its settings are not those asked about."""
    assert plan.evidence is not None
    others = [f"{name} {ran} (asked: {asked})" for name, (ran, asked) in plan.evidence.others(plan.setup).items()]
    return describe(TrainingSetup.from_dict(plan.evidence.setup)), others


def _inlined(name: str, svg: str) -> Markup:
    """A picture as part of the page: the page's colours in place of its own, and ids that no other picture has."""
    for key, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{key})")
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Markup(svg)


_WORDS: dict[str, Any] = {
    "signs": SIGNS,
    "verdicts": {fit: name for fit, (name, _) in VERDICT_STYLES.items()},
    "categories": CATEGORY_NAMES,
    "beside": _beside,
    "left": _left,
    "breakdown": _breakdown,
    "terms": _terms,
    "audit": _audit,
    "ran": _ran,
    "product": product,
    "owner": short_owner,
    "steps": told_steps,
    "smallest": told_devices,
    "recipe": describe_recipe,
}
"""What the template may call; the words are those of the terminal."""
