"""What a screen shows: one question, and what is known about it so far."""

from dataclasses import dataclass
from enum import StrEnum

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import Device
from fitplan.errors import FitplanError
from fitplan.fitmap import FitMap
from fitplan.plan import Plan
from fitplan.setup import TrainingSetup
from fitplan.tui.answers import Answers, Offer
from fitplan.tui.state import Question


class Stage(StrEnum):
    """How far an answer is."""

    KNOWN = "known"
    TRACING = "tracing"
    FAILED = "failed"


@dataclass(frozen=True)
class View:
    """A question and its answer.

    Attributes:
        question: what is asked.
        model: the model's config; ``None`` while it is fetched.
        device: the device; ``None`` where there is none of that name.
        setup: every setting; resolved once there is a plan.
        plan: the answer; ``None`` until it is known.
        warnings: what the reader should know of the numbers.
        stage: how far the answer is.
        told: the progress of a trace, or why there is no answer.
        offers: what could be changed; ``None`` until it is known.
        fit_map: the map; ``None`` until it is known.
        later: what is told in place of advice and map while there are none.

    """

    question: Question
    model: ModelConfig | None
    device: Device | None
    setup: TrainingSetup
    plan: Plan | None = None
    warnings: tuple[str, ...] = ()
    stage: Stage = Stage.KNOWN
    told: str = ""
    offers: tuple[Offer, ...] | None = None
    fit_map: FitMap | None = None
    later: str = ""


def view_of(answers: Answers, question: Question, before: View | None = None) -> View:
    """A question with what is known about it at once; ``before`` lends its setup where this one has none."""
    setup = before.setup if before is not None else TrainingSetup()
    model = device = None
    try:
        model, device = answers.model(question), answers.device(question)
        if model is not None:
            setup = question.job_on(device, model).setup
        else:
            setup = TrainingSetup.from_dict(question.chosen())
        report = answers.report(question)
    except FitplanError as error:
        return View(question, model, device, setup, stage=Stage.FAILED, told=str(error))
    if report is None:
        return View(question, model, device, setup, stage=Stage.TRACING)
    plan = report.plans[0]
    return View(question, model, device, plan.setup, plan, report.warnings)
