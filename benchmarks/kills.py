"""Kills commands at random moments (SIGKILL), and looks at what they leave behind.

A moment is a time, or the place between two of the things that the command does to files and processes: what happens
in a thousandth of a second is hit as often as what takes long.

    python benchmarks/kills.py                        # 50 times, over all commands
    python benchmarks/kills.py --times 8 --only check,report --seed 3

After each kill no process of the command may be left, every file that is there must be whole, and the same command, run
again, must give the answer that it gives undisturbed and remove what the killed one left. Linux only. The rehearsal is
killed with a Python that has a CUDA build of PyTorch (``--rehearsal .venv-rehearsal/bin/python``), else left out.
"""

import argparse
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPE = ["--method", "lora", "--batch-size", "1", "--seq-len", "32"]
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 128,
}  # fmt: skip
PROGRAM = """
import torch, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
layer = torch.nn.Linear(512, 512).cuda()
optimizer = torch.optim.AdamW(layer.parameters())
for _ in range(4):
    layer(torch.ones(8, 512, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
"""What is rehearsed: it starts a process in a session of its own, as launchers do."""

HOOK = """
import atexit, os, signal, sys
if os.environ.get("KILLS_ASKED_BY") == str(os.getppid()):
    at, where, done = int(os.environ["KILLS_AT"]), os.environ["KILLS_WHERE"].split(os.pathsep), []
    doing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen", "fcntl.flock", "os.chmod"}
    def hook(event, args):
        if event == "open":
            counts = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            counts = event in doing
        if counts and (event in ("subprocess.Popen", "fcntl.flock") or str(args[0]).startswith(tuple(where))):
            if len(done) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(event)
    sys.addaudithook(hook)
    @atexit.register
    def tell():
        done_all, at_file = len(done), os.environ["KILLS_TOLD"]
        with open(at_file, "w") as file:
            file.write(str(done_all))
"""
"""``sitecustomize`` of a command: it counts what is done (PEP 578), and kills itself before one thing of that."""

PATIENCE = 30
"""Seconds in which what a killed command has started must be gone: a busy machine is no fault."""
MARK = "FITPLAN_KILLS"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is killed.

    Attributes:
        words: what is typed after ``fitplan``.
        python: what it runs in.
        goes_on: it keeps what it has done so far, so that the answer is compared when all kills are over.
        answer: of what it printed, what is the same each time.
        outputs: files that are its answer, too.

    """

    words: list[str]
    python: str = sys.executable
    goes_on: bool = False
    answer: Callable[[str], str] = str
    outputs: tuple[Path, ...] = ()


@dataclass
class Found:
    """What was seen of one command."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def commands(folder: Path, rehearsal: Path | None) -> dict[str, Command]:
    """The commands, with what they need in ``folder``."""
    model = folder / "tiny"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY))
    (folder / "train.py").write_text(PROGRAM)
    page = folder / "page.html"
    made = folder / "made"
    found = {
        "check": Command(words=["check", str(model), "--gpu", "4090", *SHAPE, "--json"], answer=_without_source),
        "validate": Command(words=["validate", str(model), "--device", "cpu", *SHAPE, "--json"], answer=_measured),
        "report": Command(words=["report", str(model), "--gpu", "4090", *SHAPE, "--out", str(page)]),
        "profile": Command(
            words=["profile", str(model), "--out", str(made), "--before-ampere"],
            goes_on=True,
            outputs=(made / "tiny" / "footprints-sm50.json.xz",),
        ),
    }
    if rehearsal is not None:
        program = ["--", str(rehearsal), str(folder / "train.py")]
        words = ["rehearse", "--gpu", "4090", "--json", *program]
        found["rehearse"] = Command(words=words, python=str(rehearsal), answer=_rehearsed)
    return found


def _without_source(text: str) -> str:
    """An answer from the cache is the answer of the trace."""
    return re.sub(r'"source": "(cache|trace)"', "", text)


def _measured(text: str) -> str:
    document = json.loads(text)
    return json.dumps([document["quantities"], document["phases"]])


def _rehearsed(text: str) -> str:
    return json.dumps([rank["peak_allocated_bytes"] for rank in json.loads(text)["ranks"]])


class Place:
    """A home of its own for one command: what it leaves there is seen."""

    def __init__(self, folder: Path, command: Command) -> None:
        self.command = command
        self.folders = {name: folder / name for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR")}
        for path in self.folders.values():
            path.mkdir(parents=True)
        self.mark = f"{MARK}={os.getpid()}-{folder.name}"
        name, _, value = self.mark.partition("=")
        self._out, self._err, self._told = (folder / name for name in ("out", "err", "told"))
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        where = {key: str(path) for key, path in self.folders.items()}
        self._environment = {
            **os.environ,
            **where,
            name: value,
            "PYTHONPATH": f"{hook}{os.pathsep}{ROOT}",
            "COLUMNS": "100",
            "KILLS_ASKED_BY": str(os.getpid()),
            "KILLS_WHERE": str(folder.parents[1]),
            "KILLS_TOLD": str(self._told),
        }

    @property
    def deeds(self) -> int:
        """How many things the last undisturbed command did to files and processes."""
        return int(self._told.read_text())

    def start(self, deed: int = -1) -> "subprocess.Popen[bytes]":
        """The command, in a session of its own; it kills itself before its deed of that number."""
        with self._out.open("w") as out, self._err.open("w") as err:  # a pipe would be held by what is left
            return subprocess.Popen(
                [self.command.python, "-P", "-m", "fitplan", *self.command.words],
                stdout=out,
                stderr=err,
                env={**self._environment, "KILLS_AT": str(deed)},
                start_new_session=True,
            )

    def answered(self) -> tuple[str, str]:
        """What the undisturbed command answers, files too; and what is wrong with how it ended."""
        process = self.start()
        process.wait()
        out, err = self._out.read_text(), self._err.read_text(errors="replace")
        if process.returncode not in (0, 1) or "Traceback" in err:
            return "", f"exit code {process.returncode}: {(err.strip().splitlines() or [''])[-1][:200]}"
        files = [sha256(path.read_bytes()).hexdigest() for path in self.command.outputs]
        return json.dumps([self.command.answer(out), files]), ""

    def forget(self) -> None:
        """What it has kept would be the answer next time."""
        shutil.rmtree(self.folders["XDG_CACHE_HOME"] / "fitplan", ignore_errors=True)

    def processes(self) -> list[str]:
        """The command lines of what is left of it."""
        return [_command_line(number) for number in marked(self.mark)]

    def unfinished(self) -> list[str]:
        """Files and folders that are there for a while only."""
        from fitplan.whole import PART, SCRATCH

        outputs = (path.parent for path in self.command.outputs)
        found = (path for folder in (*self.folders.values(), *outputs) for path in folder.rglob("*"))
        return sorted(str(one) for one in found if one.name.endswith(PART) or one.name.startswith(SCRATCH))

    def damaged(self) -> list[str]:
        """Files under their own names that are not whole."""
        files = (path for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME") for path in self.folders[name].rglob("*"))
        return [
            f"{path.name}: {why}"
            for path in (*files, *self.command.outputs)
            if path.is_file() and path.name not in self.unfinished() and (why := why_damaged(path))
        ]


def marked(mark: str) -> Iterator[int]:
    """The processes, zombies left out, that have it in their environment."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                yield int(path.name)


def _command_line(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "ended meanwhile"


def why_damaged(path: Path) -> str:
    """What is wrong with a file that has its own name: it must be whole."""
    data = path.read_bytes()
    try:
        if path.name.endswith(".json.xz"):
            lines = lzma.decompress(data).splitlines()
            assert len(lines) == 1 + len(json.loads(lines[0])["footprints"]), "lines are missing"
            [json.loads(line) for line in lines]
        elif path.parent.name == "footprints":
            digest, _, text = data.partition(b"\n")
            assert sha256(text).hexdigest() == digest.decode(), "its digest is another"
        elif path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".html":
            assert data.rstrip().endswith(b"</html>"), "it is cut off"
    except (ValueError, AssertionError, lzma.LZMAError, LookupError) as error:
        return str(error) or type(error).__name__
    return ""


def tried(place: Place, times: int, draw: random.Random, told: Callable[[str], None]) -> Found:
    """A command, killed so many times."""
    found = Found()
    start = time.monotonic()
    expected, wrong = place.answered()
    lasts = time.monotonic() - start
    if wrong:
        found.faults.append(f"undisturbed: {wrong}")
        return found
    deeds = place.deeds
    if place.command.goes_on:  # what it has kept is taken from it, or there is nothing left to kill
        for path in place.command.outputs:
            path.unlink()
        lasts, deeds = lasts / times, max(1, deeds // times)
    for number in range(times):
        moment, deed = draw.uniform(0, lasts), draw.randrange(deeds) if number % 2 else -1
        said = f"before deed {deed} of {deeds}" if deed >= 0 else f"after {moment:.1f} of {lasts:.1f} s"
        told(f"kill {number + 1} of {times}, {said}")
        place.forget()
        found.counts[_killed(place, moment if deed < 0 else None, deed)] += 1
        found.faults += [f"{said}: {one}" for one in _left_behind(place)]
        found.counts["left something unfinished"] += bool(place.unfinished())
        if not place.command.goes_on or number == times - 1:
            found.faults += [f"{said}: {one}" for one in _next_time(place, expected)]
    return found


def _killed(place: Place, moment: float | None, deed: int) -> str:
    process = place.start(deed)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    if process.poll() is not None:
        return "killed at a deed" if process.returncode == -signal.SIGKILL else "had ended"
    beside = len(list(marked(place.mark))) - 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return "killed with children" if beside else "killed alone"


def _left_behind(place: Place) -> Iterator[str]:
    deadline = time.monotonic() + PATIENCE
    while (left := place.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield from (f"a process is left: {one}" for one in left)
    for number in marked(place.mark):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    yield from (f"a file is damaged: {one}" for one in place.damaged())


def _next_time(place: Place, expected: str) -> Iterator[str]:
    answer, wrong = place.answered()
    if wrong:
        yield f"the next run: {wrong}"
    elif answer != expected:
        yield f"the next run answers otherwise: {answer[:300]}, not {expected[:300]}"
    yield from (f"the next run leaves {one}" for one in place.unfinished())


def run(
    times: int, seed: int, only: list[str], rehearsal: Path | None, told: Callable[[str], None]
) -> dict[str, Found]:
    """What was seen, by command; the kills are shared out evenly."""
    draw = random.Random(seed)
    found = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        chosen = {key: one for key, one in commands(folder, rehearsal).items() if not only or key in only}
        for number, (key, command) in enumerate(chosen.items()):
            share = times // len(chosen) + (number < times % len(chosen))
            place = Place(folder / "homes" / key, command)
            if share:
                found[key] = tried(place, share, draw, lambda what, key=key: told(f"{key}: {what}"))
    return found


def shown(found: dict[str, Found]) -> str:
    """A table, and every fault."""
    kinds = ("killed alone", "killed with children", "killed at a deed", "had ended", "left something unfinished")
    heads = ["command", *kinds, "faults"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, one in found.items():
        lines.append(f"| {' | '.join(map(str, [key, *(one.counts[kind] for kind in kinds), len(one.faults)]))} |")
    return "\n".join([*lines, "", *(f"- {key}: {fault}" for key, one in found.items() for fault in one.faults)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="kills, over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands, with commas between")
    parser.add_argument("--rehearsal", type=Path, default=ROOT / ".venv-rehearsal/bin/python")
    options = parser.parse_args()
    rehearsal = options.rehearsal if options.rehearsal.exists() else None

    def told(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    found = run(options.times, options.seed, list(filter(None, options.only.split(","))), rehearsal, told)
    print(shown(found))
    return 1 if any(one.faults for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
