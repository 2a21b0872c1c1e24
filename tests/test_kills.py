"""A process that is killed leaves no process, no half file, and nothing that the next one does not remove."""

import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import loaded

import fitplan
from fitplan import whole
from fitplan.keeper import end_all
from fitplan.whole import PART, SCRATCH, read_whole, scratch_folder, write_whole

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who is left is read in /proc")

ROOT = Path(fitplan.__file__).parents[1]
WRITES = """
import sys
from pathlib import Path
from fitplan.whole import write_whole
write_whole(Path(sys.argv[1]) / "file", b"new" * 99999)
"""
SCRATCHES = """
import sys
from pathlib import Path
from fitplan.whole import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_text("x")
"""
STARTS = """
import subprocess, sys
from fitplan.process import held, kept
deaf = (
    "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP});"
    "print(1, flush=True); time.sleep(600)"
)
starts = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True); {deaf}"
held(lambda _: None, [sys.executable, "-c", starts], env=kept(), start_new_session=True)
"""


@pytest.fixture(scope="module")
def kills() -> Any:
    return loaded("benchmarks/kills.py")


@pytest.fixture
def hook(kills: Any, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts a program that kills itself before the deed of that number."""
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(kills.HOOK)

    def start(code: str, argument: Path, deed: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(argument)],
            env={
                **os.environ,
                "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
                "KILLS_ASKED_BY": str(os.getpid()),
                "KILLS_AT": str(deed),
                "KILLS_WHERE": str(argument),
                "KILLS_TOLD": str(tmp_path / "told"),
            },
        )

    return start


def _unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if PART in path.name or SCRATCH in path.name]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(hook: Any, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    path = folder / "file"
    write_whole(path, b"old")
    seen, left = [], 0
    for deed in range(100):
        code = hook(WRITES, folder, deed).wait(120)
        seen.append(read_whole(path))
        left += bool(_unfinished(folder))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert deed > 1, "nothing was done that it could be killed at"
    assert left
    assert set(seen[:-1]) <= {b"old", b"new" * 99999}
    assert seen[-1] == b"new" * 99999
    assert _unfinished(folder) == []


def test_a_killed_process_s_scratch_folder_goes_with_the_next_one(hook: Any, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    left = 0
    with scratch_folder(folder) as alive:
        for deed in range(100):
            if hook(SCRATCHES, folder, deed).wait(120) == 0:
                break
            left += len(_unfinished(folder)) > 1
            assert alive.is_dir(), "somebody is at it"
        assert left
        assert _unfinished(folder) == [alive.name]
    assert _unfinished(folder) == []


def test_what_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"{SCRATCH}abcdefgh").symlink_to(elsewhere)
    (folder / f".x.1-1{PART}").symlink_to(elsewhere / "file")
    os.mkfifo(folder / f".y.1-1{PART}")
    (folder / ".video.mp4.part").write_text("mine")
    with scratch_folder(folder):
        write_whole(folder / "file", "new")
    assert (elsewhere / "file").read_text() == "mine"
    assert (folder / ".video.mp4.part").read_text() == "mine"


def test_a_writer_that_is_swept_writes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[Path] = []
    replace = Path.replace

    def too_late(path: Path, target: Path) -> Path:
        if not swept:
            swept.append(path)
            path.unlink()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", too_late)
    write_whole(tmp_path / "file", "content")
    assert swept
    assert (tmp_path / "file").read_text() == "content"
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "gone")))
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "file", "other")


def test_what_is_read_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_whole(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "none")


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"MARK=kills-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    end_all(mark)


def _until(holds: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def _started(code: str, mark: str) -> "subprocess.Popen[str]":
    name, _, value = mark.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_children_and_grandchildren_end_with_who_is_killed(kills: Any, mark: str) -> None:
    with _started(f"{STARTS}\nimport time; time.sleep(600)", mark) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == ["1\n"] * 2, (
            "both are there, and deaf to all but SIGKILL"
        )
        assert len(list(kills.marked(mark))) == 3
        parent.kill()
    assert _until(lambda: list(kills.marked(mark)) == [])


def test_a_forked_process_ends_nothing(kills: Any, mark: str) -> None:
    forks = "import os, time\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(2, flush=True); time.sleep(600)"
    with _started(f"{STARTS}\n{forks}", mark) as parent:
        assert parent.stdout is not None
        assert sorted(parent.stdout.readline() for _ in range(3)) == ["1\n", "1\n", "2\n"]
        assert len(list(kills.marked(mark))) == 3
        parent.kill()
    assert _until(lambda: list(kills.marked(mark)) == []), "and holds nothing of the keeper's"


def test_a_process_that_gets_ready_leaves_with_who_started_it(kills: Any, mark: str) -> None:
    ready = "from fitplan.process import serve; import time; serve(print, lambda: (print(1), time.sleep(600)))"
    name, _, value = mark.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    process = subprocess.Popen([sys.executable, "-c", ready], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(120) == 0


# --- the bench --------------------------------------------------------------------------------------------------------


def test_a_killed_report_is_written_next_time(kills: Any, tmp_path: Path) -> None:
    page = tmp_path / "homes" / "page.html"
    page.parent.mkdir()
    words = ["report", "gpt2", "--gpu", "4090", "--method", "lora", "--out", str(page)]
    place = kills.Place(tmp_path / "homes" / "report", kills.Command(words=words, outputs=(page,)))
    found = kills.tried(place, 4, random.Random(1), lambda _: None)
    assert found.faults == []
    assert sum(found.counts[kind] for kind in ("killed at a deed", "killed alone", "killed with children")) >= 2


def test_the_bench_sees_what_is_wrong(kills: Any, tmp_path: Path) -> None:
    cache = tmp_path / "footprints"
    cache.mkdir()
    for name, content in {
        "footprints/x.json": b"00\n[]",
        "record.json": b'{"a": 1',
        "page.html": b"<html><body>",
        "footprints.json.xz": lzma.compress(b'{"footprints": [1, 2]}\n{}'),
        "cut.json.xz": lzma.compress(b"{}")[:-9],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert kills.why_damaged(path), name
    (tmp_path / "whole.json").write_text(json.dumps({}))
    assert not kills.why_damaged(tmp_path / "whole.json")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(1)",
            "is left",
        ),
        ("print(__import__('time').time_ns())", "answers otherwise"),
        (f"import os, tempfile; open(tempfile.gettempdir() + '/.x{PART}', 'w')", "leaves"),
        ("raise ValueError", "exit code 1"),
        ("print(1)", ""),
    ],
)
def test_the_bench_sees_what_a_command_leaves(
    kills: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: str
) -> None:
    monkeypatch.setattr(kills, "PATIENCE", 1)
    place = kills.Place(tmp_path / "homes" / "x", kills.Command(words=[], python=str(tmp_path / "command")))
    (tmp_path / "command").write_text(f"#!{sys.executable}\n{code}\n")
    (tmp_path / "command").chmod(0o755)
    found = [*kills._next_time(place, json.dumps(["1\n", []])), *kills._left_behind(place)]
    assert fault in " ".join(found)
    assert bool(fault) == bool(found)


def test_locks_are_there() -> None:
    assert whole.fcntl is not None
