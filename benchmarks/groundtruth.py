#!/usr/bin/env python3
"""Compares fitplan's predictions with public measurements, each traced with the library versions of the measurement.

The rows lie in ``benchmarks/groundtruth/``, each with its source. For every set of versions a virtual environment is
made once and kept; ``groundtruth/worker.py`` runs in it and traces the rows. Needs no GPU.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measured import section

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "benchmarks" / "groundtruth"
WORKER = DATA / "worker.py"
WORDS = DATA / "page.toml"
PAGE = ROOT / "docs" / "accuracy.md"
EXAMPLES = """examples:
  python benchmarks/groundtruth.py                          trace everything, print the table
  python benchmarks/groundtruth.py --only mistral-trainer   one group
  python benchmarks/groundtruth.py --write                  and write docs/accuracy.md
  python benchmarks/groundtruth.py --pip-args="--extra-index-url https://download.pytorch.org/whl/cpu"
                                                            a small torch, without CUDA libraries

exit codes: 0 the fully known rows are within their goals; 1 they are not, or a row could not be traced; 2 bad usage"""

TORCH, BITSANDBYTES = "2.13.0", "0.50.2"
MIB = 2**20
A100, L40S = (8, 0), (8, 9)


@dataclass(frozen=True, order=True)
class Versions:
    """The libraries that decide what a row allocates."""

    transformers: str
    peft: str
    accelerate: str
    liger_kernel: str = ""

    @property
    def name(self) -> str:
        """The folder of the environment."""
        return "_".join(f"{library}-{version}" for library, version in vars(self).items() if version)

    @property
    def requirements(self) -> list[str]:
        """What pip is asked for."""
        chosen = {**vars(self), "torch": TORCH, "bitsandbytes": BITSANDBYTES}
        return [f"{library}=={version}" for library, version in sorted(chosen.items()) if version]


@dataclass(frozen=True)
class Row:
    """One traced job and what was measured.

    Attributes:
        label: what was run, in short.
        source: where the measurement was published.
        versions: what it is traced with.
        job: what the worker is told.
        measured: bytes, by the name of the worker's result.

    """

    label: str
    source: str
    versions: Versions
    job: dict[str, Any]
    measured: dict[str, int]


@dataclass(frozen=True)
class Group:
    """Rows that were measured in the same way.

    Attributes:
        name: what ``--only`` takes.
        title: the heading on the page.
        known: whether every setting that decides memory is known.
        setup: how the rows were set up for tracing.
        misses: why rows are off.

    """

    name: str
    title: str
    known: bool
    setup: str
    misses: str

    @property
    def rows(self) -> list[Row]:
        """The rows, in the order of the data."""
        return ROWS[self.name]()


@dataclass(frozen=True)
class Comparison:
    """A measured and a traced number; ``traced`` is ``None`` where tracing failed."""

    row: Row
    what: str
    measured: int
    traced: int | None
    problem: str = ""
    verdict: str = ""

    @property
    def error(self) -> float:
        """Relative error in percent."""
        return 100 * ((self.traced or 0) - self.measured) / self.measured


# --- the rows ---------------------------------------------------------------------------------------------------------


def _load(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def _model(name: str) -> dict[str, Any]:
    found: dict[str, Any] = _load("models.json")[name]["config"]
    return found


KNOWN_VERSIONS = ("4.43.3", "4.44.2", "4.45.2", "4.48.1")
OLDEST = Versions("4.39.3", "0.11.1", "0.32.1")
OLDEST_BITSANDBYTES = "0.43.1"
PLAIN, SFT = ("none", "accelerated-peft-bnb"), ("baseline-peft-bnb",)


def _fms(configs: tuple[str, ...], versions: tuple[str | None, ...]) -> list[Row]:
    """Rows of fms-acceleration: ``transformers.Trainer`` (trl's ``SFTTrainer``) on an A100."""
    return [
        _fms_row(row)
        for row in _load("fms_acceleration.json")
        if row["framework_config"] in configs and row["libs"].get("transformers") in versions
    ]


def _fms_row(row: dict[str, Any]) -> Row:
    dtype, _, autocast = row["dtype"].partition(" + ")
    by_trl = row["framework_config"] in SFT
    setup = {
        "method": row["method"],
        "batch_size": row["micro_batch"],
        "seq_len": row["seq_len"],
        "dtype": dtype,
        "mixed_precision": {"bfloat16": "bf16", "float16": "fp16"}[dtype] if autocast else "no",
        "gradient_checkpointing": True,
        "attn": "flash_attention_2",
        "optim": "adamw_torch",
    }
    if row["method"] != "full":
        setup |= {name: row[name] for name in ("lora_r", "lora_dropout", "target_modules")}
    if row["method"] == "qlora":
        setup |= {"quant": "nf4", "double_quant": True, "kbit_prepare": by_trl}
    job = {"kind": "trainer", "model": _model("mistral-7b"), "setup": setup, "capability": A100, "gpu": "a100-80gb"}
    libs = row["libs"]
    job["trl_bf16_cast"] = by_trl and dtype == "bfloat16" and bool(libs)
    job["bitsandbytes"] = libs.get("bitsandbytes", OLDEST_BITSANDBYTES)
    label = f"{row['method']}, {row['dtype']}, {row['micro_batch']} x {row['seq_len']}"
    versions = Versions(libs["transformers"], libs["peft"], libs["accelerate"]) if libs else OLDEST
    measured = {"peak": row["measured_bytes"], "device": round(row["nvidia_smi_mib"] * MIB)}
    return Row(label, row["source"], versions, job, measured)


OPERATOR_VERSIONS = Versions("4.45.2", "0.13.2", "1.0.1")
CAPABILITIES = {
    "NVIDIA A100-SXM4-80GB": ((8, 0), 108),
    "NVIDIA H100 80GB HBM3": ((9, 0), 132),
    "NVIDIA GeForce RTX 4090": ((8, 9), 128),
}
"""Compute capability, and multiprocessors."""


LIGER_VERSIONS = {"0.2.1": "0.3.0"}
"""The table names the last release before a measurement; the operators of September 2024 came with the next one."""


def _operators(liger: bool) -> list[Row]:
    rows = []
    for row in _load("liger_ops.json"):
        if row["by_liger"] is not liger:
            continue
        capability, multiprocessors = CAPABILITIES[row["gpu"]]
        job = {"kind": "operator", "capability": capability, "multiprocessors": multiprocessors, "liger": liger}
        job |= {name: row[name] for name in ("operator", "mode", "x", "config")}
        label = f"{row['operator']}, {row['mode']}, {row['x_name']}={row['x']}"
        measured = {"peak": row["measured_bytes"]}
        versions = (
            replace(OPERATOR_VERSIONS, liger_kernel=LIGER_VERSIONS.get(row["liger"], row["liger"]))
            if liger
            else OPERATOR_VERSIONS
        )
        rows.append(Row(label, row["source"], versions, job, measured))
    return rows


RESERVED_AT_START = 2 * MIB
"""The script subtracts what is reserved after the first tiny tensor: one segment of 2 MiB."""

METAMATHQA_VERSIONS = {
    "4.52.4": Versions("4.52.4", "0.15.2", "1.7.0"),
    "4.57.1": Versions("4.57.1", "0.18.1", "1.12.0"),
    "5.13.1": Versions("5.13.1", "0.19.1", "1.15.0"),
}


def _metamathqa() -> list[Row]:
    rows = []
    for row in _load("peft_metamathqa.json"):
        setup = {
            "method": row["method"],
            "batch_size": row["micro_batch"],
            "seq_len": round(row["mean_tokens_per_sample"]),
            "mixed_precision": "no",
            "gradient_checkpointing": False,
        }
        if row["method"] == "lora":
            setup |= {name: row[name] for name in ("lora_r", "lora_alpha", "target_modules")}
        label = row["method"] + (f" r={row['lora_r']}" if row["lora_r"] else "") + f", {row['commit_date']}"
        job = {"kind": "metamathqa", "model": _model("llama-3.2-3b"), "setup": setup, "capability": L40S}
        measured = {"allocated": row["allocated_end_of_step_avg"] + RESERVED_AT_START}
        rows.append(Row(label, row["source"], METAMATHQA_VERSIONS[row["libs"]["transformers"]], job, measured))
    return rows


NOTEBOOK_VERSIONS = Versions("4.37.2", "0.8.2", "0.27.2")


def _notebook() -> list[Row]:
    rows = []
    published = _load("fsdp_qlora.json")
    for row in published:
        checkpointing, inference = row["gradient_checkpointing"], row["inference"]
        setup = {
            "method": row["method"],
            "seq_len": row["seq_len"],
            "mixed_precision": "no",
            "gradient_checkpointing": checkpointing,
        }
        if row["method"] == "lora":
            setup |= {name: row[name] for name in ("lora_r", "lora_dropout", "target_modules")}
        how = ", inference" if inference else ", checkpointing" if checkpointing else ""
        job = {
            "kind": "notebook",
            "model": _model("notebook-1b"),
            "setup": setup,
            "inference": inference,
            "first_backward": _grew(row, published),
            "capability": (8, 6),
        }
        after = {name: row[f"allocated_after_{name}_gb"] for name in ("forward", "backward")}
        measured = {
            name: round((gigabytes - row["allocated_after_model_gb"]) * 1e9)
            for name, gigabytes in after.items()
            if gigabytes is not None
        }
        rows.append(Row(f"{row['method']}{how}, 1 x {row['seq_len']}", row["source"], NOTEBOOK_VERSIONS, job, measured))
    return rows


def _grew(row: dict[str, Any], published: list[dict[str, Any]]) -> bool:
    """Whether the models after this one start with more: this run opened the second cuBLAS handle of the process."""
    same = ("method", "inference", "gradient_checkpointing")
    later = [r for r in published if all(r[n] == row[n] for n in same) and r["seq_len"] > row["seq_len"]]
    return any(r["allocated_after_model_gb"] > row["allocated_after_model_gb"] + 0.005 for r in later)


ROWS: dict[str, Callable[[], list[Row]]] = {
    "mistral-trainer": lambda: _fms(PLAIN, KNOWN_VERSIONS),
    "mistral-sft": lambda: _fms(SFT, (*KNOWN_VERSIONS, "4.39.3", None)),
    "mistral-old": lambda: _fms(PLAIN, ("4.39.3", None)),
    "operators": lambda: _operators(liger=False),
    "liger": lambda: _operators(liger=True),
    "metamathqa": _metamathqa,
    "notebook": _notebook,
}


def _groups(words: dict[str, Any]) -> list[Group]:
    described = {name: words[name] for name in ROWS}
    return [
        Group(name, text["title"], text["known"], text["setup"].strip(), text["misses"].strip())
        for name, text in described.items()
    ]


# --- environments and workers -----------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _environment(versions: Versions, folder: Path, pip_args: list[str]) -> Path:
    """The Python of the environment with these versions, made if need be."""
    home = folder / versions.name
    python, marker = home / "bin" / "python", home / "ready"
    wanted = "\n".join([*versions.requirements, str(ROOT)])
    if marker.exists() and marker.read_text() == wanted:
        return python
    _say(f"making {home}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *pip_args, *versions.requirements], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "-e", ROOT], check=True, stdout=sys.stderr)
    marker.write_text(wanted)
    return python


def _trace(python: Path, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """The worker's result for each row, as it comes."""
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    worker = subprocess.Popen(
        [python, WORKER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    complaints: list[str] = []
    reader = threading.Thread(target=complaints.extend, args=(worker.stderr,))
    reader.start()
    worker.stdin.write(json.dumps([row.job for row in rows]))
    worker.stdin.close()
    for line in worker.stdout:
        yield json.loads(line)
    reader.join()
    if worker.wait() != 0:
        raise SystemExit(f"the worker failed in {python}:\n{''.join(complaints)}")


def _compare(row: Row, result: dict[str, Any]) -> list[Comparison]:
    return [
        Comparison(row, what, measured, result.get(what), result.get("error", ""), result.get("verdict", ""))
        for what, measured in row.measured.items()
    ]


def _run(groups: list[Group], folder: Path, pip_args: list[str]) -> dict[str, list[Comparison]]:
    """Every comparison, by group."""
    work = [(group, row) for group in groups for row in group.rows]
    found: dict[int, list[Comparison]] = {}
    for versions in sorted({row.versions for _, row in work}):
        places = [place for place, (_, row) in enumerate(work) if row.versions == versions]
        python = _environment(versions, folder, pip_args)
        before = time.monotonic()
        for place, result in zip(places, _trace(python, [work[place][1] for place in places]), strict=True):
            found[place] = _compare(work[place][1], result)
            outcome = result.get("error") or "  ".join(f"{c.what} {c.error:+.3f} %" for c in found[place])
            now = time.monotonic()
            _say(f"transformers {versions.transformers}: {work[place][0].name}: {work[place][1].label}: {outcome}"
                 f"  ({now - before:.1f} s)")  # fmt: skip
            before = now
    return {
        group.name: [c for place, (owner, _) in enumerate(work) if owner is group for c in found[place]]
        for group in groups
    }


# --- the result -------------------------------------------------------------------------------------------------------

MEDIAN_GOAL, WORST_GOAL = 0.1, 0.5
"""Percent, for fully known rows."""
DEVICE_MEDIAN_GOAL, DEVICE_WORST_GOAL = 5, 15
"""Percent, for device memory."""
DEVICE = "device"


@dataclass(frozen=True)
class Summary:
    """The absolute errors of some rows, in percent."""

    errors: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, comparisons: list[Comparison]) -> "Summary":
        """Of those that were traced; what the device shows is another quantity."""
        return cls(sorted(abs(c.error) for c in comparisons if c.traced is not None and c.what != DEVICE))

    @classmethod
    def of_device(cls, comparisons: list[Comparison]) -> "Summary":
        """Of device memory."""
        return cls(sorted(abs(c.error) for c in comparisons if c.traced is not None and c.what == DEVICE))

    @property
    def median(self) -> float:
        """Half of the rows are at most this far off."""
        return statistics.median(self.errors)

    @property
    def p95(self) -> float:
        """19 of 20 rows are at most this far off (nearest rank)."""
        return self.errors[max(0, -(-95 * len(self.errors) // 100) - 1)]

    @property
    def worst(self) -> float:
        """The largest error."""
        return self.errors[-1]


def _fails(groups: list[Group], results: dict[str, list[Comparison]]) -> list[str]:
    """What is wrong: a row that could not be traced, or a goal that is missed."""
    problems = [
        f"{group.name}: {c.row.label} ({c.row.versions.transformers}): {c.problem}"
        for group in groups
        for c in results[group.name]
        if c.traced is None
    ]
    for group in groups:
        summary = Summary.of(results[group.name])
        if group.known and summary.errors and (summary.median > MEDIAN_GOAL or summary.worst > WORST_GOAL):
            problems.append(f"{group.name}: median {summary.median:.3f} %, worst {summary.worst:.3f} %: goals are "
                            f"{MEDIAN_GOAL} and {WORST_GOAL} %")  # fmt: skip
    return problems + _device_fails([c for found in results.values() for c in found])


def _device_fails(comparisons: list[Comparison]) -> list[str]:
    """Device memory beyond its goals, and rows that ran and are said not to fit."""
    summary = Summary.of_device(comparisons)
    problems = [
        f"{c.row.label} ({c.row.versions.transformers}) ran and is said not to fit"
        for c in comparisons
        if c.what == DEVICE and c.verdict == "does_not_fit"
    ]
    if summary.errors and (summary.median > DEVICE_MEDIAN_GOAL or summary.worst > DEVICE_WORST_GOAL):
        problems.append(f"device memory: median {summary.median:.1f} %, worst {summary.worst:.1f} %: goals are "
                        f"{DEVICE_MEDIAN_GOAL} and {DEVICE_WORST_GOAL} %")  # fmt: skip
    return problems


def _table(comparisons: list[Comparison]) -> list[tuple[str, ...]]:
    head = ("transformers", "job", "what", "measured MiB", "traced MiB", "difference MiB", "error")
    rows = [head]
    for c in (c for c in comparisons if c.what != DEVICE):
        numbers: tuple[str, ...] = (f"{c.measured / MIB:.2f}", "failed", "", "")
        if c.traced is not None:
            difference = (c.traced - c.measured) / MIB
            numbers = (f"{c.measured / MIB:.2f}", f"{c.traced / MIB:.2f}", f"{difference:+.2f}", f"{c.error:+.4f} %")
        rows.append((c.row.versions.transformers, c.row.label, c.what, *numbers))
    return rows


def _device_table(comparisons: list[Comparison]) -> list[tuple[str, ...]]:
    head = ("transformers", "job", "nvidia-smi MiB", "predicted MiB", "error", "verdict")
    rows = [
        (
            c.row.versions.transformers,
            c.row.label,
            f"{c.measured / MIB:.0f}",
            f"{c.traced / MIB:.0f}",
            f"{c.error:+.1f} %",
            c.verdict.replace("_", " "),
        )
        for c in comparisons
        if c.what == DEVICE and c.traced is not None
    ]
    return [head, *rows]


def _print(groups: list[Group], results: dict[str, list[Comparison]]) -> None:
    for group in groups:
        rows = _table(results[group.name])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print(f"\n{group.title} ({'fully' if group.known else 'partly'} known)")
        for row in rows:
            cells = [cell.ljust(width) if place < 3 else cell.rjust(width)
                     for place, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
            print("  ".join(cells).rstrip())
    print("\n|error| in percent")
    for row in _summary_rows(groups, results):
        print(f"{row[0]:45s} {row[1]:>5s} rows   median {row[2]:>8s}   95 % {row[3]:>8s}   worst {row[4]:>8s}")


def _summary_rows(groups: list[Group], results: dict[str, list[Comparison]]) -> list[tuple[str, ...]]:
    kinds: list[tuple[str, list[Comparison]]] = [
        ("all fully known rows", [c for g in groups if g.known for c in results[g.name]]),
        ("all partly known rows", [c for g in groups if not g.known for c in results[g.name]]),
        *((group.title, results[group.name]) for group in groups),
    ]
    rows = []
    for title, comparisons in kinds:
        summary = Summary.of(comparisons)
        if summary.errors:
            numbers = (f"{value:.4f}" for value in (summary.median, summary.p95, summary.worst))
            rows.append((title, str(len(summary.errors)), *numbers))
    device = Summary.of_device([c for found in results.values() for c in found])
    if device.errors:
        numbers = (f"{value:.1f}" for value in (device.median, device.p95, device.worst))
        rows.append(("device memory (nvidia-smi)", str(len(device.errors)), *numbers))
    return rows


# --- the page ---------------------------------------------------------------------------------------------------------


def _markdown(groups: list[Group], results: dict[str, list[Comparison]], words: dict[str, Any]) -> str:
    summary = [("rows", "number", "median error, %", "95th percentile, %", "worst, %"), *_summary_rows(groups, results)]
    introduction = words["introduction"].strip().format(torch=TORCH, bitsandbytes=BITSANDBYTES)
    parts = [introduction, section(), "## In sum of what others measured", _markdown_table(summary, 1)]
    for group in groups:
        parts += [
            f"## {group.title}",
            f"{'Fully' if group.known else 'Partly'} known. {group.setup}",
            f"**What is left over.** {group.misses}",
            _markdown_table(_table(results[group.name]), 3),
            _sources(results[group.name]),
        ]
    measured = [c for group in groups for c in results[group.name]]
    parts += [words["device_memory"].strip(), _markdown_table(_device_table(measured), 2)]
    return "\n\n".join([*parts, words["not_compared"].strip()]) + "\n"


def _markdown_table(rows: list[tuple[str, ...]], left: int) -> str:
    ruler = tuple("---" if place < left else "---:" for place in range(len(rows[0])))
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ruler, *rows[1:]))


def _sources(comparisons: list[Comparison]) -> str:
    """The files that the rows come from; each row's line is in the data."""
    files = sorted({c.row.source.partition(" (row")[0] for c in comparisons})
    listed = "\n".join(f"- `{name}`" for name in files)
    return f"Sources (repository@commit:file; the row of each is in `benchmarks/groundtruth/`):\n\n{listed}"


# --- the command ------------------------------------------------------------------------------------------------------


def _default_venvs() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fitplan" / "groundtruth"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="groundtruth.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(ROWS)
    parser.add_argument("--only", action="append", choices=names, metavar="GROUP",
                        help=f"trace this group; may be given more than once. Groups: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--venvs", type=Path, default=_default_venvs(), metavar="FOLDER",
                        help="where the environments are kept, about 1.5 GB each (default: %(default)s)")  # fmt: skip
    parser.add_argument("--pip-args", type=shlex.split, default=[], metavar="TEXT",
                        help="passed to pip install")  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}; needs all groups")
    chosen = parser.parse_args(arguments)
    if chosen.write and chosen.only:
        parser.error("--write needs all groups; leave --only out")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    chosen = _parse(arguments)
    words = tomllib.loads(WORDS.read_text())
    groups = [group for group in _groups(words) if not chosen.only or group.name in chosen.only]
    results = _run(groups, chosen.venvs.resolve(), chosen.pip_args)
    _print(groups, results)
    if chosen.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(_markdown(groups, results, words))
        _say(f"wrote {PAGE}")
    problems = _fails(groups, results)
    for problem in problems:
        _say(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
