"""The ``fitplan`` command: from what was typed to an exit code."""

import json
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fitplan.cli.commands import at_terminal, has_textual
from fitplan.cli.console import (
    ANSWERED,
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
from fitplan.errors import ERROR_SCHEMA, FitplanError, InputError, NoUsableGpu, ValidationFailed
from fitplan.tracer import tracing_here
from fitplan.whole import told_to

if TYPE_CHECKING:
    from fitplan.readers import Reading


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    prepare_streams()
    ANSWERED.set(False)
    parser = make_parser()
    typed, command = _split(sys.argv[1:] if arguments is None else arguments)
    options = vars(parser.parse_args(typed))
    run = options.pop("run", None)
    as_json = bool(options.get("as_json"))
    if run is None and at_terminal() and has_textual():
        options = vars(parser.parse_args(["tui"]))
        run = options.pop("run")
    if run is None:
        complain(
            "no command is given; try fitplan check llama-70b --gpu H100 or fitplan fits --gpu 4090; see fitplan --help"
        )
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
    except FitplanError as error:
        complain(str(error))
        code = next((code for kind, code in _ENDS.items() if isinstance(error, kind)), EXIT_BAD_INPUT)
        if as_json and not ANSWERED.get():
            print(json.dumps(_error_document(error, code), indent=1))
        return code
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


_ENDS = {NoUsableGpu: EXIT_NO_GPU, ValidationFailed: EXIT_MISSED}


def _error_document(error: FitplanError, code: int) -> dict[str, Any]:
    """The ``fitplan.error/1`` document, for who reads the answer as JSON."""
    return {"schema": ERROR_SCHEMA, "kind": type(error).__name__, "error": str(error), "exit_code": code}


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
