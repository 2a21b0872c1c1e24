"""One rank, traced, against two processes that really train together, allocation by allocation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import first_difference
from ranks import CASES
from real_runs import traced, training_events

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What rank 0 allocated, by case; all cases in one run of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(
        [*command, str(HERE / "rank_run.py"), str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda name: json.loads((folder / f"{name}.0.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_rank_allocates_what_its_trace_says(name: str, ranks: Any) -> None:
    real = ranks(name)
    assert not isinstance(real, str), real
    trace = [list(event) for event in training_events(traced(*CASES[name]))]
    assert len(trace) > 300
    births = [event for event in trace if event[0]]
    assert first_difference(births, [event for event in real if event[0]]) is None
