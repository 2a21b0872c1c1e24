"""A rehearsed process, which answers questions in Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitplan.devices.device import find_device
from fitplan.errors import RehearsalImpossible
from fitplan.rehearsal.build import stand_ins_for, torch_of
from fitplan.rehearsal.launch import FOLDER_VARIABLE, environment

Ask = Callable[..., Any]

_ANSWER = """
import json, os, torch
{code}
print(json.dumps(answer), flush=True)
os._exit(0)
"""
"""It leaves at once: PyTorch's threads and Python's end are no matter of the answer, and race now and then."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        torch_of(sys.executable)
    except RehearsalImpossible as error:
        skip = pytest.mark.skip(reason=str(error))
        for item in items:
            if item.path.parent == Path(__file__).parent and item.path.name != "test_rehearsal_light.py":
                item.add_marker(skip)


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Runs code on a GPU that is not there; what it calls ``answer`` is the answer."""
    (tmp_path / "plan.json").write_text("{}")

    def run(code: str, *, gpu: str = "a100", count: int = 1, **variables: str) -> Any:
        device = find_device(gpu)
        told = environment(stand_ins_for(torch_of(sys.executable)), device, count=count)
        done = subprocess.run(
            [sys.executable, "-c", _ANSWER.format(code=code)],
            capture_output=True,
            text=True,
            env={**os.environ, **told, FOLDER_VARIABLE: str(tmp_path), **variables},
            timeout=300,
            check=False,
        )
        assert not done.returncode, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
