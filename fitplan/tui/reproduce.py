"""The command line and the Python call that give the same answer as the screen."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.cuda import BEFORE_AMPERE
from fitplan.devices.device import DEFAULT_CAPABILITY
from fitplan.report.command import words
from fitplan.setup import TrainingSetup
from fitplan.tui.state import Question


def command_line(question: Question, model: ModelConfig | None, command: str = "check") -> str:
    """``fitplan check MODEL ...``, without what is the default anyway."""
    return shlex.join(["fitplan", *arguments(question, model, command)])


def arguments(question: Question, model: ModelConfig | None, command: str) -> list[str]:
    """What follows ``fitplan`` on the command line."""
    return words(command, question.model, {**_device(question), **fewest_settings(question, model)})


def validation_words(question: Question, model: ModelConfig | None, where: Mapping[str, str]) -> list[str]:
    """What follows ``fitplan`` to run a question for real; ``where`` instead of the GPU that is asked about."""
    return words("validate", question.model, {**where, **fewest_settings(question, model)})


def python_call(question: Question, model: ModelConfig | None) -> str:
    """``fitplan.check(...)``, as a program that can be run."""
    given = {**_device(question), **fewest_settings(question, model)}
    shown = "".join(f",\n    {name}={_literal(value)}" for name, value in given.items())
    return f"import fitplan\n\nreport = fitplan.check(\n    {question.model!r}{shown},\n)"


def fewest_settings(question: Question, model: ModelConfig | None) -> dict[str, Any]:
    """The method, and of the chosen settings those without which the setup would be another."""
    settings = question.chosen()
    if model is not None:
        whole = _resolved(settings, question, model)
        for name in [name for name in settings if name != "method"]:
            fewer = {n: v for n, v in settings.items() if n != name}
            if _resolved(fewer, question, model) == whole:
                settings = fewer
    return {"method": settings.pop("method"), **settings}


def _resolved(settings: dict[str, Any], question: Question, model: ModelConfig) -> tuple[TrainingSetup, ...]:
    """On any GPU: defaults depend on it, and a command may be run for another."""
    plain = replace(question, settings=tuple(settings.items()))
    return tuple(plain.setup(model, capability) for capability in (DEFAULT_CAPABILITY, BEFORE_AMPERE))


def _device(question: Question) -> dict[str, str]:
    named = {"gpu": question.gpu, "vram": question.vram}
    return {name: value for name, value in named.items() if value is not None}


def _literal(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)
