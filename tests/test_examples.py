"""The worked examples at the head of modules are true."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fitplan.trace import recorder


@pytest.mark.parametrize("module", [recorder])
def test_the_examples_of_a_module(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_the_first_answer_of_the_readme_is_what_is_printed() -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n\$ (fitplan check .*?)\n(.*?)```\n", readme, re.DOTALL)[:1]
    command, told = block
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "110"},
    )
    assert done.stdout == told
