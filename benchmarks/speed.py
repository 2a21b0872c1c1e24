"""How fast fitplan answers, as ratios within one run.

    python benchmarks/speed.py            # five runs of each, about four minutes
    python benchmarks/speed.py --runs 3 --write docs/speed.md

Commands are timed as whole processes; traces within one process, after the imports. Medians are shown: single times say
more about the machine than about fitplan.
"""

import argparse
import compileall
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = "importing torch, transformers, peft"
RICH = "importing rich.table, rich.console"
SHIPPED = "fitplan check llama-70b --gpu H100"
UNSHIPPED = "an unshipped 32-layer config, the first time"
AGAIN = "the same, the second time"
ACCELERATE = "accelerate estimate-memory, a local config"
OFFLINE_ACCELERATE = """
from types import SimpleNamespace
from accelerate.commands import estimate
estimate.verify_on_hub = lambda *_: SimpleNamespace(library_name="transformers", config={})
estimate.main()
"""
"""Its command asks the hub for every model; without a network the answer is put in its mouth."""

FITPLAN = [sys.executable, "-m", "fitplan"]


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed; the order matters where one warms what the next one uses."""
    config = str(folder / "model")
    check = [*FITPLAN, "check", config, "--method", "qlora", "--gpu", "H100"]
    return {
        RICH: [sys.executable, "-c", "import rich.table, rich.console"],
        "fitplan --help": [*FITPLAN, "--help"],
        SHIPPED: [*FITPLAN, "check", "llama-70b", "--gpu", "H100"],
        "fitplan map llama-70b --gpu H100": [*FITPLAN, "map", "llama-70b", "--gpu", "H100"],
        LIBRARIES: [sys.executable, "-c", "import torch, transformers, peft"],
        UNSHIPPED: check,
        AGAIN: check,
        ACCELERATE: [sys.executable, "-c", OFFLINE_ACCELERATE, config, "--library_name", "transformers"],
    }


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a config that does not ship, and with the cache of the runs."""
    from fitplan.configs.resolve import resolve_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        config = {**resolve_model("llama-3.1-8b").settings, "vocab_size": 100_000}
        (folder / "model" / "config.json").write_text(json.dumps(config))
        yield folder


def command_times(runs: int) -> dict[str, float]:
    """The median wall time of each command; the commands take turns, after one round that is not counted."""
    times: dict[str, list[float]] = {}
    with workplace() as folder:
        for turn in range(runs + 1):
            environment = os.environ | {"XDG_CACHE_HOME": str(folder / f"cache{turn}"), "HF_HUB_OFFLINE": "1"}
            for name, command in commands(folder).items():
                print(f"\r{turn}/{runs} {name:50}", end="", file=sys.stderr, flush=True)
                spent = timed(
                    lambda command=command, environment=environment: subprocess.run(
                        command, capture_output=True, check=True, env=environment
                    )
                )
                if turn:
                    times.setdefault(name, []).append(spent)
    print(file=sys.stderr)
    return {name: statistics.median(spent) for name, spent in times.items()}


def settings_time() -> tuple[int, float]:
    """How many settings of one setup are evaluated, and the seconds that takes."""
    from fitplan.configs.resolve import resolve_model
    from fitplan.footprint.job import TrainingJob
    from fitplan.footprint.size import Shape
    from fitplan.footprint.store import find_shipped
    from fitplan.setup import TrainingSetup

    setup = TrainingSetup(method="qlora")
    stored = find_shipped(TrainingJob(model=resolve_model("llama-3.1-70b"), setup=setup, capability=(9, 0)))
    assert stored is not None
    piece = stored.piece(Shape(2, 128, 16))
    assert piece is not None
    lengths, ranks, batches = range(128, 128 * 51, 128), range(8, 88, 2), range(2, 52)

    def evaluate() -> None:
        for length in lengths:
            for rank in ranks:
                piece.peaks(batches, Shape(2, length, rank), (9, 0))

    return len(lengths) * len(ranks) * len(batches), statistics.median(timed(evaluate) for _ in range(3))


def trace_times(runs: int) -> dict[str, float]:
    """The median time of tracing an 80-layer model, from a few layers and in full."""
    from fitplan.configs.resolve import resolve_model
    from fitplan.memory import estimate_trace
    from fitplan.setup import TrainingSetup
    from fitplan.step.architecture import load_config
    from fitplan.trace.kernels import Gpu
    from fitplan.trace.tracing import trace_training
    from fitplan.tracer import quiet

    settings = resolve_model("llama-3.1-70b").settings
    found: dict[str, float] = {}
    for method in ("qlora", "lora", "full"):
        setup = TrainingSetup(method=method)

        def go(full_depth: bool = False, setup: TrainingSetup = setup) -> None:
            run = trace_training(load_config(settings), setup, Gpu(), full_depth=full_depth)
            estimate_trace(run.trace)

        with quiet():
            go()
            found[f"trace of 80 layers, {method}"] = statistics.median(timed(go) for _ in range(runs))
            if method == "qlora":
                found["the same, every layer traced"] = timed(lambda: go(full_depth=True))
    return found


def table(runs: int) -> str:
    times, (settings, spent), traces = command_times(runs), settings_time(), trace_times(runs)
    ratios = {
        f"{SHIPPED} / {RICH}": (times[SHIPPED] / times[RICH], "at most 3"),
        f"{ACCELERATE} / {SHIPPED}": (times[ACCELERATE] / times[SHIPPED], "at least 10"),
        f"{UNSHIPPED} / {LIBRARIES}": (times[UNSHIPPED] / times[LIBRARIES], "at most 1.4"),
        f"{AGAIN} / {SHIPPED}": (times[AGAIN] / times[SHIPPED], "about 1"),
    }
    lines = [
        f"Medians of {runs} runs on {platform.machine()}, Python {platform.python_version()}; whole processes first,",
        "then traces within one process, after the imports.",
        "",
        "| what | seconds |",
        "| --- | ---: |",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in {**times, **traces}.items()),
        f"| {settings:,} settings of one setup, evaluated in one process | {spent:.2f} |",
        "",
        "| ratio | measured | aim |",
        "| --- | ---: | --- |",
        *(f"| {name} | {ratio:.2f} | {aim} |" for name, (ratio, aim) in ratios.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table to a Markdown file")
    options = parser.parse_args()
    compileall.compile_dir(Path(__file__).parent.parent / "fitplan", quiet=1)  # as pip does when it installs
    text = table(options.runs)
    print(text)
    if options.write:
        heading = "# How fast is fitplan?\n\nGenerated by `python benchmarks/speed.py --write docs/speed.md`."
        options.write.write_text(f"{heading}\n\n{text}\n")


if __name__ == "__main__":
    main()
