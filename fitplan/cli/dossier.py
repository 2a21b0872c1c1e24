"""What ``fitplan report`` puts on its page: the library's answers to one question, asked one after the other."""

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from fitplan import api
from fitplan.devices.device import Device
from fitplan.errors import FitplanError
from fitplan.plan import Plan
from fitplan.report.command import words
from fitplan.report.dossier import Details, Dossier
from fitplan.setup import settings_for
from fitplan.tracer import Progress

Found = TypeVar("Found")


def gather(
    model: str, device: Device | None, method: str | None, settings: dict[str, Any], progress: Progress
) -> Dossier:
    """Check, formula, map and advice; what one plan has none of is told by the sentence that says why.

    Raises:
        As :func:`fitplan.check`.

    """
    checked = api.check(model, gpu=device, method=method, progress=progress, **settings)

    def details(plan: Plan) -> Details:
        asked = settings_for(plan.setup.method, settings)
        return Details(
            _or_why_not(lambda: api.explain(model, gpu=device, progress=progress, **asked)),
            _or_why_not(lambda: api.fit_map(model, gpu=device, progress=progress, **asked)),
            _or_why_not(lambda: api.advise(model, gpu=device, progress=progress, **asked)),
            shlex.join(["fitplan", *words("validate", model, {"method": plan.setup.method, **asked})]),
        )

    return Dossier(checked, tuple(map(details, checked.plans)))


def _or_why_not(ask: Callable[[], Found]) -> Found | str:
    try:
        return ask()
    except FitplanError as error:
        return str(error)
