"""All that is known about one question, for a report that tells everything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from fitplan.advice import AdviceReport
from fitplan.explanation import Explanation
from fitplan.fitmap import FitMap
from fitplan.memory import MemoryMoment
from fitplan.plan import CheckReport
from fitplan.trace.events import Category

SCHEMA = "fitplan.report/1"


@dataclass(frozen=True)
class Series:
    """A job's memory over the moments of its step.

    Attributes:
        name: what it is, such as ``"predicted"`` or ``"measured"``.
        totals: bytes at each moment, in the order of time.
        parts: the same by category, for the moments where that is known.

    """

    name: str
    totals: Mapping[str, int]
    parts: Mapping[str, Mapping[Category, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, moments: Iterable[MemoryMoment]) -> Self:
        """The moments of an estimate."""
        moments = tuple(moments)
        return cls(name, {m.name: m.bytes for m in moments}, {m.name: m.breakdown for m in moments})


@dataclass(frozen=True)
class Details:
    """What is told of a plan beside the check; a sentence where there is no such thing, to say why.

    Attributes:
        explanation: the formula of its peak.
        fit_map: what else fits the same device.
        advice: what can be changed.
        validate: the command that runs it for real.

    """

    explanation: Explanation | str
    fit_map: FitMap | str
    advice: AdviceReport | str
    validate: str

    def to_dict(self) -> dict[str, Any]:
        """Each with its own document, or ``null`` and the sentence under ``missing``."""
        found = {"explain": self.explanation, "map": self.fit_map, "advise": self.advice}
        return {
            **{name: None if isinstance(one, str) else one.to_dict() for name, one in found.items()},
            "missing": {name: one for name, one in found.items() if isinstance(one, str)},
        }


@dataclass(frozen=True)
class Dossier:
    """All that is known about one question.

    Attributes:
        check: the answer.
        details: one for each of its plans.

    """

    check: CheckReport
    details: tuple[Details, ...]

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.report/1`` document: the check's document, and for each plan those of its details."""
        return {
            "schema": SCHEMA,
            "check": self.check.to_dict(),
            "details": [one.to_dict() for one in self.details],
        }
