"""From the command line to the running app."""

from typing import Any

from fitplan.devices.detect import AUTO, Machine, choose, detect
from fitplan.errors import NoUsableGpu
from fitplan.setup import Method, TrainingSetup
from fitplan.tui.answers import Answers
from fitplan.tui.app import FitplanApp
from fitplan.tui.state import Question
from fitplan.tui.widgets.settings import GPU, MODEL
from fitplan.whole import told_to

FIRST_MODEL, FIRST_GPU = "llama-3.1-8b", "RTX 4090"
"""What is asked about until a person chooses."""


def run(model: str | None, gpu: str | None, vram: str | None, settings: dict[str, Any]) -> None:
    """Run the app until it is quit.

    Raises:
        InputError: what was given makes no sense.

    """
    machine = detect()
    question, to_choose = first_question(machine, model, gpu, vram, settings)
    checked(question)
    app = FitplanApp(question, machine, to_choose=to_choose)
    with told_to(app.tell):
        app.run()


def first_question(
    machine: Machine, model: str | None, gpu: str | None, vram: str | None, settings: dict[str, Any]
) -> tuple[Question, tuple[str, ...]]:
    """What is asked first, and what was left open: the GPU of this machine is taken where there is one.

    Raises:
        InputError: the settings make no sense.

    """
    to_choose: tuple[str, ...] = (MODEL,) if model is None else ()
    if gpu is None and vram is None:
        gpu = AUTO if _has_gpu(machine) else FIRST_GPU
        to_choose += () if gpu == AUTO else (GPU,)
    settings = dict(settings)
    method = TrainingSetup.from_dict({"method": settings.pop("method", Method.QLORA)}).method
    TrainingSetup.from_dict({"method": method, **settings})
    return Question(model or FIRST_MODEL, gpu, vram, method, tuple(settings.items())), to_choose


def checked(question: Question) -> None:
    """Complain of what makes no sense before there is an app.

    Raises:
        InputError: the model, the device or a setting.

    """
    answers = Answers()
    device, model = answers.device(question), answers.model(question)
    if model is not None:
        question.job_on(device, model)


def _has_gpu(machine: Machine) -> bool:
    try:
        choose(machine)
    except NoUsableGpu:
        return False
    return True
