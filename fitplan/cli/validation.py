"""``fitplan validate``: the command, and its flags."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fitplan.cli.command import Add, command
from fitplan.cli.commands import answer_with
from fitplan.cli.console import EXIT_FITS, EXIT_MISSED, Narration
from fitplan.cli.files import check_writable, write_answer
from fitplan.errors import InputError, MissingDependency
from fitplan.installing import install
from fitplan.rehearsal import DEFAULT_GPU
from fitplan.setup import given

EXAMPLES = """\
examples:
  fitplan validate llama-8b --method qlora --seq-len 4096      on this machine's GPU, with random weights
  fitplan validate llama-70b --layers 2,4                      two depths, drawn to the full model
  fitplan validate llama-8b --find-limit batch --vram 24GiB    the largest batch that runs in 24 GiB
  fitplan validate llama-8b --runner trainer --json            transformers.Trainer instead of fitplan's own step
  fitplan validate llama-8b --rehearse h100                    without a GPU, on the real CUDA libraries
  fitplan validate smollm2-135m --device cpu --layers 2        without a GPU, on the CPU

exit codes: 0 the prediction holds (out of memory as predicted, too), 2 bad input, 3 no usable GPU here,
4 the run failed or missed its tolerance
"""


def validate(model: str, vram: str | None, as_json: bool, out: str | None, record: bool | None, **settings: Any) -> int:
    """``fitplan validate``."""
    from fitplan import api
    from fitplan.validation.depths import DepthReport
    from fitplan.validation.job import Expectation, PhaseMemory
    from fitplan.validation.limit import LimitReport
    from fitplan.validation.records import write_record
    from fitplan.validation.report import ValidationReport

    draw = _drawer(Path(out), settings["find_limit"]) if out is not None else None
    with Narration() as progress:

        def watch(news: Expectation | PhaseMemory) -> None:
            if isinstance(news, PhaseMemory):
                progress.tell(phase=news.to_dict())
            else:
                progress.tell(expected=[phase.to_dict() for phase in news.phases])

        found = api.validate(model, vram=vram, record=False, progress=progress, watch=watch, **given(settings))

    def show(console: Any) -> None:
        from fitplan.report.validation import print_depths, print_limit, print_validation

        if isinstance(found, LimitReport):
            print_limit(found, console)
        elif isinstance(found, DepthReport):
            print_depths(found, console)
        else:
            print_validation(found, console)

    answer_with(as_json, found.to_dict, show)
    if draw is not None:
        draw(found)
    if record is not False and isinstance(found, ValidationReport):
        write_record(found.to_dict())
    return EXIT_FITS if found.within else EXIT_MISSED


def _drawer(path: Path, find_limit: str | None) -> Callable[[Any], None]:
    """Draws both timelines over each other into ``path``; what stands against it is told before the run."""
    if find_limit is not None:
        raise InputError("the search for a limit has no timeline; leave out or find_limit away")
    try:
        from fitplan.report.pictures import timelines_svg
    except ImportError as error:
        raise MissingDependency(f"a picture needs {error.name}, which is not installed; {install('report')}") from error
    from fitplan.report.validation import timelines
    from fitplan.validation.depths import DepthReport

    check_writable(path)

    def draw(found: Any) -> None:
        deeper = found.runs[1] if isinstance(found, DepthReport) else found
        write_answer(path, timelines_svg(timelines(deeper.phases)))

    return draw


def add_validate(add: Add, settings: Callable[..., None]) -> None:
    """Add the command; ``settings`` adds the flags of the setup."""
    parser = command(
        add,
        "validate",
        validate,
        "run the predicted step for real, for a few steps, and compare",
        EXAMPLES,
        description="Run the predicted step for real, in a process of its own, and compare.",
    )
    parser.add_argument("model", metavar="MODEL", help="an alias (llama-8b), a hub id, a folder or a config.json")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
    run = parser.add_argument_group("the run")
    run.add_argument("--device", metavar="NAME", help="cuda (default), cpu, or a GPU of this machine: 0, GPU-...")
    run.add_argument(
        "--rehearse",
        metavar="GPU",
        nargs="?",
        const=DEFAULT_GPU,
        help=f"run on a GPU that is not there ({DEFAULT_GPU} if none is named), played to the real CUDA libraries",
    )
    run.add_argument("--vram", metavar="SIZE", help="memory that the run may take, with its CUDA context: 24GiB")
    run.add_argument("--runner", choices=("step", "trainer"), help="fitplan's step (default), or transformers.Trainer")
    run.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default 3)")
    run.add_argument("--weights", metavar="FOLDER", help="a checkpoint to load; random weights if left out")
    run.add_argument("--layers", type=_numbers, metavar="N[,M]", help="shorten the model; two depths are extrapolated")
    run.add_argument("--find-limit", choices=("batch", "seq"), help="find the largest that runs")
    run.add_argument("--tolerance", type=_percent, metavar="P", help="percent that may be missed (default 2%%)")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="end the run after this long (default 600)")
    run.add_argument("--force", action="store_true", default=None, help="run even where less is free than predicted")
    run.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=None, help="keep the result (default on)"
    )
    run.add_argument("--out", metavar="FILE", help="write both timelines there, as an SVG picture")
    settings(parser, method="qlora")


def calibrate(device: str, timeout: float, as_json: bool) -> int:
    """``fitplan calibrate``."""
    from fitplan.validation.calibration import calibrate as measure_here

    with Narration() as progress:
        progress("measuring the GPU")
        found = measure_here(device, timeout)

    def show(console: Any) -> None:
        from fitplan.report.validation import print_calibration

        print_calibration(found, console)

    answer_with(as_json, found.to_dict, show)
    return EXIT_FITS


CALIBRATE_EXAMPLES = """\
examples:
  fitplan calibrate               the GPU of this machine; check then knows its CUDA context
  fitplan calibrate --device 1 --json

exit codes: 0 measured, 3 no usable GPU here, 4 the measurement failed
"""


def add_calibrate(add: Add) -> None:
    """Add the command."""
    parser = command(
        add,
        "calibrate",
        calibrate,
        "measure the CUDA context of this machine's GPU, and the scratch memory of kernels",
        CALIBRATE_EXAMPLES,
        description="Measure the CUDA context of this machine's GPU, and the scratch memory of kernels beside what "
        "is assumed of it. No prediction is scaled.",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
    parser.add_argument("--device", metavar="NAME", default="cuda", help="a GPU of this machine: 0, GPU-...")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=300.0, help="end it after this long (default 300)"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"between 0 and {MOST_SECONDS} seconds are wanted, not {text}")
    return seconds


MOST_SECONDS = 10**6


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with a comma between are wanted, not {text!r}") from None


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number of percent such as 2% is wanted, not {text!r}") from None
