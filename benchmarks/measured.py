#!/usr/bin/env python3
"""Summarises this project's own runs on GPUs, kept in ``profiles/measured/``, for ``docs/accuracy.md``.

Each record holds what was predicted before the run and what the run measured. Reading them needs no GPU and no torch.
``--collect FOLDER`` keeps what ``gpu_matrix.py`` left in a folder beside the records of earlier runs.
With ``--trace`` the jobs are traced again, which takes some minutes and the libraries that ran them: torch 2.11,
transformers 5.17, peft 0.21.0, accelerate 1.15, bitsandbytes 0.50.2, liger-kernel 0.8.5.
"""

import argparse
import json
import statistics
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "profiles" / "measured"
CALIBRATIONS = MEASURED / "calibrations.json"
AGAIN = ROOT / "benchmarks" / "groundtruth" / "traced_again.json"
WORDS = ROOT / "benchmarks" / "groundtruth" / "page.toml"
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- measured here: begin -->", "<!-- measured here: end -->"
MIB = 2**20

QUANTITIES = {
    "peak_requested_bytes": "requested",
    "peak_allocated_bytes": "allocated",
    "peak_reserved_bytes": "reserved",
    "device_bytes": "device memory",
}
SHOWN = {"peak_requested_bytes": 0.01, "peak_reserved_bytes": 1.0}
"""Percent: jobs that are further off are listed."""
USUAL = {
    "batch_size": 1, "gradient_accumulation_steps": 1, "lora_r": 16, "quant": "nf4", "double_quant": True,
    "kbit_prepare": True, "gradient_checkpointing": True, "optim": "adamw_torch_fused", "padding": "none",
    "use_liger_kernel": False, "expandable_segments": False,
}  # fmt: skip
"""Settings that are not named where a job has them; ``attn`` is named where it is eager."""


@dataclass(frozen=True)
class Job:
    """A job that was run.

    Attributes:
        name: model, method and what is unusual.
        gpu: where it ran.
        day: when it ran, as ``"2026-01-31"``.
        predicted: bytes by quantity, before the run.
        measured: bytes by quantity.
        again: bytes by quantity, traced again; empty where that was not done.
        recorded_device_bytes: as the record says it was predicted, with the context that was known of such a GPU.

    """

    name: str
    gpu: str
    day: str
    predicted: dict[str, int]
    measured: dict[str, int]
    again: dict[str, int]
    recorded_device_bytes: int = 0

    @property
    def context_bytes(self) -> int:
        """What the process held beside PyTorch's allocator."""
        return self.measured["device_bytes"] - self.measured["peak_reserved_bytes"]

    def error(self, quantity: str, *, again: bool = False) -> float:
        """Percent."""
        predicted = (self.again if again else self.predicted)[quantity]
        return 100 * (predicted - self.measured[quantity]) / self.measured[quantity]


def records() -> Iterable[dict[str, Any]]:
    """The documents, model by model."""
    for path in sorted(MEASURED.glob("*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


def name_of(document: dict[str, Any]) -> str:
    """``"qwen3-4b lora 1 x 1024, lora_r 8"``."""
    setup = document["setup"]
    unusual = [f"{key} {setup[key]}" for key, usual in USUAL.items() if setup[key] not in (usual, None)]
    unusual = [words for words in unusual if not words.startswith("batch_size")]
    if setup["attn"] == "eager":
        unusual.append("eager")
    shape = f"{setup['batch_size']} x {setup['seq_len']}"
    return ", ".join([f"{document['model']['name']} {setup['method']} {shape}", *unusual])


@cache
def calibrations() -> list[dict[str, Any]]:
    """Every calibration, the oldest first."""
    found: list[dict[str, Any]] = json.loads(CALIBRATIONS.read_text())
    return sorted(found, key=lambda one: one["created"])


def context(gpu: str, day: str = "~") -> int:
    """Bytes of the CUDA context, as the latest calibration of a GPU had found them by some day."""
    return [one["context_bytes"] for one in calibrations() if one["gpu"] == gpu and one["created"][:10] <= day][-1]


def jobs() -> list[Job]:
    """Every record; device memory is predicted with the context that had been calibrated on such a GPU by then."""
    again = json.loads(AGAIN.read_text())["jobs"] if AGAIN.exists() else {}
    found = []
    for document in records():
        name, day = name_of(document), document["created"].partition("T")[0]
        gpu = document["measurement"]["device"].removeprefix("NVIDIA ")
        predicted = {one["name"]: one["predicted"] for one in document["quantities"]}
        measured = {one["name"]: one["measured"] for one in document["quantities"]}
        traced, recorded = dict(again.get(name, {})), predicted["device_bytes"]
        predicted["device_bytes"] = predicted["peak_reserved_bytes"] + context(gpu, day)
        if traced:
            traced["device_bytes"] = traced["peak_reserved_bytes"] + context(gpu)
        found.append(
            Job(
                name=name, gpu=gpu, day=day, predicted=predicted, measured=measured, again=traced,
                recorded_device_bytes=recorded,
            )
        )  # fmt: skip
    return found


def collect(folder: Path) -> None:
    """Keep the records of a folder, each once, and its calibration."""
    for path in sorted(folder.glob("*--*.json"), key=lambda path: json.loads(path.read_text())["created"]):
        document = json.loads(path.read_text())
        document["measurement"]["phases"] = []  # they stand beside the predicted ones already
        kept = MEASURED / f"{document['model']['name']}.jsonl"
        line, lines = json.dumps(document), kept.read_text().splitlines() if kept.exists() else []
        if line not in lines:
            kept.write_text("".join(f"{one}\n" for one in [*lines, line]))
    found, others = json.loads((folder / "calibration.json").read_text()), calibrations()
    if found not in others:
        CALIBRATIONS.write_text(json.dumps([*others, found], indent=1))
        calibrations.cache_clear()


def trace_again() -> None:
    """Trace every job with the libraries installed here, and write what is predicted now."""
    from fitplan.configs.resolve import resolve_model
    from fitplan.errors import FitplanError
    from fitplan.setup import TrainingSetup
    from fitplan.tracer import installed_versions, trace_job
    from fitplan.validation.comparison import predicted_phases

    found: dict[str, dict[str, int]] = {}
    for document in {name_of(document): document for document in records()}.values():  # some ran on two days
        setup = TrainingSetup.from_dict(document["setup"])
        try:
            run = trace_job(
                resolve_model(document["model"]["name"]), setup, (9, 0), lambda _: None,
                exactly=True, multiprocessors=132,
            )  # fmt: skip
        except FitplanError as error:  # as where these libraries have no such attention for a model
            sys.exit(f"{name_of(document)}: {error}; trace with the libraries of the runs")
        phases = predicted_phases(run.trace, expandable=setup.expandable_segments)
        found[name_of(document)] = {
            f"peak_{name}": max(getattr(phase, name) or 0 for phase in phases)
            for name in ("requested_bytes", "allocated_bytes", "reserved_bytes")
        }
        print(name_of(document), file=sys.stderr)
    AGAIN.write_text(json.dumps({"versions": installed_versions(), "jobs": found}, indent=1) + "\n")


# --- the section of the page ------------------------------------------------------------------------------------------


def summary(found: list[Job], quantity: str, *, again: bool = False) -> tuple[str, ...]:
    """A row: how many jobs, and their errors in percent."""
    errors = sorted(abs(job.error(quantity, again=again)) for job in found)
    nearest = [errors[max(0, -(-percent * len(errors) // 100) - 1)] for percent in (90, 95)]
    numbers = (statistics.median(errors), *nearest, errors[-1])
    return (QUANTITIES[quantity], str(len(errors)), *(f"{number:.3f}" for number in numbers))


def table(rows: list[tuple[str, ...]], left: int) -> str:
    """A table in Markdown, whose first ``left`` columns are words."""
    ruler = tuple("---" if place < left else "---:" for place in range(len(rows[0])))
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ruler, *rows[1:]))


def _errors(found: list[Job], *, again: bool) -> str:
    head = ("peak", "jobs", "median, %", "90 %", "95 %", "worst, %")
    return table([head, *(summary(found, quantity, again=again) for quantity in QUANTITIES)], 1)


def _misses(found: list[Job]) -> str:
    rows = [("job", "GPU", "requested, %", "reserved, %", "requested again, %", "again, %")]
    for job in found:
        if _is_off(job, again=False) or _is_off(job, again=True):
            errors = [f"{job.error(quantity, again=again):+.3f}" for again in (False, True) for quantity in SHOWN]
            rows.append((job.name, job.gpu, *errors))
    return table(rows, 2)


def _each(found: list[Job]) -> str:
    head = ("job", *(f"{name}, %" for name in QUANTITIES.values()))
    rows = [(job.name, *(f"{job.error(quantity):+.3f}" for quantity in QUANTITIES)) for job in found]
    return table([head, *rows], 1)


def _contexts(found: list[Job]) -> str:
    """What is held beside PyTorch's memory, and by which jobs; the most common is that of all others."""
    held: dict[int, list[str]] = {}
    for job in found:
        held.setdefault(job.context_bytes // MIB, []).append(job.name)
    most = max(held, key=lambda size: len(held[size]))
    rows = [("MiB", "runs", "jobs")]
    for size, names in sorted(held.items()):
        told = "all others" if size == most else "; ".join(sorted(set(names)))
        rows.append((str(size), str(len(names)), told))
    return table(rows, 0)


def _recorded_device(found: list[Job]) -> dict[str, str]:
    """The errors of device memory as the records have them, in words for the page."""
    errors = [100 * (job.recorded_device_bytes / job.measured["device_bytes"] - 1) for job in found]
    return {"median": f"{statistics.median(errors):+.2f}", "worst": f"{max(errors, key=abs):+.2f}"}


def _day(job: Job) -> str:
    return job.day


def _is_off(job: Job, *, again: bool) -> bool:
    return any(abs(job.error(quantity, again=again)) > shown for quantity, shown in SHOWN.items())


def _limits() -> str:
    head = ("job", "what grows", "predicted", "measured")
    found = json.loads((MEASURED / "limits.json").read_text())
    rows = [(_limit_name(one), one["axis"], str(one["predicted"]), str(one["measured"])) for one in found]
    return table([head, *rows], 2)


def _limit_name(document: dict[str, Any]) -> str:
    return name_of({**document, "model": {"name": document["model"]}})


def section() -> str:
    """The section in Markdown."""
    words = {name: text.strip() for name, text in tomllib.loads(WORDS.read_text())["measured"].items()}
    found = jobs()
    first, latest, blind = (list(days) for _, days in groupby(sorted(found, key=_day), key=_day))
    versions = json.loads(AGAIN.read_text())["versions"]
    named = ", ".join(f"{library} {number}" for library, number in versions.items())
    parts = [BEGIN, words["blind"], _errors(blind, again=False), words["blind_jobs"], _each(blind)]
    parts += [words["contexts"].format(**_recorded_device(blind)), _contexts(found)]
    parts += [words["latest"], _errors(latest, again=False), words["latest_again"].format(versions=named)]
    parts += [_errors(latest, again=True), words["latest_misses"], _misses(latest)]
    parts += [words["introduction"], _errors(first, again=False), words["again"], _errors(first, again=True)]
    parts += [words["misses"], _misses(first), words["limits"], _limits(), END]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Print the section; the exit code."""
    parser = argparse.ArgumentParser(prog="measured.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--trace", action="store_true", help="trace the jobs again first")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="keep the records of this folder first")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    chosen = parser.parse_args(arguments)
    if chosen.collect:
        collect(chosen.collect)
    if chosen.trace:
        trace_again()
    text = section()
    if not chosen.write:
        print(text)
        return 0
    put_into(PAGE, BEGIN, END, text)
    return 0


def put_into(page: Path, begin: str, end: str, text: str) -> None:
    """Exchange the section between two marks for ``text``, which has the marks itself."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{text}{after}")


if __name__ == "__main__":
    sys.exit(main())
