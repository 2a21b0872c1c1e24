"""Footprints are made in a process beside this one: the same as here, whatever happens to it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

import fitplan
from fitplan import making, tracer
from fitplan.errors import ModelNotSupported, TraceFailed
from fitplan.tracer import tracing_here


@pytest.fixture
def config(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As a program finds it that asks for nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FAMILIES["llama"]))
    token = tracer._HERE.set(False)
    making._PROCESS.end()
    yield str(path)
    making._PROCESS.end()
    tracer._HERE.reset(token)


def _pid() -> int:
    child = making._PROCESS._child
    assert child is not None
    return child._running.pid


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_what_is_made_beside_is_what_is_made_here(method: Any, config: str) -> None:
    told: list[str] = []
    beside = fitplan.check(config, method=method, trace=True, progress=told.append)
    with tracing_here():
        here = fitplan.check(config, method=method, trace=True)
    assert beside == here
    assert any("layers" in one for one in told)


def test_a_formula_made_beside_is_the_same(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = fitplan.fit_map(config, gpu="h100", method="lora")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with tracing_here():
        assert fitplan.fit_map(config, gpu="h100", method="lora") == beside


def test_the_caller_s_process_stays_as_it_is(config: str) -> None:
    """A program that asks while it works with torch in another thread meets torch as it is, or need not have it."""
    code = (
        "import sys, fitplan\n"
        f"report = fitplan.check({config!r}, method='qlora', trace=True)\n"
        "assert report.plans[0].source == 'trace'\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'it was traced here'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_it_is_kept_for_the_next_question_and_threads_take_turns(config: str) -> None:
    fitplan.check(config, method="lora", trace=True)
    first, found = _pid(), []

    def ask(length: int) -> None:
        report = fitplan.check(config, method="lora", seq_len=length, trace=True)
        found.append((length, report.plans[0].setup.seq_len, report.plans[0].estimate.peak_allocated_bytes))

    threads = [threading.Thread(target=ask, args=(length,)) for length in (16, 32, 48, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _pid() == first
    assert all(asked == answered for asked, answered, _ in found)
    needs = [need for _, _, need in sorted(found)]
    assert needs == sorted(set(needs)), "a longer row needs more"


def test_errors_come_as_they_were_raised(tmp_path: Path, config: str) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(FAMILIES["llama"] | {"num_attention_heads": 7}))
    with tracing_here(), pytest.raises(ModelNotSupported) as here:
        fitplan.check(str(wrong), method="lora")
    with pytest.raises(ModelNotSupported) as beside:
        fitplan.check(str(wrong), method="lora")
    assert str(beside.value) == str(here.value)
    assert fitplan.check(config, method="lora", trace=True).plans, "and the process goes on"


def test_a_defect_is_told_with_its_lines() -> None:
    error = making._error("defect", ["Traceback ...\nKeyError: 'x'"])
    assert isinstance(error, RuntimeError)
    assert "KeyError: 'x'" in str(error)
    assert isinstance(making._error("SetupConflict", ["quant", "method", "they contradict"]), fitplan.SetupConflict)


def test_killed_it_is_told_and_replaced(config: str) -> None:
    fitplan.check(config, method="lora", trace=True)
    before = _pid()

    def kill(_: str) -> None:
        os.kill(before, signal.SIGKILL)

    with pytest.raises(TraceFailed, match=r"tracing was killed by SIGKILL.*out of memory"):
        fitplan.check(config, method="lora", seq_len=32, trace=True, progress=kill)
    assert fitplan.check(config, method="lora", trace=True).plans
    assert _pid() != before


def test_interrupted_it_leaves_no_process(config: str) -> None:
    pids = []

    def interrupt(_: str) -> None:
        pids.append(_pid())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitplan.check(config, method="lora", trace=True, progress=interrupt)
    assert not _exists(pids[0])


def test_idle_it_ends(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "IDLE_SECONDS", 0.05)
    fitplan.check(config, method="lora", trace=True)
    rest = making._PROCESS._rest
    if rest is not None:
        rest.join(60)
    assert making._PROCESS._child is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_starts_its_own(config: str) -> None:
    code = (
        "import os, sys, fitplan\nfrom fitplan import making\n"
        f"ask = lambda: fitplan.check({config!r}, method='lora', trace=True)\n"
        "ask()\npid = making._PROCESS._child._running.pid\n"
        "if os.fork() == 0:\n"
        "    assert making._PROCESS._child is None\n    ask()\n"
        "    assert making._PROCESS._child._running.pid != pid\n    sys.exit(0)\n"
        "assert os.wait()[1] == 0\nask()\nassert making._PROCESS._child._running.pid == pid\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
