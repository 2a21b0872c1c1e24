"""Hostile and damaged inputs, drawn at random, and a judge that counts by kind what became of them.

    python benchmarks/fuzz.py                        # 400 inputs, about two minutes
    python benchmarks/fuzz.py --inputs 20000 --keep tried.jsonl      # go on with it by the same command

Each input is a seed: ``--seed 17 --inputs 1`` makes the seventeenth again, and ``--show`` prints it. An answer and a
refusal in one sentence are what a user may get; all else is a fault: another exit code, a traceback, more lines of
error than one, JSON that does not parse or holds a negative size, characters that act on a terminal.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

KINDS = ("config", "bytes", "settings", "record", "cache", "names")
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, "", "x",
    "\x1b]0;PWN\x07", "../../etc/passwd", [], [None], [1, 2], [[]], {}, {"": {}}, {"a": [1, {"b": 2}]}, "a" * 5000,
)  # fmt: skip
MODELS = ("gpt2", "llama-3.2-1b", "qwen2.5-0.5b", "roberta-base", "flan-t5-small", "phi-3-mini-4k", "gemma-2-2b")


@dataclass(frozen=True)
class Verdict:
    """What became of an input: the outcome, what is wrong with it or nothing, and its processor time."""

    kind: str
    outcome: str
    fault: str
    seconds: float


def _strange(draw: random.Random, value: Any) -> Any:
    """Another value, near the one that is there more often than not."""
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.7:
        return draw.choice(
            [value + 1, value - 1, value // 2, value * 2, value * 1000, -value, str(value), float(value)]
        )
    if isinstance(value, dict) and value and draw.random() < 0.6:
        name = draw.choice(list(value))
        return {**value, name: _strange(draw, value[name])}
    return draw.choice(STRANGE)


@cache
def _configs() -> list[dict[str, Any]]:
    from fitplan.configs.catalog import catalog
    from fitplan.configs.resolve import resolve_model

    return [dict(resolve_model(entry.name).settings) for entry in catalog()]


def _config(draw: random.Random) -> dict[str, Any]:
    config = dict(draw.choice(_configs()))
    if draw.random() < 0.25:  # small enough that every operator runs, and nothing is wrong
        return config
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(list(config))
        match draw.randrange(4):
            case 0:
                config[name] = _strange(draw, config[name])
            case 1:
                del config[name]
            case 2:
                other = draw.choice(_configs())
                name = draw.choice(list(other))
                config[name] = other[name]
            case 3:
                config[draw.choice(["num_labels", "quantization_config", "auto_map", "dtype", "x"])] = _strange(draw, 2)
        if not config:
            break
    return config


def _flags(draw: random.Random) -> list[str]:
    from fitplan.setup import SETTINGS

    found = []
    for one in draw.sample(list(SETTINGS.values()), draw.randint(0, 4)):
        if one.name == "method":
            continue
        if one.kind is bool:
            found.append(one.flag if draw.random() < 0.5 else one.flag.replace("--", "--no-", 1))
        elif one.is_enum:
            found += [one.flag, str(draw.choice([*one.kind, "nothing"]))]
        else:
            found += [one.flag, draw.choice(["1", "2", "8", "64", "0", "-1", "q_proj", "all-linear", "1e9", "\x1b[2J"])]
    return found


def _write(folder: Path, text: str | bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return str(folder)


def _damaged(draw: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(4):
            case 0 if data:
                data[at] = draw.randrange(256)
            case 1:
                data[at : at + draw.randint(1, 50)] = b""
            case 2:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
            case _:
                data = data[:at]
    return bytes(data)


def _small(draw: random.Random) -> list[str]:
    length = str(draw.choice([8, 32, 64]))
    return ["--batch-size", "1", "--seq-len", length, "--method", _method(draw)]


def _method(draw: random.Random) -> str:
    return draw.choice(["full", "lora", "qlora"])


def arguments(kind: str, draw: random.Random, folder: Path) -> list[str]:
    """What is typed for an input of a kind; files that it needs are in ``folder`` then."""
    from fitplan.validation.records import own_records, plain_name

    gpu = ["--gpu", draw.choice(["h100", "4090", "t4", "a100"])]
    match kind:
        case "config":
            return ["check", _write(folder, json.dumps(_config(draw))), "--trace", *gpu, *_small(draw)]
        case "bytes":
            return ["check", _write(folder, _damaged(draw, json.dumps(draw.choice(_configs())).encode())), *gpu]
        case "settings":
            command = draw.choice(["check", "check", "check", "advise", "explain", "map"])
            return [command, draw.choice(MODELS), *gpu, "--method", _method(draw), *_flags(draw)]
        case "record":
            record = draw.choice(_records())
            text = _damaged(draw, record) if draw.random() < 0.5 else _changed(draw, record)
            model, method = json.loads(record)["model"]["name"], json.loads(record)["setup"]["method"]
            own_records().mkdir(parents=True, exist_ok=True)
            (own_records() / f"{plain_name(model)}--{method}--fuzz.json").write_bytes(text)
            return ["check", model, *gpu, "--method", method]
        case "cache":
            for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json*"):
                path.write_bytes(_damaged(draw, path.read_bytes()))
            return ["check", _write(folder, json.dumps(_tiny())), *gpu, "--method", "lora", "--seq-len", "32"]
    name = draw.choice(
        ["\x1b]0;PWN\x07", "'; rm -rf x; '", "<script>alert(1)</script>", "{{x}}", "$(id)", "模型", "a b"]
    )
    return ["check", _write(folder / name, json.dumps(_tiny())), *gpu, "--method", "lora", "--seq-len", "32"]


def _changed(draw: random.Random, record: bytes) -> bytes:
    document = json.loads(record)
    name = draw.choice(list(document))
    document[name] = _strange(draw, document[name])
    return json.dumps(document).encode()


@cache
def _records() -> list[bytes]:
    from fitplan.resources import profiles

    files = sorted((profiles() / "measured").glob("*.jsonl"))
    return [line.encode() for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def _tiny() -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 128,
    }  # fmt: skip


def judged(seed: int, show: bool = False) -> Verdict:
    """One input, tried."""
    from fitplan.cli.main import main

    draw = random.Random(seed)
    kind = draw.choices(KINDS, weights=(10, 2, 4, 1, 1, 1))[0]
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        typed = [*arguments(kind, draw, Path(folder)), "--json"]
        if kind == "names" or draw.random() < 0.2:
            typed.pop()
        if show:
            print(typed, *[path.read_text(errors="replace") for path in Path(folder).rglob("*.json")], sep="\n")
        start = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = main(typed)
            except SystemExit as error:
                code = error.code
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    if show:
        print(code, out.getvalue(), err.getvalue(), sep="\n")
    outcome = {0: "answered", 1: "answered: does not fit", 2: "refused", 3: "no such GPU"}.get(code, "fault")
    return Verdict(kind, outcome, _fault(code, out.getvalue(), err.getvalue(), typed[-1] == "--json"), seconds)


def _fault(code: Any, out: str, err: str, is_json: bool) -> str:
    """What is wrong with an outcome, or nothing."""
    from fitplan.cli.console import LONGEST
    from fitplan.names import printable

    errors = [line for line in err.splitlines() if line.startswith("fitplan: error:")]
    if code not in (0, 1, 2, 3):
        return f"exit code {code}: {(err.splitlines() or [''])[-1][:200]}"
    if "Traceback" in err:
        return "traceback"
    if code in (2, 3) and len(errors) != 1:
        return f"{len(errors)} lines of error: {err[:200]}"
    if max(map(len, err.splitlines() or [""])) > LONGEST + len("fitplan: warning: ..."):
        return "a long echo"
    if printable(out + err) != out + err:
        return "text that acts on a terminal"
    if code in (0, 1) and is_json:
        return _fault_of_json(out)
    return ""


def _fault_of_json(text: str) -> str:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        document = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return f"JSON: {error}"
    for plan in document.get("plans", ()):
        estimate = plan["estimate"]
        sizes = {**estimate["breakdown"], **{name: v for name, v in estimate.items() if name.endswith("_bytes")}}
        if any(size < 0 for size in sizes.values()) or estimate["peak_reserved_bytes"] <= 0:
            return f"a size that cannot be: {sizes}"
    return ""


def _start(home: str) -> None:
    """A process that tries inputs: with a home of its own, and the libraries imported."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        os.environ[name] = f"{home}/{os.getpid()}/{name}"
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def _tried(seeds: range) -> tuple[list[tuple[int, Verdict]], int]:
    """The verdicts, and the most memory that this process has held."""
    return [(seed, judged(seed)) for seed in seeds], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept(file: Path | None) -> tuple[list[tuple[int, Verdict]], int]:
    """The verdicts of earlier runs, and the most memory that one of their processes has held."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file is not None and file.exists() else []
    chunks = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may have been cut off
    found = [(seed, Verdict(**verdict)) for chunk in chunks for seed, verdict in chunk["verdicts"]]
    return found, max((chunk["memory"] for chunk in chunks), default=0)


def _keep(file: Path | None, verdicts: list[tuple[int, Verdict]], memory: int) -> None:
    if file is not None:
        line = {"verdicts": [[seed, asdict(one)] for seed, one in verdicts], "memory": memory}
        with file.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(line) + "\n")


def run(
    inputs: int, seed: int, processes: int, told: Callable[[int], None], file: Path | None = None
) -> tuple[list[tuple[int, Verdict]], int]:
    """All verdicts by seed, and the most memory that a process has held; those in ``file`` are not tried again."""
    found, most = _kept(file)
    tried = {one for one, _ in found}
    starts = range(seed, seed + inputs, 20)
    chunks = [one for start in starts if (one := range(start, min(start + 20, seed + inputs))) and start not in tried]
    with tempfile.TemporaryDirectory() as home:
        while chunks:
            with ProcessPoolExecutor(processes, initializer=_start, initargs=(home,), max_tasks_per_child=None) as pool:
                waiting = {pool.submit(_tried, chunk): chunk for chunk in chunks}
                for done in as_completed(waiting):
                    try:
                        verdicts, memory = done.result()
                    except BrokenProcessPool:
                        continue
                    chunks.remove(waiting[done])
                    found += verdicts
                    _keep(file, verdicts, memory)
                    most = max(most, memory)
                    told(len(found))
            if chunks and all(len(chunk) == 1 for chunk in chunks[:1]):
                ended = (chunks[0].start, Verdict("killed", "fault", "the process was ended", 0))
                found.append(ended)
                _keep(file, [ended], 0)
                del chunks[0]
            elif chunks:  # one of these ended a process: one by one
                chunks = [range(one, one + 1) for one in chunks[0]] + chunks[1:]
    return sorted(found), most


def shown(verdicts: list[tuple[int, Verdict]], most: int) -> str:
    """A table, and every fault with its seed."""
    outcomes = ("answered", "answered: does not fit", "refused", "no such GPU")
    counts = Counter((one.kind, one.outcome) for _, one in verdicts)
    faults = Counter(one.kind for _, one in verdicts if one.fault)
    heads = ["kind", "inputs", *outcomes, "faults", "most CPU, s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind in KINDS:
        of_kind = [(one.seconds, seed) for seed, one in verdicts if one.kind == kind]
        cells: list[Any] = [counts[kind, outcome] for outcome in outcomes]
        slowest, which = max(of_kind, default=(0, 0))
        cells += [faults[kind], f"{slowest:.1f} (seed {which})"]
        lines.append(f"| {' | '.join(map(str, [kind, len(of_kind), *cells]))} |")
    lines.append(f"\nThe most memory that a process held: {most / 2**30:.2f} GiB.")
    lines += [f"- seed {seed}: {one.kind}: {one.fault}" for seed, one in verdicts if one.fault]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=Path, help="a file for the verdicts; what stands in it is not tried again")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--show", action="store_true", help="print each input, and what was said")
    options = parser.parse_args()
    if options.show:
        with tempfile.TemporaryDirectory() as home:
            _start(home)
            for seed in range(options.seed, options.seed + options.inputs):
                print(judged(seed, show=True))
        return 0

    def told(tried: int) -> None:
        print(f"\r{tried} of {options.inputs}", end="", file=sys.stderr, flush=True)

    verdicts, most = run(options.inputs, options.seed, options.processes, told, options.keep)
    print(file=sys.stderr)
    table = shown(verdicts, most)
    print(table)
    if options.write is not None:
        how = f"python benchmarks/fuzz.py --seed {options.seed} --inputs {options.inputs}"
        options.write.write_text(f"# Hostile and damaged inputs\n\n`{how}`\n\n{table}\n")
    return 1 if any(one.fault for _, one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
