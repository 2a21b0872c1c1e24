"""The ``fitplan`` command: it parses, calls the library, and prints. No rule about memory lives here."""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fitplan.errors import FitplanError, NoUsableGpu
from fitplan.setup import ALL_LINEAR, Attention, Dtype, Method, MixedPrecision, Optim, Padding, Quant, Task

EXIT_FITS, EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT, EXIT_NO_GPU, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII or cp1252 pipe has no bars: an answer without them is one
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    run = options.pop("run", None)
    if run is None:
        _complain("no command is given; see fitplan --help")
        return EXIT_BAD_INPUT
    try:
        code: int = run(**options)
        sys.stdout.flush()
        return code
    except NoUsableGpu as error:
        _complain(str(error))
        return EXIT_NO_GPU
    except FitplanError as error:
        _complain(str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FITS
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _complain(f"the system refused{where}: {error.strerror or error}")
        return EXIT_BAD_INPUT


def _complain(message: str) -> None:
    """One line, whatever a file name or a library's message holds: no line breaks, no terminal escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    print(f"fitplan: error: {text}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_BAD_INPUT)


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

exit codes: 0 fits or tight, 1 does not fit, 2 bad input, 3 no usable GPU here
"""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fitplan",
        allow_abbrev=False,
        description="Will this fine-tune fit on this GPU, and where does the memory go?",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    check = commands.add_parser(
        "check",
        allow_abbrev=False,  # else a mistyped flag is taken for the flag that it begins
        help="predict the memory of a fine-tune and judge it against a GPU",
        description="Predict the memory of a fine-tune by tracing the real training step, and judge it against a GPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.set_defaults(run=_check)
    check.add_argument("model", metavar="MODEL", help="an alias (llama-70b), a hub id, a folder or a config.json")
    _add_gpu(check)
    check.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document instead of a table")
    check.add_argument("--trace", action="store_true", help="trace the step even where its footprint is known")
    _add_settings(check)
    _add_gpus(commands)
    _add_models(commands)
    _add_explain(commands)
    _add_map(commands)
    profile = commands.add_parser(
        "profile",
        allow_abbrev=False,
        help="make the footprints that ship with fitplan",
        description="Trace the common setups of shipped models and write their footprints. Takes minutes a model.",
        epilog="example:\n  fitplan profile llama-3.1-8b gpt2 --out profiles/models",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profile.set_defaults(run=_profile)
    profile.add_argument("models", metavar="MODEL", nargs="+", help="a shipped model, or all")
    profile.add_argument("--out", metavar="FOLDER", required=True, help="where MODEL/footprints.json.xz is written")
    return parser


def _add_gpus(commands: Any) -> None:
    gpus = commands.add_parser(
        "gpus",
        allow_abbrev=False,
        help="the GPUs of this machine, and those that are known by name",
        description="The GPUs of this machine with what is free on each, and the GPUs that are known by name.",
        epilog="examples:\n  fitplan gpus\n  fitplan gpus --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpus.set_defaults(run=_gpus)
    gpus.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document instead of a table")


def _add_models(commands: Any) -> None:
    models = commands.add_parser(
        "models",
        allow_abbrev=False,
        help="the models that fitplan ships with",
        description="The models that fitplan ships with, and the setups it can answer for without torch.",
        epilog="examples:\n  fitplan models\n  fitplan models qwen3\n  fitplan models llama --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models.set_defaults(run=_models)
    models.add_argument("search", metavar="TEXT", nargs="?", default="", help="part of a name, alias or hub id")
    models.add_argument(
        "--json", action="store_true", dest="as_json", help="print one JSON document instead of a table"
    )


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        allow_abbrev=False,
        help="the formula of the peak, term by term",
        description="The formula of the peak in words and numbers, and how the peak moves with the job's shape.",
        epilog="example:\n  fitplan explain llama-8b --method qlora --seq-len 4096",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.set_defaults(run=_explain)
    explain.add_argument("model", metavar="MODEL", help="an alias (llama-70b), a hub id, a folder or a config.json")
    _add_gpu(explain)
    explain.add_argument(
        "--json", action="store_true", dest="as_json", help="print one JSON document instead of a table"
    )
    _add_settings(explain, method="qlora")


def _add_map(commands: Any) -> None:
    fit_map = commands.add_parser(
        "map",
        allow_abbrev=False,
        help="the largest batch for each length, and the longest sequence for each batch",
        description="How large a batch and how long a sequence a GPU can take with this setup.",
        epilog="example:\n  fitplan map llama-8b --method lora --gpu 4090",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit_map.set_defaults(run=_map)
    fit_map.add_argument("model", metavar="MODEL", help="an alias (llama-70b), a hub id, a folder or a config.json")
    _add_gpu(fit_map)
    fit_map.add_argument(
        "--json", action="store_true", dest="as_json", help="print one JSON document instead of a table"
    )
    _add_settings(fit_map, method="qlora")


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    device = parser.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu", metavar="NAME", help="the GPU: h100, 4090, ..., or one of this machine: auto, 0, GPU-..."
    )
    device.add_argument("--vram", metavar="SIZE", help="an amount of memory instead of a known GPU: 24GiB")


def _add_settings(parser: argparse.ArgumentParser, method: str = "") -> None:
    """One flag for each field of :class:`TrainingSetup`; left out, it takes the setup's own default."""
    job = parser.add_argument_group("the job")
    job.add_argument("--method", **_choice(Method), help=f"default {method}" if method else "all three if left out")
    job.add_argument("--task", **_choice(Task), help="the one that the model's config names if left out")
    job.add_argument("--num-labels", type=int, metavar="N", help="classes of a sequence classifier")
    job.add_argument("--batch-size", type=int, metavar="N", help="rows in a micro-batch (default 1)")
    job.add_argument("--seq-len", type=int, metavar="N", help="tokens in a row (default 2048, or what the model can)")
    job.add_argument("--gradient-accumulation-steps", type=int, metavar="N", help="micro-batches in a step (default 1)")
    job.add_argument("--padding", **_choice(Padding), help="how rows reach one length (default none: all are full)")
    lora = parser.add_argument_group("LoRA and QLoRA")
    lora.add_argument("--lora-r", type=int, metavar="R", help="rank (default 16)")
    lora.add_argument("--lora-alpha", type=int, metavar="N", help="scaling (default 32)")
    lora.add_argument("--lora-dropout", type=float, metavar="P", help="dropout (default 0)")
    lora.add_argument(
        "--target-modules", metavar="NAMES", type=_modules, help=f"module names with commas (default {ALL_LINEAR})"
    )
    lora.add_argument("--quant", **_choice(Quant), help="format of the frozen weights (default nf4)")
    lora.add_argument("--double-quant", **_switch, help="quantise the scales again (default on)")
    lora.add_argument("--compute-dtype", **_choice(Dtype), help="type of 4-bit products (default: --dtype)")
    lora.add_argument("--kbit-prepare", **_switch, help="call prepare_model_for_kbit_training (default on)")
    how = parser.add_argument_group("how it is trained")
    how.add_argument("--dtype", **_choice(Dtype), help="type the weights are loaded in (default bfloat16)")
    how.add_argument("--mixed-precision", **_choice(MixedPrecision), help="autocast (default bf16; fp16 with float16)")
    how.add_argument("--gradient-checkpointing", **_switch, help="recompute activations in backward (default on)")
    how.add_argument("--attn", **_choice(Attention), help="attention implementation (default sdpa)")
    how.add_argument("--optim", **_choice(Optim), help="optimizer (default adamw_torch_fused)")


_switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}


def _choice(kind: Any) -> dict[str, Any]:
    return {"metavar": "{" + ",".join(kind) + "}"}


def _modules(text: str) -> str | tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names[0] if names == (ALL_LINEAR,) else names


def _check(
    model: str, gpu: str | None, vram: str | None, method: str | None, trace: bool, as_json: bool, **settings: Any
) -> int:
    from fitplan.api import check
    from fitplan.verdict import Fit

    given = {name: value for name, value in settings.items() if value is not None}
    with _Narration() as progress:
        report = check(model, gpu=gpu, vram=vram, method=method, trace=trace, progress=progress, **given)
    for warning in report.warnings:
        print(f"fitplan: note: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        from rich.console import Console

        from fitplan.report.terminal import print_check

        print_check(report, Console(highlight=False))
    verdicts = [plan.verdict.fit for plan in report.plans if plan.verdict is not None]
    return EXIT_DOES_NOT_FIT if verdicts and all(fit is Fit.DOES_NOT_FIT for fit in verdicts) else EXIT_FITS


def _gpus(as_json: bool) -> int:
    from fitplan.devices.detect import detect
    from fitplan.devices.device import known_devices
    from fitplan.report.gpus import gpus_document, print_gpus

    machine = detect()
    if as_json:
        print(json.dumps(gpus_document(machine, known_devices()), indent=1))
        return EXIT_FITS
    from rich.console import Console

    print_gpus(machine, known_devices(), Console(highlight=False))
    return EXIT_FITS


def _models(search: str, as_json: bool) -> int:
    from fitplan.footprint.store import shipped_recipes
    from fitplan.models.catalog import catalog

    wanted = search.lower()
    found = [e for e in catalog() if any(wanted in s.lower() for s in (e.name, *e.aliases, *e.hub_ids))]
    if not found:
        _complain(f"no shipped model is named like {search!r}; fitplan models lists them all")
        return EXIT_BAD_INPUT
    if as_json:
        rows = [
            {
                "name": e.name,
                "aliases": list(e.aliases),
                "hub_ids": list(e.hub_ids),
                "parameters": e.parameters,
                "setups": shipped_recipes(e.name),
            }
            for e in found
        ]
        print(json.dumps({"schema": "fitplan.models/1", "models": rows}, indent=1))
        return EXIT_FITS
    from rich.console import Console

    from fitplan.report.models import print_models

    print_models([(e, len(shipped_recipes(e.name))) for e in found], Console(highlight=False))
    return EXIT_FITS


def _explain(as_json: bool, model: str, gpu: str | None, vram: str | None, **settings: Any) -> int:
    from fitplan.api import device_named, explain
    from fitplan.devices.device import DEFAULT_CAPABILITY

    given = {name: value for name, value in settings.items() if value is not None}
    device = device_named(gpu, vram)
    capability = device.capability if device else DEFAULT_CAPABILITY
    with _Narration() as progress:
        found = explain(model, capability=capability, progress=progress, **given)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return EXIT_FITS
    from rich.console import Console

    from fitplan.report.formula import print_explanation

    print_explanation(found, Console(highlight=False))
    return EXIT_FITS


def _map(as_json: bool, model: str, gpu: str | None, vram: str | None, **settings: Any) -> int:
    from fitplan.api import fit_map

    given = {name: value for name, value in settings.items() if value is not None}
    with _Narration() as progress:
        found = fit_map(model, gpu=gpu, vram=vram, progress=progress, **given)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return EXIT_FITS
    from rich.console import Console

    from fitplan.report.formula import print_map

    print_map(found, Console(highlight=False))
    return EXIT_FITS


def _profile(models: list[str], out: str) -> int:
    from pathlib import Path

    from fitplan.models.catalog import catalog
    from fitplan.models.resolve import resolve_model
    from fitplan.shipping import ship

    names = [entry.name for entry in catalog()] if models == ["all"] else models
    with _Narration() as progress:
        for number, name in enumerate(names, 1):
            model = resolve_model(name)
            heading = f"{number}/{len(names)} {model.name}, "
            left_out = ship(model, Path(out), lambda what, heading=heading: progress(heading + what))  # type: ignore[misc]
            print(f"{model.name}: written" + "".join(f"\n  without {one}" for one in left_out), flush=True)
    return EXIT_FITS


class _Narration:
    """A spinner on stderr that says what is being done; silent where stderr is no terminal."""

    def __enter__(self) -> Any:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._say

    def _say(self, what: str) -> None:
        if self._status is not None:
            self._status.update(what)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
