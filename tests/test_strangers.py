"""What comes from strangers, a config or the folder that one works in, makes fitplan run nothing and call nobody."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

import fitplan
from fitplan.errors import ModelNotSupported
from fitplan.process import python_path
from fitplan.step.architecture import load_config
from fitplan.tracer import no_network, tracing_here
from fitplan.tui import child

EVIL = "evil-org/evil-kernel"


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": EVIL},
        {"_attn_implementation": EVIL},
        {"_attn_implementation_internal": EVIL},
        {"attn_implementation": {"": EVIL}},
        {"attn_implementation": "flash_attention_2"},
        {"experts_implementation": EVIL},
        {"_experts_implementation_internal": EVIL},
        {"quantization_config": {"quant_method": "bitsandbytes", "attn_implementation": [EVIL]}},
    ],
)
def test_a_config_names_no_code(named: dict[str, Any]) -> None:
    config = load_config(FAMILIES["llama"] | named)
    assert EVIL not in str(config.to_dict())
    assert EVIL not in str(vars(config))
    assert config._attn_implementation in (None, "eager", "sdpa")


def test_what_transformers_has_itself_may_be_named() -> None:
    assert load_config(FAMILIES["llama"] | {"attn_implementation": "eager"})._attn_implementation == "eager"


def test_a_traced_config_makes_nothing_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    kernels = type(sys)("kernels")
    kernels.get_kernel = lambda *args, **kwargs: asked.append(args)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FAMILIES["llama"] | {"_attn_implementation": EVIL, "attn_implementation": EVIL}))
    with tracing_here():
        assert fitplan.check(str(path), method="lora", trace=True).plans[0].setup.attn == "sdpa"
    assert not [one for one in asked if EVIL in str(one)], "bitsandbytes asks for one of its own, which is refused"


def test_within_a_trace_no_socket_is_opened() -> None:
    with no_network():
        for call in (lambda: socket.getaddrinfo("localhost", 80), lambda: socket.create_connection(("127.0.0.1", 9))):
            with pytest.raises(ModelNotSupported, match="wanted to reach the network"):
                call()
    assert socket.getaddrinfo("127.0.0.1", 80), "and after it the caller's own go through"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that are named as modules are, each of which leaves a mark where it is run."""
    for name in ("json", "torch", "random", "types", "platformdirs"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name}\\n')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_app_s_commands_run_nothing_of_the_working_folder(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(hostile), *sys.path])
    answer = asyncio.run(child.ask(["check", "gpt2", "--gpu", "4090", "--method", "lora"], lambda _: None))
    assert answer.document["schema"] == "fitplan.check/1"
    assert not (hostile / "ran").exists()


def test_a_child_finds_the_packages_but_not_the_working_folder(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(fitplan.__file__).parents[1])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(hostile), own, "/elsewhere"])
    assert python_path() == os.pathsep.join([own, "/elsewhere"])
    monkeypatch.chdir(own)
    assert own in python_path().split(os.pathsep), "a checkout that is not installed"


def test_ctrl_c_during_the_first_imports_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import importlib.abc, os, signal, sys
            class Interrupts(importlib.abc.MetaPathFinder):
                def find_spec(self, name, *rest):
                    if name == "fitplan.cli":
                        os.kill(os.getpid(), signal.SIGINT)
            sys.meta_path.insert(0, Interrupts())
        """)
    )
    own = str(Path(fitplan.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "fitplan", "gpus"], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), own])},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "fitplan: error: interrupted\n")
