"""The answer of a validation run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.setup import TrainingSetup
from fitplan.validation.comparison import MOST_LISTED, Difference, PhasePair, Quantity, judged, to_dict
from fitplan.validation.job import Job, Measurement

SCHEMA = "fitplan.validate/1"


@dataclass(frozen=True)
class Comparison:
    """What a run measured, held against what was predicted before it.

    Attributes:
        measurement: what the run took.
        quantities: peaks, predicted and measured.
        phases: phase by phase.
        differences: allocations that were not as predicted; what weighs most comes first.
        first_difference: where the two runs part first.
        runs_on_paper: whether the job was predicted to get through the memory that it may take.
        tolerance: percent that the prediction may be off.

    """

    measurement: Measurement
    quantities: tuple[Quantity, ...]
    phases: tuple[PhasePair, ...]
    differences: tuple[Difference, ...]
    first_difference: Difference | None
    runs_on_paper: bool
    tolerance: float

    @property
    def judged(self) -> Quantity | None:
        """The quantity that the tolerance is for; ``None`` where the run ended out of memory."""
        if self.measurement.out_of_memory is not None:
            return None
        return judged(self.quantities)

    @property
    def within(self) -> bool:
        """Whether the prediction holds: the peak, or that there is not enough memory."""
        if self.measurement.out_of_memory is not None:
            return not self.runs_on_paper
        return self.judged is not None and abs(self.judged.error) <= self.tolerance


@dataclass(frozen=True)
class ValidationReport(Comparison):
    """The comparison, and what was compared.

    Attributes:
        model: the model; with ``layers`` the shortened one.
        setup: every setting, as it ran.
        job: what was run.
        versions: the libraries that were traced.
        created: when, in UTC, as ISO 8601.

    """

    model: ModelConfig
    setup: TrainingSetup
    job: Job
    versions: dict[str, str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.validate/1`` document. Keys are added, never renamed; sizes are bytes."""
        job = self.job.to_dict()
        return {
            "schema": SCHEMA,
            "created": self.created,
            "model": {"name": self.model.name, "source": self.model.source, "architecture": self.model.architecture},
            "setup": self.setup.to_dict(),
            "run": {name: job[name] for name in ("device", "runner", "steps", "limit_bytes", "rehearsed")},
            "quantities": [to_dict(quantity) for quantity in self.quantities],
            "phases": [to_dict(pair) for pair in self.phases],
            "differences": [to_dict(one) for one in self.differences[:MOST_LISTED]],
            "first_difference": to_dict(self.first_difference) if self.first_difference else None,
            "tolerance_percent": self.tolerance,
            "runs_on_paper": self.runs_on_paper,
            "within_tolerance": self.within,
            "measurement": self.measurement.to_dict(),
            "provenance": {"versions": self.versions},
        }


def read_comparison(document: Mapping[str, Any]) -> Comparison:
    """The comparison of a ``fitplan.validate/1`` document."""
    first = document["first_difference"]
    return Comparison(
        measurement=Measurement.from_dict(document["measurement"]),
        quantities=tuple(Quantity(q["name"], q["predicted"], q["measured"]) for q in document["quantities"]),
        phases=tuple(map(PhasePair.from_dict, document["phases"])),
        differences=tuple(Difference(**one) for one in document["differences"]),
        first_difference=Difference(**first) if first else None,
        runs_on_paper=document["runs_on_paper"],
        tolerance=document["tolerance_percent"],
    )
