"""Runs a training program on a GPU that is not there, and hears what its processes tell."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitplan.configs.catalog import catalog
from fitplan.devices.device import Device
from fitplan.errors import InputError, RehearsalImpossible
from fitplan.keeper import end_all
from fitplan.process import held, kept
from fitplan.rehearsal.build import stand_ins_for, torch_of
from fitplan.rehearsal.launch import FOLDER_VARIABLE, environment
from fitplan.rehearsal.report import Rank, RehearsalReport
from fitplan.resources import profiles
from fitplan.whole import scratch_folder

DEFAULT_STEPS = 3
"""Optimizer states exist from the end of the first step on; the third shows whether the second repeats."""
GRACE_SECONDS = 10
"""Between asking a program to end and ending it."""
LAST_LINES = 40

Watch = Callable[[Mapping[str, Any]], None]
"""Is told where a process is: rank, phase, step, bytes allocated and reserved."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be rehearsed.

    Attributes:
        command: the program and its arguments.
        device: the GPU.
        count: how many of it there are; ``None`` for as many as the command names.
        steps: optimizer steps after which the program is ended; 0 for none.
        timeout: seconds after which it is ended.
        online: whether it may ask the Hugging Face hub.
        world: ranks that there are, of which the command starts the first few; ``None`` for those that it starts.
        synthetic_rows: tokens in rows that stand in for a data set that cannot be loaded; none where it is empty.
        synthetic_columns: their columns.

    """

    command: tuple[str, ...]
    device: Device
    count: int | None = None
    steps: int = DEFAULT_STEPS
    timeout: float = 3600
    online: bool = False
    world: int | None = None
    synthetic_rows: tuple[int, ...] = ()
    synthetic_columns: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        if self.world is not None and self.world < self.gpus:
            raise InputError(f"world must be at least the {self.gpus} ranks that the command starts, not {self.world}")
        if not self.command:
            raise InputError("there is no command to rehearse; give one after --, such as python train.py")
        if any(length < 1 for length in self.synthetic_rows):
            raise InputError(f"synthetic_rows are numbers of tokens, not {self.synthetic_rows}")
        if self.steps < 0:
            raise InputError(f"steps must be 0 (to the end of the program) or more, not {self.steps}")
        if self.count is not None and self.count < 1:
            raise InputError(f"ranks must be 1 or more, not {self.count}")
        if self.timeout <= 0:
            raise InputError(f"timeout must be more than 0 seconds, not {self.timeout:g}")

    @property
    def gpus(self) -> int:
        """How many GPUs the program is shown."""
        return self.count or _count_in(self.command)


_PROCESSES = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes|num[-_]gpus)(?:=(\d+))?")


def _count_in(command: Sequence[str]) -> int:
    """The processes that a launcher is told to start on this machine."""
    for place, word in enumerate(command):
        found = _PROCESSES.fullmatch(word)
        number = found and (found[1] or (command[place + 1] if place + 1 < len(command) else ""))
        if number and number.isdigit():
            return int(number)
    return _count_in_configuration(command)


def _count_in_configuration(command: Sequence[str]) -> int:
    """The processes that a configuration file of ``accelerate launch`` names."""
    for word, following in zip(command, (*command[1:], ""), strict=True):
        option, _, joined = word.partition("=")
        if option in {"--config_file", "--config-file"}:
            with suppress(OSError):
                text = Path(joined or following).read_text(encoding="utf-8", errors="replace")
                found = re.search(r"^num_processes:\s*(\d+)", text, re.MULTILINE)
                return int(found[1]) if found else 1
    return 1


def rehearse(asked: Asked, *, watch: Watch = lambda _: None, output: Any = None) -> RehearsalReport:
    """Run the program; what it prints goes to ``output``, by default to stderr.

    Raises:
        InputError: the program cannot be found.
        RehearsalImpossible: this machine or the program's PyTorch cannot do it.

    """
    python = _python_of(asked.command)
    stand_ins = stand_ins_for(torch_of(python))
    with scratch_folder() as folder:
        (folder / "plan.json").write_text(json.dumps(_plan(asked)), encoding="utf-8")
        (folder / "tmp").mkdir()
        variables = {
            **environment(stand_ins, asked.device, count=asked.gpus),
            **_quiet(online=asked.online),
            FOLDER_VARIABLE: str(folder),
            "TMPDIR": str(folder / "tmp"),
        }
        try:
            with _terminated_as_interrupted(), _running(asked, variables, output or sys.stderr) as program:
                _follow(program, folder, asked.timeout, watch)
        finally:
            end_all(f"{FOLDER_VARIABLE}={folder}")  # launchers start their workers in sessions of their own
        return _reported(asked, folder, program)


def _plan(asked: Asked) -> dict[str, Any]:
    """What the processes are to do."""
    return {"watch": True, "steps": asked.steps, "world": asked.world, "rows": _rows(asked), "models": _known_models()}


def _rows(asked: Asked) -> dict[str, Any] | None:
    if not asked.synthetic_rows:
        return None
    return {"lengths": asked.synthetic_rows, "columns": asked.synthetic_columns}


def _known_models() -> dict[str, str]:
    """Hub ids whose config ships, and where it lies."""
    models = profiles() / "models"
    return {hub_id: str(models / entry.name / "config.json") for entry in catalog() for hub_id in entry.hub_ids}


def _quiet(*, online: bool) -> dict[str, str]:
    """No download, unless it is asked for; nothing that reports to a service."""
    offline = {} if online else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**offline, "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}


def _python_of(command: Sequence[str]) -> str:
    """The interpreter that a command runs in: itself, or that of the script it is.

    Raises:
        InputError: there is no such command.

    """
    path = shutil.which(command[0])
    if path is None:
        raise InputError(f"{command[0]} is no command that can be run here; give it after --, as you would type it")
    if re.fullmatch(r"python[\d.]*", Path(path).name):
        return path
    with suppress(OSError), Path(path).open("rb") as file:
        first = file.readline(1024)
        if first.startswith(b"#!"):
            words = first[2:].decode(errors="replace").split()
            name = words[1] if len(words) > 1 and Path(words[0]).name == "env" else words[0]
            if "python" in Path(name).name and (found := shutil.which(name)):
                return found
    found = shutil.which("python") or shutil.which("python3")
    if found is None:
        raise RehearsalImpossible("no Python is on the PATH, so nobody can be asked for PyTorch")
    return found


# --- the program ------------------------------------------------------------------------------------------------------


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Whoever is asked to end (SIGTERM: ``timeout``, a scheduler) leaves no more behind than after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Program:
    process: "subprocess.Popen[bytes]"
    ended_late: bool = False
    last_words: "deque[str]" = field(default_factory=lambda: deque(maxlen=LAST_LINES))


@contextmanager
def _running(asked: Asked, variables: Mapping[str, str], output: Any) -> Iterator[_Program]:
    """The program, in a session of its own; whatever happens, nothing of it is left."""
    process = held(
        _end,
        asked.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=kept(variables),
        start_new_session=True,
    )
    program = _Program(process)
    reader = _reading(program, output)
    try:
        yield program
    finally:
        _end(process)
        reader.join(GRACE_SECONDS)


def _reading(program: _Program, output: Any) -> threading.Thread:
    def read() -> None:
        assert program.process.stdout is not None
        for line in program.process.stdout:
            text = line.decode(errors="replace")
            program.last_words.append(text)
            with suppress(OSError, ValueError):
                output.write(text)
                output.flush()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _follow(program: _Program, folder: Path, timeout: float, watch: Watch) -> None:
    """Until it has ended; what its processes tell is told on."""
    read: dict[Path, int] = {}
    deadline = time.monotonic() + timeout
    while program.process.poll() is None:
        for path in folder.glob("process-*.jsonl"):
            with path.open(encoding="utf-8") as file:
                file.seek(read.get(path, 0))
                lines = file.readlines()
                read[path] = file.tell()
            for line in lines[-1:]:
                with suppress(ValueError):
                    watch(json.loads(line))
        if time.monotonic() > deadline:
            program.ended_late = True
            return
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program and all that it has started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    process.wait()


def _ranks(accounts: Sequence[Mapping[str, Any]]) -> Iterator[Rank]:
    """The processes that used the GPU: a compiler's worker, say, only looks at it."""
    return (Rank.from_account(account) for account in accounts if account["peak_allocated_bytes"])


def _reported(asked: Asked, folder: Path, program: _Program) -> RehearsalReport:
    accounts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("account-*.json"))]
    defects = [account["defect"] for account in accounts if "defect" in account]
    if defects:
        raise RuntimeError(f"the account of a rehearsed process cannot be made:\n{defects[0]}")
    ended_by_us = any(account["ended"] == "steps" for account in accounts)
    code = program.process.returncode
    told = folder / "without-rule"
    return RehearsalReport(
        gpu=asked.device,
        count=asked.gpus,
        world=asked.world,
        command=asked.command,
        ranks=tuple(sorted(_ranks(accounts), key=lambda rank: rank.rank)),
        out_of_memory=next((one["out_of_memory"] for one in accounts if one["out_of_memory"]), None),
        exit_code=None if ended_by_us and code == 0 else code,
        without_rule=tuple(sorted(set(told.read_text().split()))) if told.exists() else (),
        assumed={what: times for one in accounts for what, times in one["assumed"].items()},
        versions={name: version for one in accounts for name, version in one["versions"].items()},
        last_words="".join(program.last_words),
    )
