"""What can be typed: the commands and their flags."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from fitplan.cli import commands
from fitplan.cli.command import Add, command
from fitplan.cli.completion import SHELLS, PrintCompletion
from fitplan.cli.console import EXIT_BAD_INPUT, EXIT_FITS, complain
from fitplan.cli.rehearsal import add_rehearse
from fitplan.cli.validation import add_calibrate, add_validate
from fitplan.names import did_you_mean
from fitplan.settings import Group, Setting
from fitplan.setup import SETTINGS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_BAD_INPUT)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Nothing unknown is let through: each command knows best what its own flags are like."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((one for one in unknown if one.startswith("--")), "").partition("=")[0]
            near = did_you_mean(flag.lstrip("-"), {known.lstrip("-"): known for known in self._option_string_actions})
            self.error(f"unrecognized arguments: {' '.join(unknown)}{f' ({near})' if near else ''}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = did_you_mean(str(value), tuple(action.choices)) or f"choose from {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r} ({near})")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"fitplan {version('fitplan')}")
        parser.exit(EXIT_FITS)


_EXAMPLES = """\
examples:
  fitplan check llama-70b --gpu H100                        all three methods, one under the other
  fitplan check mistral-7b --method qlora --gpu 4090 --seq-len 4096 --batch-size 2
  fitplan check ./my-model --method lora --lora-r 64 --target-modules q_proj,v_proj --vram 24GiB
  fitplan check Qwen/Qwen2.5-7B --method full --optim adamw_8bit --json > plan.json
  fitplan check llama-8b --method qlora --gpu 4090 --emit python > train.py
  fitplan check llama-8b --stack trl --method qlora --gpu 4090   as TRL runs it
  fitplan check train.yaml --gpu 4090                       a training file of Axolotl, LLaMA-Factory, TRL, ...
  fitplan check --gpu 4090 -- trl sft --model_name_or_path gpt2 --use_peft      a command line, as you type it

exit codes: 0 fits or tight, 1 does not fit, 5 fits only if cache can be given back, 2 bad input, 3 no usable GPU here;
without --method that of the best of the three, without a GPU always 0
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; each command's function is in ``run``."""
    parser = _Parser(
        prog="fitplan",
        allow_abbrev=False,
        description="Will this fine-tune fit on this GPU, and where does the memory go?",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="show the version")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        dest=argparse.SUPPRESS,
        help='print completions for a shell: eval "$(fitplan --print-completion bash)"',
    )
    add = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser).add_parser
    _add_check(add)
    for name, run, what, epilog in _ONE_SETUP:
        added = command(add, name, run, what, epilog)
        _add_job(added)
        _add_form(added, emits=run is commands.advise)
        if run is commands.advise:
            added.add_argument("--trace", action="store_true", help="try also what takes a trace")
        _add_settings(added, method="qlora")
    _add_report(add)
    add_validate(add, _add_settings)
    add_rehearse(add)
    _add_tui(add)
    add_calibrate(add)
    _add_mcp(add)
    _add_gpus(add)
    _add_fits(add)
    _add_diff(add)
    _add_autopsy(add)
    _add_models(add)
    _add_profile(add)
    return parser


def _add_check(add: Add) -> None:
    check = command(
        add, "check", commands.check, "predict the memory of a fine-tune and judge it against a GPU", _EXAMPLES
    )
    _add_job(check)
    _add_form(check, emits=True)
    check.add_argument("--trace", action="store_true", help="trace the step even where its footprint is known")
    check.add_argument("-v", "--verbose", action="store_true", help="all that is known of each method")
    _add_settings(check)


_ONE_SETUP: tuple[tuple[str, Callable[..., int], str, str], ...] = (
    (
        "advise",
        commands.advise,
        "what to change so that a fine-tune fits a GPU, or makes better use of it",
        "examples:\n"
        "  fitplan advise llama-70b --gpu H100 --method lora\n"
        "  fitplan advise llama-8b --gpu 4090 --seq-len 8192   what is given stays as it is\n"
        "  fitplan advise llama-8b --gpu 4090 --emit python > train.py   the best settings that were found\n"
        "\n"
        "exit codes: 0 fits or tight as asked, 1 does not fit as asked, 5 only if, whatever would make it fit;\n"
        "with --emit 0 where settings that fit are known, else 1; 2 bad input, 3 no usable GPU here",
    ),
    (
        "explain",
        commands.explain,
        "the formula of the peak, term by term, and how it moves with the job's shape",
        "example:\n  fitplan explain llama-8b --method qlora --seq-len 4096",
    ),
    (
        "map",
        commands.fit_map,
        "the largest batch for each length, and the longest sequence for each batch",
        "example:\n  fitplan map llama-8b --method lora --gpu 4090",
    ),
)
"""Commands about one setup: name, function, what they tell, examples."""


def _add_report(add: Add) -> None:
    report = command(
        add,
        "report",
        commands.report,
        "everything about a fine-tune on one page: verdict, timeline, fit map, advice, formula",
        "examples:\n"
        "  fitplan report llama-70b --gpu H100 --out report.html\n"
        "  fitplan report llama-8b --gpu 4090 --method lora --out report.html --svg pictures",
    )
    _add_job(report)
    report.add_argument("--out", metavar="FILE", required=True, help="the page that is written; it needs no other file")
    report.add_argument("--svg", metavar="FOLDER", help="write each picture there too, as a file of its own")
    _add_settings(report)


def _add_tui(add: Add) -> None:
    app = command(
        add,
        "tui",
        commands.tui,
        "the terminal app: change model, GPU and setup, and see what fits; fitplan alone starts it too",
        "examples:\n  fitplan tui\n  fitplan tui llama-70b --gpu H100 --method qlora --seq-len 4096",
    )
    app.add_argument("model", metavar="MODEL", nargs="?", help="as in fitplan check; chosen in the app if left out")
    _add_device(app)
    _add_settings(app, method="qlora")


def _add_mcp(add: Add) -> None:
    command(
        add,
        "mcp",
        commands.mcp,
        "serve check, advise, fits, diff and autopsy to language models, over the Model Context Protocol on stdio",
        'example, in the settings of a client:\n  {"mcpServers": {"fitplan": {"command": "fitplan", "args": ["mcp"]}}}',
    )


def _add_gpus(add: Add) -> None:
    gpus = command(
        add,
        "gpus",
        commands.gpus,
        "the GPUs of this machine with what is free on each, and those that are known by name",
        "examples:\n  fitplan gpus\n  fitplan gpus --json",
    )
    _add_json(gpus)


def _add_models(add: Add) -> None:
    models = command(
        add,
        "models",
        commands.models,
        "the models that fitplan ships with, and the setups it can answer for without torch",
        "examples:\n  fitplan models\n  fitplan models qwen3\n  fitplan models llama --json",
    )
    models.add_argument("search", metavar="TEXT", nargs="?", default="", help="part of a name, alias or hub id")
    _add_json(models)


def _add_fits(add: Add) -> None:
    fits = command(
        add,
        "fits",
        commands.fits,
        "which of the shipped models can be fine-tuned on a GPU, and how far",
        "examples:\n"
        "  fitplan fits --gpu 4090\n"
        "  fitplan fits qwen --gpu 4090 --gpu A100 --seq-len 8192 --sort length\n"
        "  fitplan fits --gpu 8xH100 --method full --all\n"
        "  fitplan fits --vram 12GiB --method qlora --json\n"
        "\n"
        "exit codes: 0 something fits, 1 nothing does, 5 only if cache can be given back, 2 bad input",
    )
    fits.add_argument(
        "search", metavar="TEXT", nargs="*", help="part of a model's name, alias or hub id; all if left out"
    )
    device = fits.add_mutually_exclusive_group()
    device.add_argument("--gpu", metavar="NAME", action="append", help="a GPU, as in fitplan check; again for another")
    device.add_argument("--vram", metavar="SIZE", help="an amount of memory instead of a known GPU: 24GiB")
    fits.add_argument(
        "--method", action="append", metavar="{full,lora,qlora}", help="again for another; all if left out"
    )
    fits.add_argument("--sort", choices=SORTED_BY, default="size", help="the order of the models (size)")
    fits.add_argument("--all", action="store_true", dest="everything", help="also those with which nothing fits")
    _add_json(fits)
    _add_settings(fits, without=("method",))


SORTED_BY = ("name", "size", "memory", "batch", "length")
"""As :data:`fitplan.report.fits.SORTS`, which is loaded only to print."""


def _add_diff(add: Add) -> None:
    diff = command(
        add,
        "diff",
        commands.diff,
        "what differs between two answers: which part of the memory grew, in which moment, and why",
        "examples:\n"
        "  fitplan diff llama-8b --method qlora --gpu 4090 -- --use-liger-kernel\n"
        "  fitplan diff llama-8b --method lora -- qwen3-8b --seq-len 4096   another model, and length\n"
        "  fitplan diff llama-8b -- --stack trl\n"
        "  fitplan diff before.json after.json   documents of fitplan check --json, as from before an upgrade\n"
        "\n"
        "exit codes: 0 compared, 2 bad input",
    )
    diff.add_argument("model", metavar="MODEL", help="as in fitplan check; or a document of fitplan check --json")
    diff.add_argument("second", metavar="FILE", nargs="?", help="the document that is compared with it")
    diff.add_argument("--against", help=argparse.SUPPRESS)  # what stands behind --
    _add_device(diff)
    _add_json(diff)
    diff.add_argument("--trace", action="store_true", help="trace both steps even where their footprints are known")
    _add_settings(diff, method="qlora")


def _add_autopsy(add: Add) -> None:
    autopsy = command(
        add,
        "autopsy",
        commands.autopsy,
        "why a run ended: its log, a snapshot of torch.cuda.memory, or the output of nvidia-smi",
        "examples:\n"
        "  fitplan autopsy train.log\n"
        "  fitplan autopsy train.log --model llama-8b --method qlora --seq-len 4096 --gpu 4090   beside the plan\n"
        "  fitplan autopsy snapshot.pickle --json\n"
        "\n"
        "exit codes: 0 it says why, 2 it says nothing of memory, or bad input",
    )
    autopsy.add_argument("log", metavar="FILE", help="a log, a snapshot, or what nvidia-smi printed")
    autopsy.add_argument("--model", metavar="MODEL", help="the job: a model, as in fitplan check, or a training file")
    _add_device(autopsy)
    _add_json(autopsy)
    _add_settings(autopsy)


def _add_profile(add: Add) -> None:
    profile = command(
        add,
        "profile",
        commands.profile,
        "trace the common setups of shipped models and write the footprints that ship; minutes a model",
        "example:\n  fitplan profile llama-3.1-8b gpt2 --out profiles/models",
    )
    profile.add_argument("models", metavar="MODEL", nargs="+", help="a shipped model, or all")
    profile.add_argument("--out", metavar="FOLDER", required=True, help="where MODEL/footprints.json.xz is written")
    profile.add_argument("--before-ampere", action="store_true", help="for GPUs such as the T4 and the V100")
    how = profile.add_mutually_exclusive_group()
    how.add_argument("--anew", action="store_true", help="make again what FOLDER holds of the same step already")
    how.add_argument("--missing", action="store_true", help="add what MODEL's file lacks, and keep the rest as it is")


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="an alias (llama-70b), a hub id, a folder or a config.json; or a training file, which names it",
    )
    parser.add_argument(
        "--from",
        metavar="FILE",
        dest="file",
        help="a training file of Axolotl, LLaMA-Factory, TRL, torchtune, transformers, accelerate or DeepSpeed, or an "
        "adapter_config.json: what it says, for MODEL; flags win",
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    device = parser.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu",
        metavar="NAME",
        help="the GPU: h100, 4090, ..., or one of this machine: auto (the default if there is one), 0, GPU-...",
    )
    device.add_argument("--vram", metavar="SIZE", help="an amount of memory instead of a known GPU: 24GiB")


def _add_form(parser: argparse.ArgumentParser, *, emits: bool) -> None:
    """The forms that an answer can take instead of a table."""
    form = parser.add_mutually_exclusive_group()
    _add_json(form)
    if emits:
        form.add_argument(
            "--emit",
            choices=("python", "json", "trl", "llamafactory", "axolotl"),
            help="print a training script, a document, or a training file of another tool, with these very settings",
        )


def _add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="print one JSON document instead of a table"
    )


def _add_settings(parser: argparse.ArgumentParser, method: str = "", without: tuple[str, ...] = ()) -> None:
    """One flag for each setting; left out, it takes the setup's own default.

    Args:
        parser: of a command.
        method: the one that the command takes if none is named; all three if empty.
        without: settings whose flags the command has in its own way.

    """
    groups = {heading: parser.add_argument_group(heading) for heading in Group}
    for one in (one for one in SETTINGS.values() if one.name not in without):
        text = one.help_with_default
        if one.name == "method":
            text = f"default {method}" if method else "all three if left out"
        groups[one.group].add_argument(one.flag, **_argument(one), help=text)


def _argument(one: Setting) -> dict[str, Any]:
    if one.kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if one.is_enum:
        return {"metavar": "{" + ",".join(one.kind) + "}"}
    if one.kind is int:
        return {"metavar": one.metavar, "type": _count}
    return {"metavar": one.metavar, "type": float if one.kind is float else str}


def _count(text: str) -> int:
    """A whole number; ``4k`` is 4096, as the map and the app print it."""
    number = text.lower().removesuffix("k")
    return int(number) * (1024 if number != text.lower() else 1)


_count.__name__ = "int"  # as argparse names it in its complaint
