#!/usr/bin/env python3
"""Summarises rehearsals of the matrix (``gpu_matrix.py --rehearse GPU --out FOLDER``) for ``docs/accuracy.md``.

    python benchmarks/rehearsed.py --collect build/rehearsed-a100 build/rehearsed-h100 --write

``--collect`` keeps what the records of these folders say in ``benchmarks/groundtruth/rehearsed.jsonl``, a line a job.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from measured import PAGE, QUANTITIES, ROOT, Job, name_of, put_into, summary, table

KEPT = ROOT / "benchmarks" / "groundtruth" / "rehearsed.jsonl"
BEGIN, END = "<!-- rehearsed: begin -->", "<!-- rehearsed: end -->"
LISTED = {"peak_requested_bytes": 0.2, "peak_allocated_bytes": 0.5, "peak_reserved_bytes": 1.0}
"""Percent: jobs that are further off are named."""

WORDS = """\
## On GPUs that are not there

`benchmarks/gpu_matrix.py --rehearse GPU` runs the jobs of the matrix on the real CUDA libraries without a GPU
({versions}):
the caching allocator, autograd, the choice of kernels and the scratch memory that host code allocates are PyTorch's
own. `benchmarks/rehearsed.py --write` makes this section. What rehearsal cannot see is told to it or left out: the CUDA
context, which is counted as it was measured on such a GPU or another one, workspaces of cuDNN for convolutions, and
values that come out of weights."""


def collect(folders: list[Path]) -> None:
    """Keep the records of these folders, in place of those of the same GPUs."""
    new = [_line(json.loads(path.read_text())) for folder in folders for path in sorted(folder.glob("*--*.json"))]
    gpus = {line["gpu"] for line in new}
    old = [line for line in _lines() if line["gpu"] not in gpus]
    KEPT.write_text("".join(json.dumps(line) + "\n" for line in [*old, *new]))


def _line(document: dict[str, Any]) -> dict[str, Any]:
    assert document["run"]["rehearsed"], "these are records of real runs"
    return {
        "gpu": document["measurement"]["device"].removeprefix("NVIDIA "),
        "name": name_of(document),
        "versions": document["measurement"]["versions"],
        "out_of_memory": bool(document["measurement"]["out_of_memory"]),
        "runs_on_paper": document["runs_on_paper"],
        "quantities": {one["name"]: [one["predicted"], one["measured"]] for one in document["quantities"]},
    }


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def _job(line: dict[str, Any]) -> Job:
    predicted, rehearsed = ({name: pair[place] for name, pair in line["quantities"].items()} for place in (0, 1))
    return Job(name=line["name"], gpu=line["gpu"], day="", predicted=predicted, measured=rehearsed, again={})


def section() -> str:
    """The section in Markdown."""
    lines = _lines()
    versions = {name: one for line in lines for name, one in line["versions"].items() if name != "driver"}
    told = ", ".join(f"{name} {one}" for name, one in versions.items())
    rows: list[tuple[str, ...]] = [("GPU", "peak", "jobs", "median, %", "90 %", "95 %", "worst, %")]
    for gpu in dict.fromkeys(line["gpu"] for line in lines):
        jobs = [_job(line) for line in lines if line["gpu"] == gpu and line["quantities"]]
        rows += [(gpu if not place else "", *summary(jobs, name)) for place, name in enumerate(QUANTITIES)]
    false = [line for line in lines if line["out_of_memory"] and line["runs_on_paper"]]
    parts = [BEGIN, WORDS.format(versions=told), table(rows, 2)]
    parts.append(f"Predicted to run, and out of memory in the rehearsal: {len(false)}.")
    if off := _off(lines):
        parts += ["Further off than " + ", ".join(f"{QUANTITIES[n]} {p} %" for n, p in LISTED.items()) + ":", off]
    return "\n\n".join([*parts, END])


def _off(lines: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = [("job", "GPU", *(f"{QUANTITIES[name]}, %" for name in LISTED))]
    rows += [
        (job.name, job.gpu, *(f"{job.error(name):+.3f}" for name in LISTED))
        for job in (_job(line) for line in lines if line["quantities"])
        if any(abs(job.error(name)) > most for name, most in LISTED.items())
    ]
    return table(rows, 2) if len(rows) > 1 else ""


def main() -> int:
    """Print the section; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--collect", type=Path, nargs="+", default=[], metavar="FOLDER", help="keep these records first"
    )
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    if asked.collect:
        collect(asked.collect)
    text = section()
    if asked.write:
        put_into(PAGE, BEGIN, END, text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
