"""What comes from strangers, a config or the folder that one works in, makes fitplan run nothing and call nobody."""

import asyncio
import contextlib
import json
import lzma
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
from fitplan.cli.main import main
from fitplan.devices.device import find_device
from fitplan.errors import ModelNotSupported
from fitplan.footprint import store
from fitplan.limits import limited
from fitplan.names import printable
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


# --- text of strangers ------------------------------------------------------------------------------------------------

ACTS = "\x1b]0;PWN\x07\x1b[2J\x9b31m\u202e\x7f\x00"


def test_text_that_would_act_on_a_terminal_is_spelled_out() -> None:
    assert printable(ACTS) == r"\x1b]0;PWN\x07\x1b[2J\x9b31m\u202e\x7f\x00"
    assert printable("Modèle 模型\n") == "Modèle 模型\n"
    assert printable("\ud800") == r"\ud800"


def _acts(text: str) -> set[str]:
    return {one for one in text if one != "\n" and printable(one) != one}


def test_a_folder_s_name_and_its_config_only_show(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / ACTS.replace("\x00", "")
    folder.mkdir()
    config = FAMILIES["llama"] | {"quantization_config": {"quant_method": ACTS}}
    (folder / "config.json").write_text(json.dumps(config))
    for command in (["check"], ["advise", "--gpu", "4090"], ["explain"], ["map", "--gpu", "4090"]):
        main([command[0], str(folder), *command[1:], "--method", "lora", "--seq-len", "64"])
        said = capsys.readouterr()
        assert not _acts(said.out + said.err)
        assert "PWN" in said.out
    main(["check", str(tmp_path / f"no {ACTS[:-1]}")])
    assert not _acts(capsys.readouterr().err)


def test_a_gpu_s_name_only_shows_and_is_no_markup(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    evil = replace(find_device("4090"), name=f"[bold]GPU{ACTS}")
    monkeypatch.setattr("fitplan.question.find_device", lambda _: evil, raising=False)
    monkeypatch.setattr("fitplan.devices.device.find_device", lambda _: evil)
    main(["check", "gpt2", "--gpu", "4090", "--method", "lora"])
    said = capsys.readouterr()
    assert "[bold]GPU" in said.out
    assert not _acts(said.out + said.err)


def test_what_is_repeated_is_cut(capsys: Any) -> None:
    assert main(["check", "gpt2", "--gpu", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 2100


# --- what a config may cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ({"num_labels": 30_000_000}, "num_labels"),
        ({"model_type": "mpt", "n_layers": 1_000_000}, "n_layers"),
        ({"model_type": "bart", "encoder_layers": 1_000_000}, "encoder_layers"),
        ({"model_type": "switch_transformers", "num_experts": 1_000_000}, "num_experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 10_000}, "n_routed_experts"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 4096}}, "num_hidden_layers"),
        ({"encoder": {"deeper": [{"num_layers": 5000}]}}, "num_layers"),
    ],
)
def test_a_config_may_not_ask_for_more_than_models_have(
    named: dict[str, Any], field: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FAMILIES["llama"] | named))
    assert main(["check", str(path), "--method", "lora"]) == 2
    assert f"has {field} " in capsys.readouterr().err


def test_a_setting_may_not_either(capsys: Any) -> None:
    assert main(["check", "gpt2", "--task", "sequence-classification", "--num-labels", "65537"]) == 2
    assert "num_labels" in capsys.readouterr().err.replace("-", "_")


# --- files that are read back -----------------------------------------------------------------------------------------


def _damaged(document: Any) -> list[Any]:
    """The document with something of it gone or of another kind, at every place."""
    found: list[Any] = []
    wrong = [None, [], {}, "x", -1, 1e300]

    def walk(here: Any, put: Any) -> None:
        found.extend(put(value) for value in wrong)
        items = here.items() if isinstance(here, dict) else enumerate(here[:2]) if isinstance(here, list) else ()
        for key, value in items:

            def deeper(other: Any, key: Any = key) -> Any:
                copy = dict(here) if isinstance(here, dict) else list(here)
                copy[key] = other
                return put(copy)

            walk(value, deeper)
            if isinstance(here, dict):
                found.append(put({name: one for name, one in here.items() if name != key}))

    walk(document, lambda value: value)
    return found


def test_a_damaged_record_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from fitplan.validation import records

    shipped = Path(records.shipped_records("smollm2-135m")).read_text().splitlines()[-1]
    document = json.loads(shipped)
    monkeypatch.setattr(records, "own_records", lambda: tmp_path)
    monkeypatch.setattr(records, "shipped_records", lambda _: tmp_path / "none")
    setup = fitplan.TrainingSetup.from_dict(document["setup"])
    path = tmp_path / f"smollm2-135m--{document['setup']['method']}--1.json"
    path.write_text(shipped)
    assert records.nearest("smollm2-135m", setup) is not None
    for damaged in [*_damaged(document), json.loads("[" * 500 + "]" * 500)]:
        path.write_text(json.dumps(damaged))
        record = records.nearest("smollm2-135m", setup)
        if record is not None:
            record.to_dict(), record.date, record.peak
            code = main(["check", "smollm2-135m", "--method", str(setup.method), "--gpu", "h100"])
            assert code in (0, 1)
            capsys.readouterr()


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitplan.validation import records

    monkeypatch.setattr(records, "own_records", lambda: tmp_path)
    os.mkfifo(tmp_path / "gpt2--lora--1.json")
    assert records.nearest("gpt2", fitplan.TrainingSetup.from_dict({"method": "lora"})) is None


def test_a_cache_entry_that_was_changed_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / "kept")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FAMILIES["llama"]))
    first = fitplan.check(str(path), method="lora", seq_len=48)
    assert fitplan.check(str(path), method="lora", seq_len=48).plans[0].source == "cache"
    (entry,) = (tmp_path / "kept").glob("*.json")
    whole = entry.read_bytes()
    for changed in (whole[:-9], whole.replace(b"sdpa", b"eage"), whole.partition(b"\n")[2], b"", b"\xff" * 64, b"[]"):
        entry.write_bytes(changed)
        again = fitplan.check(str(path), method="lora", seq_len=48)
        assert again.plans[0].source == "trace"
        assert again.plans[0].estimate == first.plans[0].estimate


@pytest.mark.parametrize(
    "content",
    [b"rubbish", b"", lzma.compress(b"rubbish"), lzma.compress(b"[]"), lzma.compress(b"x")[:-8],
     lzma.compress(bytes(store.MOST_UNPACKED + 1), preset=0)],
)  # fmt: skip
def test_a_folder_of_footprints_with_something_else_in_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "footprints.json.xz"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"footprints\.json\.xz is left out"):
        assert store.read_if_of(path, None) is None


# --- what a trace may take --------------------------------------------------------------------------------------------


def test_a_trace_ends_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITPLAN_TRACE_SECONDS", "0.2")
    before = signal.getsignal(signal.SIGPROF)
    sentence = "tracing x takes more than 0.2 seconds of processor time; .* or set FITPLAN_TRACE_SECONDS to more"
    with pytest.raises(ModelNotSupported, match=sentence), limited("tracing x"):
        all(True for _ in iter(int, 1))  # which has no end
    assert signal.getsignal(signal.SIGPROF) is before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


@pytest.mark.parametrize("seconds", ["", "soon", "-1", "0", "nan"])
def test_what_is_no_number_of_seconds_changes_nothing(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITPLAN_TRACE_SECONDS", seconds)
    with limited("tracing x"):
        left, _ = signal.getitimer(signal.ITIMER_PROF)
    assert 50 < left < 61


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_trace_ends_when_it_takes_too_much_memory() -> None:
    import resource

    import torch

    before = resource.getrlimit(resource.RLIMIT_DATA)
    for take in (lambda: bytearray(3 * 2**30), lambda: torch.empty(3 * 2**30, dtype=torch.uint8)):
        with pytest.raises(ModelNotSupported, match="tracing x takes more than 2 GiB"), limited("tracing x"):
            take()
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with pytest.raises(RuntimeError, match="something else"), limited("tracing x"):
        raise RuntimeError("something else")


def test_a_config_that_takes_too_long_is_told_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama"]))
    done = subprocess.run(
        [sys.executable, "-m", "fitplan", "check", str(tmp_path), "--method", "lora", "--trace"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FITPLAN_TRACE_SECONDS": "0.01"},
    )
    assert done.returncode == 2
    assert "takes more than 0.01 seconds of processor time" in done.stderr


@pytest.mark.parametrize("after", [0.05, 0.4, 0.8, 1.5, 3, 5])
def test_a_killed_check_leaves_nothing_that_is_read(after: float, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(FAMILIES["qwen3"]))
    command = [sys.executable, "-m", "fitplan", "check", str(tmp_path / "model"), "--method", "lora", "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(after)
    run.kill()
    run.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found, expected = json.loads(done.stdout), fitplan.check(str(tmp_path / "model"), method="lora").to_dict()
    assert [one["estimate"] for one in found["plans"]] == [one["estimate"] for one in expected["plans"]]
