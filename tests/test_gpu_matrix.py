"""The matrix of GPU jobs: what it holds, and that it runs from a checkout, on the CPU with shrunken models."""

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from scripts import loaded

from fitplan.errors import ValidationFailed
from fitplan.setup import Optim
from fitplan.validation.runner import Target

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_matrix.py"


@pytest.fixture(scope="module")
def matrix() -> Any:
    return loaded("benchmarks/gpu_matrix.py")


def test_it_covers_what_people_do(matrix: Any) -> None:
    setups = [case.setup() for case in matrix.CASES]
    assert len({case.name for case in matrix.CASES}) == len(setups) >= 60
    assert {setup.optim for setup in setups} == set(Optim)
    assert {setup.lora_r for setup in setups} >= {None, 8, 16, 64}
    assert {setup.seq_len for setup in setups} >= {512, 16384}
    assert {(setup.quant, setup.double_quant, setup.kbit_prepare) for setup in setups} >= {
        (None, None, None), ("nf4", True, True), ("nf4", False, False), ("int8", None, True), ("fp4", True, True),
    }  # fmt: skip
    for case in matrix.CASES:
        assert case.config().settings["model_type"]


def test_each_kind_comes_once_before_any_comes_twice(matrix: Any) -> None:
    ordered = matrix.in_rounds(matrix.CASES)
    kinds = len({case.kind for case in ordered})
    assert len({case.kind for case in ordered[:kinds]}) == kinds
    assert ordered[0].cost <= ordered[1].cost


def test_it_runs_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--only", "qwen3", "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "1 jobs, 0 done before" in first.stdout
    assert "+0.000 %" in first.stdout
    (record,) = tmp_path.glob("*--*.json")
    document = json.loads(record.read_text())
    said = json.loads((tmp_path / "predictions.json").read_text())
    (prediction,) = said.values()
    assert prediction["versions"]["torch"]
    (peak,) = document["quantities"]
    assert peak["predicted"] == prediction["peak_requested_bytes"] == peak["measured"]
    before = record.stat().st_mtime_ns

    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert "1 jobs, 1 done before" in again.stdout
    assert record.stat().st_mtime_ns == before


# --- whatever happens -------------------------------------------------------------------------------------------------


class _Process:
    """The process of a run that is never started; remembers what is done to it."""

    made: list["_Process"]

    def __init__(self, target: Any, *, expandable: bool) -> None:
        self.expandable, self.ended = expandable, False
        _Process.made.append(self)

    def start(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True


class _Report:
    judged, quantities = None, ()

    def __init__(self, case: Any) -> None:
        self._case = case

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": {"name": self._case.model}, "setup": {"method": str(self._case.setup().method)}, "quantities": [],
            "measurement": {"out_of_memory": {}}, "runs_on_paper": True,
        }  # fmt: skip


@pytest.fixture
def run(matrix: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs cases that end as told, without a GPU and without a process."""
    _Process.made = []
    monkeypatch.setattr(matrix, "RunProcess", _Process)
    clock = [0.0]
    monkeypatch.setattr(matrix.time, "monotonic", lambda: clock[0])

    class Said:
        runs_on_paper = True

        def __init__(self, case: Any) -> None:
            self.case = case

    class Forecasts:
        def of(self, case: Any, seconds: float) -> Any:
            return "nothing is known of it" if case.model == "phi-4" else Said(case)

    def go(ends: dict[str, Any], cases: list[Any] | None = None, deadline: float = 1000.0) -> dict[str, Any]:
        seen: dict[str, Any] = {"order": [], "timeouts": []}

        def validate(said: Any, target: Any, options: Any, progress: Any, *, process: Any) -> Any:
            assert not process.ended
            assert process.expandable is said.case.setup().expandable_segments
            waiting = [one for one in _Process.made if not one.ended and one is not process]
            assert len(waiting) <= 1
            seen["order"].append(said.case.model)
            seen["timeouts"].append(options.timeout)
            clock[0] += 10
            process.ended = True
            end = ends.get(said.case.model)
            if callable(end):
                end(clock)
            if isinstance(end, Exception):
                process.ended = False
                raise end
            return _Report(said.case)

        monkeypatch.setattr(matrix, "validate_forecast", validate)
        matrix.run_all(
            cases if cases is not None else CASES(matrix), Forecasts(), Target("cpu", None, {}), tmp_path, deadline
        )
        assert all(process.ended for process in _Process.made)
        return seen

    return go


def CASES(matrix: Any) -> list[Any]:
    return [
        matrix.Case("family", "smollm2-135m", {"method": "full"}),
        matrix.Case("family", "phi-4", {"method": "full"}),
        matrix.Case("expandable", "llama-3.2-1b", {"method": "qlora", "expandable_segments": True}),
        matrix.Case("family", "qwen3-4b", {"method": "lora"}),
    ]


@pytest.mark.parametrize(
    "error", [ValidationFailed("the run was killed", "Traceback\n  line 7"), KeyError("frames"), OSError("disk full")]
)
def test_a_job_that_fails_does_not_stop_the_others(error: Exception, run: Any, tmp_path: Path, capsys: Any) -> None:
    seen = run({"smollm2-135m": error})
    assert seen["order"] == ["smollm2-135m", "llama-3.2-1b", "qwen3-4b"]
    assert {path.name.partition("--")[0] for path in tmp_path.glob("*--*.json")} == {"llama-3.2-1b", "qwen3-4b"}
    (failure,) = json.loads((tmp_path / "failures.json").read_text()).values()
    assert failure["error"].startswith(type(error).__name__)
    assert ("line 7" if isinstance(error, ValidationFailed) else "Traceback") in failure["details"]
    assert "phi-4--method-full: nothing is known of it; skipped" in capsys.readouterr().out

    run({})
    assert json.loads((tmp_path / "failures.json").read_text()) == {}


def test_a_record_is_there_before_the_next_job_begins(run: Any, tmp_path: Path) -> None:
    there: list[int] = []
    run(dict.fromkeys(("llama-3.2-1b", "qwen3-4b"), lambda _: there.append(len(list(tmp_path.glob("*--*.json"))))))
    assert there == [1, 2]


def test_what_was_only_late_is_tried_again(run: Any, tmp_path: Path, matrix: Any) -> None:
    """The second job hangs: it is given what time is left, and no other is begun."""
    late = ValidationFailed("60 seconds had passed")

    def hang(clock: list[float]) -> None:
        clock[0] = 70
        raise late

    seen = run({"llama-3.2-1b": hang}, deadline=70.0)
    assert seen["order"] == ["smollm2-135m", "llama-3.2-1b"]
    assert seen["timeouts"] == [70, 60]
    assert not (tmp_path / "failures.json").exists()
    assert max(run({}, deadline=10**6)["timeouts"]) == matrix.CASE_SECONDS


def test_it_leaves_in_time_though_a_process_cannot_be_ended(tmp_path: Path) -> None:
    code = (
        f"import sys, time\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport gpu_matrix as matrix\n"
        "from pathlib import Path\nmatrix.GRACE_SECONDS = 0\n"
        f"matrix.end_in_time(Path({str(tmp_path)!r}), time.monotonic() + 0.2)\ntime.sleep(100)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "does not end" in done.stdout
    assert "0 jobs" in done.stdout


def test_a_worker_that_is_killed_costs_no_prediction(matrix: Any, tmp_path: Path) -> None:
    class Broken:
        def result(self, timeout: float) -> Any:
            raise BrokenProcessPool("a process in the process pool was terminated abruptly")

    case = matrix.TINY_CASES[1]
    forecasts = matrix.Forecasts([case], Target("cpu", None, {}), 1, tmp_path / "predictions.json")
    forecasts._found = {case.name: Broken()}
    assert forecasts.of(case, 1.0).runs_on_paper
    assert json.loads((tmp_path / "predictions.json").read_text())[case.name]["runs"] is True


def test_a_prediction_takes_the_context_that_was_measured(
    matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once, before the first job; a later call goes on with what the folder says."""
    from fitplan.devices.device import find_device
    from fitplan.validation.calibration import Calibration

    measured = Calibration("H200", 758 << 20, (), {}, {"torch": "2.11.0"}, "2026-11-27T06:15:52+00:00")
    asked: list[Any] = []
    monkeypatch.setattr(matrix, "measure_gpu", lambda *_: asked.append(1) or measured)
    target = Target("cuda:0", find_device("h200"), {})
    assert [matrix.measure_first(target, tmp_path, 1.0) for _ in range(2)] == [758 << 20] * 2
    assert len(asked) == 1

    case = matrix.TINY_CASES[1]
    forecasts = matrix.Forecasts([case], Target("cpu", None, {}), 1, tmp_path / "predictions.json")
    forecasts.context_bytes = 758 << 20
    said = forecasts.of(case, 1.0)
    assert said.context_bytes == 758 << 20
    written = json.loads((tmp_path / "predictions.json").read_text())[case.name]
    assert written["device_bytes"] - written["peak_reserved_bytes"] == 758 << 20


def test_predictions_are_made_side_by_side_without_the_gpu(tmp_path: Path) -> None:
    """In workers that see no GPU; what is not there in time is not waited for."""
    code = (
        f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport gpu_matrix as matrix\n"
        "from pathlib import Path\nfrom fitplan.validation.runner import Target\n"
        "def main():\n"
        f" path = Path({str(tmp_path / 'predictions.json')!r})\n"
        " made = matrix.Forecasts(matrix.TINY_CASES, Target('cpu', None, {}), 2, path)\n"
        " late = made.of(matrix.TINY_CASES[0], 0)\n"  # at once: its worker has not even started
        " print(repr(made._pool.submit(matrix.os.getenv, 'CUDA_VISIBLE_DEVICES').result()))\n"
        " print(late)\n"
        " print(made.of(matrix.TINY_CASES[1], 200).runs_on_paper)\n"
        " made.close()\n"
        "if __name__ == '__main__': main()"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["''", "it was not predicted in time", "True"], done.stderr
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 1


@pytest.mark.parametrize("package", ["platformdirs", "bitsandbytes"])
def test_a_package_that_is_not_there_is_named(package: str, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, runpy\nfind = u.find_spec\n"
        f"u.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
        f"runpy.run_path({str(SCRIPT)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"gpu_matrix needs {package}, which this Python does not have; carry the wheels along\n"
