"""The worked examples at the head of modules are true."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fitplan
from fitplan.trace import recorder
from fitplan.units import gib


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


def test_the_figures_beside_the_readme_s_commands_are_what_is_answered() -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    advice = fitplan.advise("llama-8b", gpu="4090", seq_len=8192).advice
    assert advice.fix is not None
    needs, then = (gib(one.verdict.memory.bytes) for one in (advice.asked, advice.fix))
    assert f"fitplan advise llama-8b --gpu 4090 --seq-len 8192   # Liger's kernels: {needs} become {then}" in readme
    batch = next(one for one in fitplan.explain("llama-8b", seq_len=4096).changes if one.name == "batch_size")
    assert f'"batch size +1 = +{gib(batch.device_bytes)}"' in readme
