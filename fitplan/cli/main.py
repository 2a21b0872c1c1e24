"""The ``fitplan`` command: from what was typed to an exit code."""

import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fitplan.cli.commands import at_terminal, has_textual
from fitplan.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    EXIT_MISSED,
    EXIT_NO_GPU,
    complain,
    prepare_streams,
    say,
)
from fitplan.cli.parser import make_parser
from fitplan.errors import FitplanError, InputError, NoUsableGpu, ValidationFailed
from fitplan.tracer import tracing_here
from fitplan.whole import told_to

if TYPE_CHECKING:
    from fitplan.readers import Reading


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    prepare_streams()
    parser = make_parser()
    typed, command = _split(sys.argv[1:] if arguments is None else arguments)
    options = vars(parser.parse_args(typed))
    run = options.pop("run", None)
    if run is None and at_terminal() and has_textual():
        options = vars(parser.parse_args(["tui"]))
        run = options.pop("run")
    if run is None:
        complain("no command is given; see fitplan --help")
        return EXIT_BAD_INPUT
    try:
        if (file := options.pop("file", None)) is not None:
            options["model"] = _from_file(file, options["model"])
        if command:
            options["model"] = _from_command(command)
        with tracing_here(), told_to(lambda message: say("note: ", message)):  # this process is there for nothing else
            code: int = run(**options)
        sys.stdout.flush()
        return code
    except NoUsableGpu as error:
        complain(str(error))
        return EXIT_NO_GPU
    except ValidationFailed as error:
        complain(str(error))
        return EXIT_MISSED
    except FitplanError as error:
        complain(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        complain(f"the system refused{where}: {error.strerror or error}")
        return EXIT_BAD_INPUT
    except Exception:
        traceback.print_exc()
        complain(
            "this is a defect of fitplan, not of what was asked; please report it where you have fitplan from, with "
            "the lines above and what fitplan --version says"
        )
        return EXIT_DEFECT


ASK_ABOUT_COMMANDS = ("check", "advise", "explain", "map", "report")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is fitplan's, and the command line that is asked about in the place of a model, after ``--``.

    After ``fitplan diff ... --`` stands what is compared with it.
    """
    typed = list(arguments)
    if typed[:1] == ["diff"] and "--" in typed:
        at = typed.index("--")
        return [*typed[:at], f"--against={shlex.join(typed[at + 1 :])}"], []
    if typed[:1] and typed[0] in ASK_ABOUT_COMMANDS and "--" in typed:
        at = typed.index("--")
        return [*typed[:at], "-"], typed[at + 1 :]
    return typed, []


def _from_command(words: Sequence[str]) -> "Reading":
    from fitplan.readers import read_command_line

    return read_command_line(words)


def _from_file(file: str, model: str) -> "Reading":
    from fitplan.readers import read_training_file

    reading = read_training_file(file)
    if reading is None:
        raise InputError(f"{file} is no training file that is known here; give one, or leave it out")
    return replace(reading, model=model)
