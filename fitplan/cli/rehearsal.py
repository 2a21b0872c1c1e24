"""``fitplan rehearse``: the command, and its flags."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitplan.cli.command import Add, command
from fitplan.cli.commands import answer_with
from fitplan.cli.console import EXIT_DOES_NOT_FIT, EXIT_FITS, EXIT_MISSED
from fitplan.cli.files import check_writable, write_answer
from fitplan.rehearsal import DEFAULT_GPU

EXAMPLES = """\
examples:
  fitplan rehearse --gpu 4090 -- python train.py
  fitplan rehearse --gpu h100 --report run.html -- trl sft --config sft.yaml
  fitplan rehearse --gpu a100 -- torchrun --nproc-per-node 2 train.py     two ranks, each with a GPU of its own
  fitplan rehearse --world 64 -- torchrun --nproc-per-node 2 train.py     ranks 0 and 1 of 64
  fitplan rehearse --vram 24GiB --steps 0 -- python train.py              to the program's own end

The program runs as it is, on the real CUDA libraries; kernels do nothing, so losses are no losses. Models that are not
here are stood in for by checkpoints without content, where their config ships with fitplan or lies in the cache.

exit codes: 0 fits or tight, 1 does not fit, 2 bad input, 4 the program failed for another reason
"""


def rehearse(
    command: list[str], gpu: str | None, vram: str | None, as_json: bool, report: str | None, **options: Any
) -> int:
    """``fitplan rehearse``."""
    from fitplan import api

    if report is not None:
        check_writable(Path(report))
    with _Live() as live:
        found = api.rehearse(_words(command), gpu=gpu, vram=vram, watch=live.show, output=live, **options)

    def show(console: Any) -> None:
        from fitplan.report.rehearsal import print_rehearsal

        print_rehearsal(found, console)

    answer_with(as_json, found.to_dict, show)
    if report is not None:
        from fitplan.report.rehearsal_page import rehearsal_page

        write_answer(Path(report), rehearsal_page(found))
    if found.failed:
        return EXIT_MISSED
    return EXIT_DOES_NOT_FIT if found.out_of_memory else EXIT_FITS


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers of tokens with commas between are wanted, not {text!r}") from None


def _words(command: list[str]) -> list[str]:
    return command[1:] if command[:1] == ["--"] else command


class _Live:
    """Shows on stderr where each rank is, at a terminal; and hands on what the program prints."""

    def __enter__(self) -> "_Live":
        from rich.console import Console

        console = Console(stderr=True)
        self._ranks: dict[int, str] = {}
        self._status = console.status("starting the program") if console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self

    def show(self, news: Mapping[str, Any]) -> None:
        """A rank tells where it is."""
        from fitplan.units import gib

        taken = f"{gib(news['allocated_bytes'])}, {gib(news['reserved_bytes'])} reserved"
        text = f"step {news['step']} {news['phase']}: {taken}"
        self._ranks[news["rank"]] = text
        if self._status is not None:
            self._status.update("   ".join(f"[{rank}] {text}" for rank, text in sorted(self._ranks.items())))

    def write(self, text: str) -> int:
        """What the program prints."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """As of a file."""
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def add_rehearse(add: Add) -> None:
    """Add the command."""
    parser = command(
        add,
        "rehearse",
        rehearse,
        "run your own training program, as it is, on a GPU that is not there",
        EXAMPLES,
        description="Run a training program, as it is, on a GPU that is not there, and tell where its memory goes.",
    )
    parser.add_argument("--gpu", metavar="NAME", help=f"the GPU that is played (default {DEFAULT_GPU})")
    parser.add_argument("--vram", metavar="SIZE", help="an amount of memory instead of a known GPU: 24GiB")
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="GPUs that the program is shown (default: those that the command names)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="optimizer steps after which it is ended (default 3); 0: its own end"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end it after this long (default 3600)")
    parser.add_argument(
        "--world",
        type=int,
        metavar="N",
        help="ranks that there are, of which the command starts the first few; all are taken to do the same",
    )
    parser.add_argument(
        "--synthetic-rows",
        type=_lengths,
        metavar="N[,M...]",
        help="rows of so many tokens stand in for a data set that cannot be loaded",
    )
    parser.add_argument(
        "--synthetic-columns",
        type=lambda text: tuple(text.split(",")),
        metavar="NAMES",
        help="their columns (default text), such as prompt,chosen,rejected",
    )
    parser.add_argument("--online", action="store_true", default=None, help="let the program ask the Hugging Face hub")
    parser.add_argument("--report", metavar="FILE", help="write a page with the timeline there (HTML)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the program, as you type it")
