#!/usr/bin/env python3
"""One rank of several, predicted, beside what others measured and what was rehearsed.

    python benchmarks/several_gpus.py --predict measured     some minutes, with transformers 4.48 (.venv-oldest)
    python benchmarks/several_gpus.py --predict rehearsed    half a minute, with the newest libraries
    python benchmarks/several_gpus.py --write                the tables of docs/multi-gpu.md

The rows stand in ``benchmarks/groundtruth/several_gpus.json``, with their source. Nothing is fitted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = ROOT / "benchmarks" / "groundtruth" / "several_gpus.json"
PREDICTED = ROOT / "benchmarks" / "groundtruth" / "several_gpus_predicted.json"
PAGE = ROOT / "docs" / "multi-gpu.md"
HEADS = {
    "measured": ["job, batch per GPU", "row's libraries", "measured, MiB", "predicted", "error, %"],
    "rehearsed": ["job, batch per GPU", "rehearsed: allocated / reserved, GiB", "predicted", "error, %"],
}
MIB, GIB = 2**20, 2**30


def name_of(row: dict[str, Any]) -> str:
    setup = row["settings"]
    autocast = ", autocast" if setup.get("mixed_precision") == "bf16" else ""
    shared = f"{setup['gpus']} x {setup['strategy']}, {setup['batch_size']} x {setup['seq_len']}"
    return f"{row['model']} {setup['method']}{autocast}, {shared}"


def key_of(kind: str, row: dict[str, Any]) -> str:
    return f"{kind}: {json.dumps(row['settings'], sort_keys=True)} {row['model']}"


def predict(kind: str) -> None:
    """Trace every row with the libraries that are installed here."""
    import fitplan
    from fitplan.tracer import tracing_here

    rows = json.loads(ROWS.read_text())[kind]["rows"]
    found = json.loads(PREDICTED.read_text()) if PREDICTED.exists() else {}
    for row in rows:
        with tracing_here():
            plan = fitplan.check(row["model"], gpu="a100", trace=True, **row["settings"]).plans[0]
        training = [m for m in plan.estimate.moments if not m.name.startswith(("loading", "preparing"))]
        found[key_of(kind, row)] = {
            "allocated": max(moment.bytes for moment in training),
            "reserved": plan.estimate.peak_reserved_bytes,
            "unsplit": plan.memory.unsplit_bytes,
            "versions": plan.versions,
        }
        print(f"{name_of(row)}: {max(m.bytes for m in training) / MIB:.1f} MiB", flush=True)
        PREDICTED.write_text(json.dumps(found, indent=1) + "\n")


def _cells(kind: str, row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    if kind == "measured":
        got = ours["allocated"] / MIB
        measured = row["measured_mib"]
        error = 100 * (got / measured - 1)
        return [name_of(row), row["versions"], f"{measured:.1f}", f"{got:.1f}", f"{error:+.3f}"]
    theirs = (row["allocated_gib"], row["reserved_gib"])
    found = ((ours["allocated"] + ours["unsplit"]) / GIB, ours["reserved"] / GIB)
    errors = [f"{100 * (one / other - 1):+.2f}" for one, other in zip(found, theirs, strict=True)]
    return [name_of(row), *(" / ".join(f"{size:.3f}" for size in pair) for pair in (theirs, found)), " / ".join(errors)]


def table(kind: str) -> str:
    data, found = json.loads(ROWS.read_text())[kind], json.loads(PREDICTED.read_text())
    ours = [found[key_of(kind, row)] for row in data["rows"]]
    traced = ", ".join(f"{name} {number}" for name, number in ours[0]["versions"].items())
    rows = [HEADS[kind], ["---"] * len(HEADS[kind])]
    rows += [_cells(kind, row, one) for row, one in zip(data["rows"], ours, strict=True)]
    return "\n".join([f"{data['source']}. Predicted with {traced}.", "", *(f"| {' | '.join(row)} |" for row in rows)])


def page() -> str:
    """The page, with its tables as they are now."""
    text = PAGE.read_text()
    for kind in HEADS:
        begin, end = f"<!-- {kind}: begin -->", f"<!-- {kind}: end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table(kind)}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", choices=HEADS)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.predict:
        predict(options.predict)
    if options.write:
        PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
