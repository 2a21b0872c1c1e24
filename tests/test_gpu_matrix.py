"""The matrix of GPU jobs: what it holds, and that it runs from a checkout, on the CPU with shrunken models."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fitplan.setup import Optim

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_matrix.py"


@pytest.fixture(scope="module")
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_matrix", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_matrix"] = module
    spec.loader.exec_module(module)
    return module


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
