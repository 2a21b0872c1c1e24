"""The wheel, installed without torch: it answers, and stays small. Run by ``make test-wheel``."""

import json
import subprocess
from pathlib import Path

import pytest

MOST_BYTES = 5_000_000


@pytest.fixture
def light(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--installed")
    if not folder:
        pytest.skip("needs an environment with the wheel: make test-wheel")
    return Path(folder).resolve() / "bin"


def _run(light: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([light / "fitplan", *arguments], capture_output=True, text=True, cwd="/")


def test_the_first_command_of_the_readme_works(light: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    command = readme.partition("$ fitplan ")[2].partition("\n")[0].split()
    assert command[0] == "check"
    done = _run(light, *command)
    assert done.returncode == 0
    lines = [line for line in readme.splitlines() if line.startswith(("QLoRA ", "LoRA ", "full "))]
    assert len(lines) == 3
    assert all(line in done.stdout for line in lines)


def test_there_is_no_torch(light: Path) -> None:
    done = subprocess.run([light / "python", "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr


def test_what_needs_torch_says_so(light: Path, tmp_path: Path) -> None:
    done = _run(light, "check", "llama-3.1-8b", "--attn", "eager", "--method", "lora")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "[torch]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_formula_that_does_not_ship_says_so(light: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text((Path(__file__).parent.parent / "profiles/models/llama-3.2-1b/config.json").read_text())
    for command in ("explain", "map"):
        done = _run(light, command, str(config), "--gpu", "4090")
        assert done.returncode == 2
        assert "[torch]'" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_commands_answer_without_torch(light: Path) -> None:
    for arguments in (["models"], ["gpus"], ["explain", "llama-8b"], ["map", "llama-8b", "--gpu", "4090"]):
        document = json.loads(_run(light, *arguments, "--json").stdout)
        assert document["schema"] == f"fitplan.{arguments[0]}/1"


def test_the_wheel_is_small(request: pytest.FixtureRequest, light: Path) -> None:
    (wheel,) = Path(request.config.getoption("--wheel")).glob("*.whl")
    assert 0 < wheel.stat().st_size < MOST_BYTES
