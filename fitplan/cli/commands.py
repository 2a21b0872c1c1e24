"""What each command does: it calls the library, and prints. No rule about memory lives here."""

import json
import sys
from collections.abc import Callable
from typing import Any

from fitplan.cli.console import EXIT_DOES_NOT_FIT, EXIT_FITS, Narration


def check(
    model: str, gpu: str | None, vram: str | None, method: str | None, trace: bool, as_json: bool, **settings: Any
) -> int:
    """``fitplan check``."""
    from fitplan import api
    from fitplan.verdict import Fit

    with Narration() as progress:
        report = api.check(
            model, gpu=_or_here(gpu, vram), vram=vram, method=method, trace=trace, progress=progress, **_given(settings)
        )
    for warning in report.warnings:
        print(f"fitplan: note: {warning}", file=sys.stderr)

    def show(console: Any) -> None:
        from fitplan.report.terminal import print_check

        print_check(report, console)

    _answer(as_json, report.to_dict, show)
    verdicts = [plan.verdict.fit for plan in report.plans if plan.verdict is not None]
    return EXIT_DOES_NOT_FIT if verdicts and all(fit is Fit.DOES_NOT_FIT for fit in verdicts) else EXIT_FITS


def explain(model: str, gpu: str | None, vram: str | None, as_json: bool, **settings: Any) -> int:
    """``fitplan explain``."""
    from fitplan import api
    from fitplan.devices.device import DEFAULT_CAPABILITY

    device = api.device_named(_or_here(gpu, vram), vram)
    capability = device.capability if device else DEFAULT_CAPABILITY
    with Narration() as progress:
        found = api.explain(model, capability=capability, progress=progress, **_given(settings))

    def show(console: Any) -> None:
        from fitplan.report.formula import print_explanation

        print_explanation(found, console)

    _answer(as_json, found.to_dict, show)
    return EXIT_FITS


def advise(model: str, gpu: str | None, vram: str | None, as_json: bool, **settings: Any) -> int:
    """``fitplan advise``."""
    from fitplan import api
    from fitplan.verdict import Fit

    with Narration() as progress:
        found = api.advise(model, gpu=_or_here(gpu, vram), vram=vram, progress=progress, **_given(settings))

    def show(console: Any) -> None:
        from fitplan.report.advice import print_advice

        print_advice(found, console)

    _answer(as_json, found.to_dict, show)
    return EXIT_DOES_NOT_FIT if found.advice.asked.verdict.fit is Fit.DOES_NOT_FIT else EXIT_FITS


def fit_map(model: str, gpu: str | None, vram: str | None, as_json: bool, **settings: Any) -> int:
    """``fitplan map``."""
    from fitplan import api

    with Narration() as progress:
        found = api.fit_map(model, gpu=_or_here(gpu, vram), vram=vram, progress=progress, **_given(settings))

    def show(console: Any) -> None:
        from fitplan.report.formula import print_map

        print_map(found, console)

    _answer(as_json, found.to_dict, show)
    return EXIT_FITS


def tui(model: str | None, gpu: str | None, vram: str | None, **settings: Any) -> int:
    """``fitplan tui``."""
    from fitplan.errors import InputError, MissingDependency

    if not at_terminal():
        raise InputError("the terminal app needs a terminal; fitplan check answers without one")
    if not has_textual():
        raise MissingDependency("the terminal app needs textual, which is not installed; pip install 'fitplan[tui]'")
    from fitplan.tui.start import run

    run(model, gpu, vram, _given(settings))
    return EXIT_FITS


def at_terminal() -> bool:
    """Whether a person types and reads."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def has_textual() -> bool:
    """Whether the terminal app can run."""
    from importlib.util import find_spec

    return find_spec("textual") is not None


def gpus(as_json: bool) -> int:
    """``fitplan gpus``."""
    from fitplan.devices.detect import detect
    from fitplan.devices.device import known_devices
    from fitplan.report.gpus import gpus_document, print_gpus

    machine = detect()
    _answer(
        as_json,
        lambda: gpus_document(machine, known_devices()),
        lambda console: print_gpus(machine, known_devices(), console),
    )
    return EXIT_FITS


def models(search: str, as_json: bool) -> int:
    """``fitplan models``."""
    from fitplan.models.catalog import find_entries
    from fitplan.report.models import models_document, print_models

    found = find_entries(search)
    _answer(as_json, lambda: models_document(found), lambda console: print_models(found, console))
    return EXIT_FITS


def profile(models: list[str], out: str) -> int:
    """``fitplan profile``."""
    from pathlib import Path

    from fitplan.models.catalog import catalog
    from fitplan.models.resolve import resolve_model
    from fitplan.shipping import ship

    names = [entry.name for entry in catalog()] if models == ["all"] else models
    with Narration() as progress:
        for number, name in enumerate(names, 1):
            model = resolve_model(name)
            heading = f"{number}/{len(names)} {model.name}, "
            left_out = ship(model, Path(out), lambda what, heading=heading: progress(heading + what))  # type: ignore[misc]
            print(f"{model.name}: written" + "".join(f"\n  without {one}" for one in left_out), flush=True)
    return EXIT_FITS


def _or_here(gpu: str | None, vram: str | None) -> str | None:
    """Where no device is named, the GPU of this machine, if there is one that can be used."""
    if gpu is not None or vram is not None:
        return gpu
    from fitplan.devices.detect import AUTO, choose, detect
    from fitplan.errors import NoUsableGpu

    try:
        choose(detect())
    except NoUsableGpu:
        return None
    return AUTO


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were typed."""
    return {name: value for name, value in settings.items() if value is not None}


def _answer(as_json: bool, document: Callable[[], dict[str, Any]], show: Callable[[Any], None]) -> None:
    """The answer on stdout: one JSON document, or what ``show`` prints on a Rich console."""
    if as_json:
        print(json.dumps(document(), indent=1))
        return
    from rich.console import Console

    show(Console(highlight=False))
