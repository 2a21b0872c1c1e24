"""What each command does: it calls the library, and prints. No rule about memory lives here."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fitplan.cli.console import ANSWERED, EXIT_DOES_NOT_FIT, EXIT_FITS, EXIT_ONLY_IF, Narration, complain, say
from fitplan.errors import InputError
from fitplan.installing import install
from fitplan.setup import given

if TYPE_CHECKING:
    from fitplan.plan import CheckReport
    from fitplan.verdict import Fit


def check(
    model: str,
    gpu: str | None,
    vram: str | None,
    method: str | None,
    trace: bool,
    verbose: bool,
    as_json: bool,
    emit: str | None,
    **settings: Any,
) -> int:
    """``fitplan check``."""
    from fitplan import api
    from fitplan.emit import ONE_METHOD
    from fitplan.question import may_be_training_file

    if emit is not None and method is None and not may_be_training_file(model):
        raise InputError(ONE_METHOD)
    with Narration() as progress:
        report = api.check(
            model, gpu=_or_here(gpu, vram), vram=vram, method=method, trace=trace, progress=progress, **settings
        )
    _warn(report.warnings)
    if emit is not None:
        return _emit(report, emit)

    def show(console: Any) -> None:
        from fitplan.report.terminal import print_check

        print_check(report, console, verbose=verbose)

    answer_with(as_json, report.to_dict, show)
    return _exit_code(report)


def explain(model: str, gpu: str | None, vram: str | None, as_json: bool, **settings: Any) -> int:
    """``fitplan explain``."""
    from fitplan import api

    with Narration() as progress:
        found = api.explain(model, gpu=_or_here(gpu, vram), vram=vram, progress=progress, **settings)
    _warn(found.warnings)

    def show(console: Any) -> None:
        from fitplan.report.formula import print_explanation

        print_explanation(found, console)

    answer_with(as_json, found.to_dict, show)
    return EXIT_FITS


def advise(
    model: str, gpu: str | None, vram: str | None, trace: bool, as_json: bool, emit: str | None, **settings: Any
) -> int:
    """``fitplan advise``."""
    from fitplan import api
    from fitplan.question import may_be_training_file

    with Narration() as progress:
        found = api.advise(model, gpu=_or_here(gpu, vram), vram=vram, trace=trace, progress=progress, **settings)
    _warn(found.warnings)
    if emit is not None:
        best = found.advice.best or found.advice.fix
        if best is None:
            complain(f"no settings are known with which {found.model.name} fits {found.gpu.name}: none are emitted")
            return EXIT_DOES_NOT_FIT
        return _emit(api.check(model, gpu=found.gpu, **best.setup.to_dict()), emit)

    def show(console: Any) -> None:
        from fitplan.report.advice import print_advice

        print_advice(found, console, by_default=settings["method"] is None and not may_be_training_file(model))

    answer_with(as_json, found.to_dict, show)
    return exit_code_of([found.advice.asked.verdict.fit])


def fit_map(model: str, gpu: str | None, vram: str | None, as_json: bool, **settings: Any) -> int:
    """``fitplan map``."""
    from fitplan import api

    with Narration() as progress:
        found = api.fit_map(model, gpu=_or_here(gpu, vram), vram=vram, progress=progress, **settings)
    _warn(found.warnings)

    def show(console: Any) -> None:
        from fitplan.report.formula import print_map

        print_map(found, console)

    answer_with(as_json, found.to_dict, show)
    return EXIT_FITS


def report(
    model: str, gpu: str | None, vram: str | None, method: str | None, out: str, svg: str | None, **settings: Any
) -> int:
    """``fitplan report``."""
    from pathlib import Path

    from fitplan.cli.dossier import gather
    from fitplan.cli.files import check_writable, write_answer
    from fitplan.errors import MissingDependency
    from fitplan.question import device_named

    try:
        from fitplan.report.html import headline, page, pictures
    except ImportError as error:
        raise MissingDependency(f"a report needs {error.name}, which is not installed; {install('report')}") from error
    check_writable(Path(out))
    if svg:
        Path(svg).mkdir(parents=True, exist_ok=True)
    with Narration() as progress:
        device = device_named(_or_here(gpu, vram), vram)
        dossier = gather(model, device, method, given(settings), progress)
        progress("drawing")
        drawn = pictures(dossier)
        write_answer(Path(out), page(dossier, drawn))
        if svg:
            for name, picture in drawn.items():
                write_answer(Path(svg, f"{name}.svg"), picture)
    _warn(dossier.check.warnings)
    print(f"{out}: {headline(dossier.check)}")
    return _exit_code(dossier.check)


def tui(model: str | None, gpu: str | None, vram: str | None, **settings: Any) -> int:
    """``fitplan tui``."""
    from fitplan.errors import MissingDependency

    if not at_terminal():
        raise InputError("the terminal app needs a terminal; fitplan check answers without one")
    if not has_textual():
        raise MissingDependency(f"the terminal app needs textual, which is not installed; {install('tui')}")
    from fitplan.tui.start import run

    run(model, gpu, vram, given(settings))
    return EXIT_FITS


def at_terminal() -> bool:
    """Whether a person types and reads."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def has_textual() -> bool:
    """Whether the terminal app can run."""
    from importlib.util import find_spec

    return find_spec("textual") is not None


def mcp() -> int:
    """``fitplan mcp``."""
    from fitplan.errors import MissingDependency

    try:
        from fitplan.server import make_server
    except ImportError as error:
        raise MissingDependency(
            f"tools for language models need {error.name}, which is not installed; {install('mcp')}"
        ) from error
    make_server().run("stdio")
    return EXIT_FITS


def gpus(as_json: bool) -> int:
    """``fitplan gpus``."""
    from fitplan.devices.detect import detect
    from fitplan.devices.device import known_devices
    from fitplan.report.gpus import gpus_document, print_gpus

    machine = detect()
    answer_with(
        as_json,
        lambda: gpus_document(machine, known_devices()),
        lambda console: print_gpus(machine, known_devices(), console),
    )
    return EXIT_FITS


def models(search: str, as_json: bool) -> int:
    """``fitplan models``."""
    from fitplan.configs.catalog import find_entries
    from fitplan.report.models import models_document, print_models

    found = find_entries(search)
    answer_with(as_json, lambda: models_document(found), lambda console: print_models(found, console))
    return EXIT_FITS


def fits(
    search: list[str],
    gpu: list[str] | None,
    vram: str | None,
    method: list[str] | None,
    sort: str,
    everything: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """``fitplan fits``."""
    from fitplan.fitting import matrix
    from fitplan.verdict import Fit

    here = gpu or _or_here(None, vram) or ()
    found = matrix(search, gpu=here, vram=vram, method=method or (), **settings)

    def show(console: Any) -> None:
        from fitplan.report.fits import print_fits

        print_fits(found, console, sort=sort, everything=everything)

    answer_with(as_json, found.to_dict, show)
    return exit_code_of([one.verdict.fit for one in found.answers] or [Fit.DOES_NOT_FIT])


def diff(
    model: str,
    second: str | None,
    against: str | None,
    gpu: str | None,
    vram: str | None,
    method: str | None,
    trace: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """``fitplan diff``."""
    from fitplan import api
    from fitplan.difference import Answer
    from fitplan.difference import diff as compare

    if (second is None) == (against is None):
        raise InputError("name what to compare with: a second document, or the flags that differ behind --")
    answers: list[Answer]
    if against is None:
        answers = [model, str(second)]
    else:
        with Narration() as progress:
            asked = {"gpu": _or_here(gpu, vram), "vram": vram, "method": method, "trace": trace, **given(settings)}
            changed = {**asked, "model": model, **_changes(against)}
            answers = [
                api.check(progress=progress, **{"model": model, **one, "method": one["method"] or "qlora"})
                for one in (asked, changed)
            ]
    found = compare(*answers)

    def show(console: Any) -> None:
        from fitplan.report.difference import print_difference

        print_difference(found, console)

    answer_with(as_json, found.to_dict, show)
    return EXIT_FITS


def _changes(typed: str) -> dict[str, Any]:
    """What stands behind ``--``: flags of ``fitplan check``, and a model where it is another."""
    import shlex

    from fitplan.cli.parser import make_parser

    words = shlex.split(typed)
    names_model = bool(words) and not words[0].startswith("-")
    options = vars(make_parser().parse_args(["check", *([] if names_model else ["-"]), *words]))
    left_out = {"run", "as_json", "emit", "verbose", "file", *(() if names_model else ("model",))}
    found = {name: value for name, value in given(options).items() if name not in left_out}
    if not options["trace"]:
        del found["trace"]
    if options["gpu"] or options["vram"]:
        found |= {"gpu": options["gpu"], "vram": options["vram"]}
    return found


def autopsy(
    log: str, model: str | None, gpu: str | None, vram: str | None, method: str | None, as_json: bool, **settings: Any
) -> int:
    """``fitplan autopsy``."""
    from fitplan import api
    from fitplan.postmortem import autopsy as read

    found = read(log)
    plan = None
    if model is not None:
        if gpu is None and vram is None and found.total_bytes is not None:
            vram = str(found.total_bytes)
        with Narration() as progress:
            plan = api.check(model, gpu=_or_here(gpu, vram), vram=vram, method=method, progress=progress, **settings)
        _warn(plan.warnings)

    def show(console: Any) -> None:
        from fitplan.report.postmortem import print_autopsy

        print_autopsy(found, plan, console)

    answer_with(as_json, lambda: {**found.to_dict(), "plan": plan and plan.to_dict()}, show)
    return EXIT_FITS


def profile(models: list[str], out: str, before_ampere: bool, anew: bool, missing: bool) -> int:
    """``fitplan profile``."""
    from pathlib import Path

    from fitplan.configs.catalog import catalog
    from fitplan.configs.resolve import resolve_model
    from fitplan.cuda import AMPERE, BEFORE_AMPERE
    from fitplan.shipping import ship

    names = [entry.name for entry in catalog()] if models == ["all"] else models
    with Narration() as progress:
        for number, name in enumerate(names, 1):
            model = resolve_model(name)
            heading = f"{number}/{len(names)} {model.name}, "
            told = lambda what, heading=heading: progress(heading + what)  # noqa: E731
            capability = BEFORE_AMPERE if before_ampere else AMPERE
            left_out = ship(model, Path(out), told, capability, anew=anew, missing=missing)
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


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say("note: ", warning)


def _exit_code(report: "CheckReport") -> int:
    """That of the best plan."""
    return exit_code_of([plan.verdict.fit for plan in report.plans if plan.verdict is not None])


def exit_code_of(fits: "Sequence[Fit]") -> int:
    """That of the best verdict."""
    from fitplan.verdict import Fit

    codes = {Fit.DOES_NOT_FIT: EXIT_DOES_NOT_FIT, Fit.ONLY_IF: EXIT_ONLY_IF}
    return codes.get(min(fits, key=list(Fit).index), EXIT_FITS) if fits else EXIT_FITS


def _emit(report: "CheckReport", form: str) -> int:
    """The settings on stdout, the verdict on stderr; the exit code of the check."""
    from fitplan.emit import emit_script, settings_document
    from fitplan.report.terminal import headline

    match form:
        case "python":
            text = emit_script(report)
        case "json":
            text = json.dumps(settings_document(report), indent=1) + "\n"
        case _:
            from fitplan.writers import write_config

            text = write_config(report, form)
    print(text, end="")
    say("", headline(report.plans[0]).plain)
    return _exit_code(report)


def answer_with(as_json: bool, document: Callable[[], dict[str, Any]], show: Callable[[Any], None]) -> None:
    """The answer on stdout: one JSON document, or what ``show`` prints on a Rich console."""
    if as_json:
        print(json.dumps(document(), indent=1))
        ANSWERED.set(True)
        return
    from rich.console import Console

    from fitplan.cli.harmless import Harmless

    console = Console(highlight=False)
    console.width = max(console.width or USUAL_WIDTH, LEAST_WIDTH)
    console.push_render_hook(Harmless())
    with console.capture() as captured:
        show(console)
    text = captured.get()
    print(text if console.is_terminal else re.sub(r" +$", "", text, flags=re.MULTILINE), end="")


USUAL_WIDTH, LEAST_WIDTH = 80, 44
"""Columns of a terminal that is said to have none (``COLUMNS=0``), and those without which a breakdown would be cut."""
