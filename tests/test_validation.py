"""Validation runs end to end, in processes of their own, on the CPU; on a GPU where there is one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from real_runs import batch_bytes

import fitplan
from fitplan import process
from fitplan.cli.main import main
from fitplan.errors import InputError, ValidationFailed
from fitplan.setup import TrainingSetup
from fitplan.trace.events import Trace
from fitplan.tracer import trace_job
from fitplan.validation import records, runner
from fitplan.validation.comparison import predicted_phases
from fitplan.validation.job import Job, Measurement, OutOfMemory
from fitplan.validation.process import measure
from fitplan.validation.process_memory import ProcessMemory
from fitplan.whole import PART, SCRATCH

DEEP = FAMILIES["llama"] | {"num_hidden_layers": 5}
SHAPE = ("--batch-size", "2", "--seq-len", "16")
TINY = TrainingSetup(method="full", batch_size=2, seq_len=16)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny-llama") / "config.json"
    path.write_text(json.dumps(DEEP))
    return str(path)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no folder outlives a validation."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def remembered(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(process.subprocess, "Popen", remembered)
    yield
    assert all(child.poll() is not None for child in started)
    assert list(folder.iterdir()) == []


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["validate", *arguments])
    return code, *capsys.readouterr()


def _one_sentence(text: str) -> str:
    assert text.count("\n") == 1
    assert text.startswith("fitplan: error: ")
    return text


# --- the prediction holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_takes_what_was_predicted(method: str, config: str, capsys: Any) -> None:
    code, out, err = _run(capsys, config, "--device", "cpu", "--method", method, *SHAPE, "--json", "--no-record")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "fitplan.validate/1"
    (peak,) = document["quantities"]
    assert peak["name"] == "peak_requested_bytes"
    assert peak["predicted"] == pytest.approx(peak["measured"], rel=1e-3)
    assert document["differences"] == []
    assert document["first_difference"] is None
    assert document["within_tolerance"] is True
    assert {(pair["phase"], pair["step"]) for pair in document["phases"]} >= {("backward", 0), ("backward", 1)}
    for pair in document["phases"]:
        assert pair["predicted"]["requested_bytes"] == pytest.approx(pair["measured"]["requested_bytes"], rel=0.02)


def test_a_program_is_told_what_is_expected_and_what_is_measured(
    config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITPLAN_PROGRESS", "json")
    code, out, err = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--json", "--no-record")
    assert code == 0
    news = [json.loads(line) for line in err.splitlines()]
    assert {"doing": "starting the run"} in news
    (expected,) = (one["expected"] for one in news if "expected" in one)
    told = [one["phase"] for one in news if "phase" in one]
    assert news.index({"expected": expected}) < news.index({"phase": told[0]})
    document = json.loads(out)
    assert told == document["measurement"]["phases"]
    assert all(phase["allocated_bytes"] is None for phase in expected)
    sizes = {(one["phase"], one["step"]): one["requested_bytes"] for one in expected}
    for pair in document["phases"]:
        assert sizes[pair["phase"], pair["step"]] == pair["predicted"]["requested_bytes"]
    assert max(sizes.values()) == document["quantities"][0]["predicted"]


def test_two_depths_give_the_full_one(config: str, capsys: Any) -> None:
    """Both are runs of full fine-tuning, allocation by allocation as predicted."""
    code, out, _ = _run(
        capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--layers", "1,3", "--json", "--no-record"
    )
    assert code == 0
    document = json.loads(out)
    assert document["extrapolation"]["layers"] == [1, 3, 5]
    assert document["extrapolation"]["predicted"] == document["extrapolation"]["expected"]
    for run in (document, document["shallow"]):
        assert run["quantities"][0]["error_percent"] == 0
        assert run["differences"] == []
        assert run["first_difference"] is None
    assert document["model"]["name"].endswith("3 layers")


def test_the_limit_is_where_it_was_predicted(config: str) -> None:
    report = fitplan.validate(
        config, device="cpu", method="full", seq_len=16, layers=[1], find_limit="batch", vram="1MiB"
    )
    assert report.predicted == report.measured > 1
    assert [trial.ran for trial in report.trials] == [True, False]


def test_trainer_takes_what_the_step_takes(config: str, capsys: Any) -> None:
    """Its data loader has fetched the next batch: here the host is the device."""
    code, out, _ = _run(capsys, config, "--device", "cpu", "--method", "lora", *SHAPE, "--runner", "trainer", "--json")
    document = json.loads(out)
    (peak,) = document["quantities"]
    ahead = batch_bytes(DEEP, TINY.with_(method="lora"))
    assert code == 0
    assert min(abs(peak["measured"] - peak["predicted"] - more) for more in (0, ahead)) <= 64
    assert document["differences"] == []
    assert document["run"]["runner"] == "trainer"

    assert main(["check", config, "--method", "lora", *SHAPE, "--vram", "1GiB", "--trace"]) == 0
    assert "measured: " in capsys.readouterr().out


# --- it does not ------------------------------------------------------------------------------------------------------

Fake = Callable[..., Any]


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs that measure what is told here, without a process."""

    def fake(
        change: Callable[[Measurement], Measurement] = lambda found: found,
        event: Callable[[int, int, str], tuple[int, str]] = lambda _place, size, who: (size, who),
    ) -> None:
        kept: list[Trace] = []

        def traced(*arguments: Any, **options: Any) -> Any:
            run = trace_job(*arguments, **options)
            kept.append(run.trace)
            return run

        def measured(job: Job, **_: Any) -> Measurement:
            if job.events is not None:
                with Path(job.events).open("w") as file:
                    for place, (one, sign, moment) in enumerate(kept[-1].sizes()):
                        size, who = event(place, one.size, f"{one.owner}: {one.op}")
                        file.write(json.dumps([sign * size, moment.phase, moment.step, who]) + "\n")
            phases = tuple(
                replace(phase, allocated_bytes=None, reserved_bytes=None)
                for phase in predicted_phases(kept[-1], expandable=False)
            )
            return change(Measurement(phases, "CPU", {}))

        monkeypatch.setattr(runner, "trace_job", traced)
        monkeypatch.setattr(runner, "measure", measured)

    return fake


def _larger(found: Measurement) -> Measurement:
    phases = (replace(one, requested_bytes=one.requested_bytes * 11 // 10) for one in found.phases)
    return replace(found, phases=tuple(phases))


def test_a_missed_tolerance_is_exit_code_4(config: str, faked: Fake, capsys: Any) -> None:
    faked(_larger)
    job = (config, "--device", "cpu", "--method", "full", *SHAPE, "--no-record")
    code, out, err = _run(capsys, *job)
    assert (code, err) == (4, "")
    assert "beyond 2 %" in out
    assert _run(capsys, *job, "--tolerance", "10%")[0] == 0
    assert _run(capsys, *job, "--tolerance", "9")[0] == 4


def test_a_wrong_prediction_is_pinned_on_its_allocation(config: str, faked: Fake, capsys: Any) -> None:
    seen: list[str] = []

    def event(place: int, size: int, who: str) -> tuple[int, str]:
        if who.endswith("mlp.down_proj: aten.mm.default"):
            seen.append(who)
            return (size + 4097, "somewhere.py:7 product") if len(seen) == 1 else (size, who)
        return size, who

    faked(event=event)
    _, out, _ = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--json", "--no-record")
    document = json.loads(out)
    more, less = document["differences"]
    assert more["bytes"] == less["bytes"] + 4097
    assert (more["measured"] - more["predicted"], less["measured"] - less["predicted"]) == (1, -1)
    assert more["measured_by"] == "somewhere.py:7 product"
    first = document["first_difference"]
    assert first["phase"] == "forward"
    assert first["predicted_by"] == f"{seen[0]}, {less['bytes']} bytes"
    assert first["measured_by"] == f"somewhere.py:7 product, {more['bytes']} bytes"

    code, out, _ = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--no-record")
    assert code == 0


def test_out_of_memory_is_a_result(config: str, capsys: Any) -> None:
    """With a prediction that said so, the prediction holds."""
    code, out, err = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--vram", "500KiB", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["measurement"]["out_of_memory"]["phase"] in {pair["phase"] for pair in document["phases"]}
    assert document["runs_on_paper"] is False
    assert document["quantities"] == document["differences"] == []


def test_out_of_memory_that_was_not_predicted_is_a_miss(config: str, faked: Fake, capsys: Any) -> None:
    faked(lambda found: replace(found, out_of_memory=OutOfMemory("backward", 1, "512 bytes too few")))
    code, out, _ = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE)
    assert code == 4
    assert "out of memory in backward of step 2" in out
    assert "which was not predicted" in out
    assert records.nearest("tiny-llama0", TINY) is None


# --- the run does not come to its end ---------------------------------------------------------------------------------


def _job(**changes: Any) -> Job:
    return Job(model=FAMILIES["llama"], setup=TINY.with_(**changes), device="cpu")


def test_a_killed_run_says_where(capsys: Any) -> None:
    def kill(_: Any) -> None:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in map(int, children):
            if b"fitplan.validation.child" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(ValidationFailed, match=r"killed by SIGKILL after \w+ of step \d; the machine may be out of"):
        measure(_job(), timeout=300, watch=kill)


def _customised(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Let every Python that is started from here on begin with ``code``."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{Path(fitplan.__file__).parents[1]}")


def test_an_error_inside_the_step_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _customised(
        monkeypatch,
        tmp_path,
        "import torch\ndef fail(*_, **__): raise RuntimeError('no gradients\\n here')\n"
        "torch.nn.utils.clip_grad_norm_ = fail",
    )
    with pytest.raises(ValidationFailed, match="the run failed with RuntimeError: no gradients here"):
        measure(_job(), timeout=300)


def test_a_run_that_never_begins_tells_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _customised(monkeypatch, tmp_path, "import os, sys\nsys.stderr.write('broken library\\n\\n')\nos._exit(7)")
    with pytest.raises(ValidationFailed, match="exit code 7 before its first phase was over: broken library"):
        measure(_job(), timeout=300)


def test_a_run_that_takes_too_long_is_ended(config: str, capsys: Any) -> None:
    begun = time.monotonic()
    code, out, err = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE, "--timeout", "0.2")
    assert (code, out) == (4, "")
    assert "0.2 seconds had passed" in _one_sentence(err)
    assert time.monotonic() - begun < 60


def test_a_run_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.3)
    _customised(
        monkeypatch, tmp_path, "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    )
    begun = time.monotonic()
    with pytest.raises(ValidationFailed, match="second had passed"):
        measure(_job(), timeout=1)
    assert time.monotonic() - begun < 30


def _processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_run_ends_with_the_command(how: signal.Signals, config: str, tmp_path: Path) -> None:
    """Interrupted, it cleans up; killed, at least no process is left."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(  # the run itself need not be waited for
        "import sys, time\nif 'fitplan.validation.child' in sys.orig_argv:\n"
        "    import fitplan.validation.child as child\n    child._run = lambda *_: time.sleep(100)\n"
        if how == signal.SIGKILL
        else "import sys, time\nif 'fitplan.validation.child' in sys.orig_argv:\n    time.sleep(100)\n"
    )
    mark = f"MARK={how.name}-{os.getpid()}"
    environment = os.environ | {
        "MARK": mark.partition("=")[2],
        "TMPDIR": str(folder),
        "PYTHONPATH": f"{folder}{os.pathsep}{Path(fitplan.__file__).parents[1]}",
    }
    command = [sys.executable, "-m", "fitplan", "validate", config, "--device", "cpu", "--method", "full", *SHAPE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as parent:
        deadline = time.monotonic() + 200
        while len(_processes(mark)) < 2 and parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5 if how == signal.SIGKILL else 0)
        parent.send_signal(how)
        _, err = parent.communicate(timeout=60)
    while _processes(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes(mark) == []
    if how == signal.SIGINT:
        assert parent.returncode == 130
        assert _one_sentence(err) == "fitplan: error: interrupted\n"
        assert list(folder.glob(f"{SCRATCH}*")) == []


def test_a_full_disk_costs_the_record_only(
    config: str, faked: Fake, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    faked()
    opened = Path.open
    parts: list[Path] = []

    def full(path: Path, *how: Any, **more: Any) -> Any:
        if path.name.endswith(PART):
            parts.append(path)
            return opened(Path("/dev/full"), *how, **more)
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", full)
    code, out, err = _run(capsys, config, "--device", "cpu", "--method", "full", *SHAPE)
    assert code == 2
    assert "peak requested is 0.000 % off" in out
    assert "No space left on device" in _one_sentence(err)
    assert parts
    assert not [path for path in parts if path.exists()]
    with pytest.warns(UserWarning, match="No space left"):
        assert fitplan.validate(config, device="cpu", method="full", batch_size=2, seq_len=16).within


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_evidence_and_a_damaged_one_is_none(
    config: str, faked: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    faked()
    fitplan.validate(config, device="cpu", method="full", batch_size=2, seq_len=16)
    (path,) = records.own_records().glob("*.json")
    name = json.loads(path.read_text())["model"]["name"]
    found = records.nearest(name, TINY)
    assert found is not None
    assert found.setup["seq_len"] == 16
    assert found.peak.name == "peak_requested_bytes"
    assert found.peak.predicted == found.peak.measured
    whole = path.read_text()
    for damage in (
        "",
        "{",
        "[]",
        '{"model": 1}',
        *(whole.replace(f'"{key}"', '"x"') for key in ("quantities", "seq_len")),
    ):
        path.write_text(damage)
        assert records.nearest(name, TINY) is None


def test_shipped_runs_are_evidence_of_the_same_job_first() -> None:
    """Of the H100's runs of Llama 3.2 1B: the same settings before the same length; what differs is told."""
    asked = TrainingSetup(method="full", seq_len=600, optim="adafactor", attn="sdpa", task="causal-lm")
    found = records.nearest("llama-3.2-1b", asked)
    assert found is not None
    assert (found.setup["optim"], found.device) == ("adafactor", "NVIDIA H100 80GB HBM3")
    assert found.others(asked) == {"seq_len": (512, 600)}
    other_segments = asked.with_(expandable_segments=True)
    other = records.nearest("llama-3.2-1b", other_segments)
    assert other is not None
    assert other.others(other_segments) == {"seq_len": (512, 600), "expandable_segments": (False, True)}
    assert records.nearest("llama-2-70b", asked) is None


def test_every_shipped_run_can_be_read() -> None:
    folder = records.shipped_records("any").parent
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.jsonl"))}
    assert sum(map(len, lines.values())) == 76 + 73 + 23  # three days' runs
    for path, texts in lines.items():
        read = [record for method in ("full", "lora", "qlora") for record in records._records(path.stem, method, 1)]
        assert len(read) == len(texts), path
        assert {record.model for record in read} == {path.stem}
        assert {record.device for record in read} <= {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}
        assert all(len(record.quantities) == 4 and record.phases for record in read)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(config: str, capsys: Any) -> None:
    code, out, err = _run(capsys, config)
    assert (code, out) == (3, "")
    assert "device cpu with few layers" in _one_sentence(err)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--layers", "1,2,3"), "one depth or two"),
        (("--layers", "1,2", "--find-limit", "batch", "--vram", "1MiB"), "one depth, not 2"),
        (("--layers", "2,2"), "two different depths"),
        (("--layers", "9"), "between 1 and 5"),
        (("--layers", "one"), "whole numbers"),
        (("--tolerance", "much"), "number of percent"),
        (("--tolerance", "nan"), "0 % or more"),
        (("--timeout", "0"), "timeout must be more than 0"),
        (("--timeout", "nan"), "timeout must be more than 0"),
        (("--steps", "2"), "at least 3"),
        (("--weights", "/nowhere"), "safetensors"),
        (("--vram", "much"), "no memory size"),
        (("--find-limit", "batch"), "give vram"),
        (("--find-limit", "batch", "--vram", "1MiB", "--out", "x.svg"), "no timeline"),
        (("--runner", "mine"), "invalid choice"),
        (("--seq-lenth", "7"), "unrecognized"),
    ],
)
def test_bad_flags_are_one_sentence(flags: tuple[str, ...], said: str, config: str, capsys: Any) -> None:
    try:
        code = main(["validate", config, "--device", "cpu", *flags])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in _one_sentence(err)


def test_stacks_of_different_depth_are_not_extrapolated() -> None:
    from fitplan.configs.resolve import ModelConfig
    from fitplan.validation.depths import _depth, shortened

    uneven = ModelConfig("t5", "given", FAMILIES["t5"] | {"num_decoder_layers": 3})
    with pytest.raises(InputError, match="not equally deep"):
        _depth(uneven)
    nested = ModelConfig("vision", "given", {"text_config": DEEP | {"layer_types": ["full"] * 5}})
    assert shortened(nested, 2).settings["text_config"]["layer_types"] == ["full"] * 2


# --- the driver's view ------------------------------------------------------------------------------------------------


class _Driver:
    """NVML on a machine whose GPU has 1000 bytes."""

    nvmlMemory_v2 = 2  # noqa: N815  the name is NVML's

    def __init__(self, used: list[int], processes: list[tuple[int, int | None]]) -> None:
        self.used, self.processes = used, processes

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> Any:
        assert handle == "GPU-1"
        return type("Memory", (), {"total": 1000, "free": 1000 - self.used.pop(0), "reserved": 0})

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [type("Process", (), {"pid": pid, "usedGpuMemory": size}) for pid, size in self.processes]


def test_memory_of_the_process_is_the_drivers_or_what_came_since() -> None:
    assert ProcessMemory(_Driver([0], [(1, 5), (os.getpid(), 70)]), "GPU-1").read() == 70
    for processes in ([(1, 5)], [], [(os.getpid(), None)], [(os.getpid(), 0)]):
        assert ProcessMemory(_Driver([100, 350], processes), "GPU-1").read() == 250


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("runner_name", ["step", "trainer"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_on_a_gpu_a_run_takes_what_was_predicted(method: str, runner_name: str, capsys: Any) -> None:
    code, out, _ = _run(
        capsys, "smollm2-135m", "--method", method, "--batch-size", "4", "--seq-len", "512", "--runner", runner_name,
        "--json", "--no-record",
    )  # fmt: skip
    document = json.loads(out)
    assert {q["name"] for q in document["quantities"]} >= {"peak_allocated_bytes", "peak_reserved_bytes"}
    assert code == 0
