"""What of rehearsal needs no CUDA build of PyTorch."""

import importlib
import json
import signal
import sys
from pathlib import Path

import pytest

from fitplan.devices.device import find_device, known_devices
from fitplan.errors import InputError, RehearsalImpossible
from fitplan.rehearsal import build
from fitplan.rehearsal.gpu import LIMITS, environment_of
from fitplan.rehearsal.launch import INSIDE
from fitplan.rehearsal.report import Group, Peak, Rank, RehearsalReport
from fitplan.rehearsal.run import Asked, _terminated_as_interrupted
from fitplan.verdict import Fit


def _installed(folder: Path, version: str, cuda: str | None) -> build.Torch:
    return build.Torch(folder=folder, version=version, cuda=cuda, packages={"nvidia_cudnn_cu13": "9.24.0.43"})


def test_a_pytorch_without_cuda_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RehearsalImpossible, match=r"2\.13\.0\+cpu, built without CUDA"):
        build.torch_of(sys.executable)


def test_other_machines_are_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.sys, "platform", "darwin")
    with pytest.raises(RehearsalImpossible, match="runs on Linux on x86-64, and this is darwin"):
        build.stand_ins_for(_installed(tmp_path, "2.14.1", "13.0"))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.platformdirs, "user_cache_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(RehearsalImpossible, match="install a compiler"):
        build.stand_ins_for(_installed(tmp_path, "2.14.1", "13.0"))


def test_versions_are_told_as_the_libraries_count_them(tmp_path: Path) -> None:
    torch = _installed(tmp_path, "2.14.1", "13.0")
    assert torch.number("cudnn", (10000, 100, 1), 1) == 92400
    assert torch.number("nccl", (10000, 100, 1), 22100) == 22100


def test_every_gpu_can_be_played() -> None:
    for device in known_devices():
        told = environment_of(device)
        assert told["FITPLAN_GPU_USABLE_BYTES"] == str(device.usable_bytes)
        assert device.capability in LIMITS
    assert environment_of(find_device("t4"), count=4)["FITPLAN_GPU_COUNT"] == "4"


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (("python", "train.py"), 1),
        (("torchrun", "--nproc-per-node", "2", "train.py"), 2),
        (("torchrun", "--nproc_per_node=8", "train.py"), 8),
        (("accelerate", "launch", "--num_processes", "4", "train.py"), 4),
        (("deepspeed", "--num_gpus=2", "train.py"), 2),
    ],
)
def test_as_many_gpus_as_the_command_names(command: tuple[str, ...], count: int) -> None:
    assert Asked(command=command, device=find_device("a100")).gpus == count


@pytest.mark.parametrize("option", [("--config_file", "{}"), ("--config_file={}",)])
def test_as_many_gpus_as_the_configuration_of_accelerate_names(option: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "fsdp2.yaml"
    file.write_text("distributed_type: FSDP\nnum_machines: 1\nnum_processes: 4\n")
    command = ("accelerate", "launch", *(word.format(file) for word in option), "train.py")
    assert Asked(command=command, device=find_device("a100")).gpus == 4


def test_who_is_terminated_leaves_as_after_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_large_hollow_checkpoints_come_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found by transformers, and every tensor in one of them."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(INSIDE)
    hollow = importlib.import_module("rehearsed.hollow")
    monkeypatch.setattr(hollow, "SHARD_BYTES", 1 << 20)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    hollow.write_weights(str(tmp_path))
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) > 2
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not any(parameter.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "asked",
    [{"command": ()}, *({"command": ("x",), **one} for one in ({"steps": -1}, {"count": 0}, {"timeout": 0}))],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(asked: dict) -> None:
    with pytest.raises(InputError):
        Asked(device=find_device("a100"), **asked)


def _rank(**changes: object) -> Rank:
    group = Group(category="activations", phase="forward", where="model.py:1 forward", bytes=60, count=2)
    peak = Peak(
        phase="backward", step=2, where="", categories={"activations": 60, "base weights": 40}, largest=(group,)
    )
    return Rank(
        **{
            "rank": 0, "steps": 3, "peak_allocated_bytes": 100, "peak_reserved_bytes": 120, "device_bytes": 150,
            "retries": 0, "peak": peak, **changes,
            "timeline": {"points": [(0, 100, 120)], "phases": [(0, "backward", 1)]},
        }
    )  # fmt: skip


def _report(**changes: object) -> RehearsalReport:
    return RehearsalReport(
        **{
            "gpu": find_device("a100"), "count": 1, "command": ("python", "train.py"), "ranks": (_rank(),),
            "out_of_memory": None, "exit_code": None, "without_rule": (), "assumed": {}, "versions": {}, **changes,
        }
    )  # fmt: skip


def test_the_verdict() -> None:
    assert _report().fit is Fit.FITS
    assert _report(ranks=(_rank(retries=2),)).fit is Fit.TIGHT
    assert _report(out_of_memory={"rank": 0}, exit_code=1).fit is Fit.DOES_NOT_FIT
    assert _report(exit_code=1).failed
    assert _report(exit_code=1).to_dict()["verdict"] is None


def test_the_document_sums_up() -> None:
    document = _report().to_dict()
    assert document["schema"] == "fitplan.rehearse/1"
    rank = document["ranks"][0]
    assert sum(rank["peak"]["categories"].values()) == rank["peak_allocated_bytes"]


def test_the_page_and_the_terminal_say_the_same() -> None:
    from io import StringIO

    from rich.console import Console

    pytest.importorskip("jinja2")
    from fitplan.report.rehearsal import headline, print_rehearsal
    from fitplan.report.rehearsal_page import rehearsal_page

    report = _report(assumed={"a mask": 3})
    stream = StringIO()
    print_rehearsal(report, Console(file=stream, width=100))
    page = rehearsal_page(report)
    for text in (headline(report), "model.py:1 forward", "not known here: a mask (3 times)"):
        assert text in stream.getvalue()
        assert text in page


def test_rows_that_stand_in_for_a_data_set() -> None:
    import importlib.util

    path = Path(build.__file__).parent / "inside" / "rehearsed" / "rows.py"
    spec = importlib.util.spec_from_file_location("rows", path)
    assert spec is not None
    assert spec.loader is not None
    rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rows)
    found = rows.columns_of([100, 7], ["chosen", "rejected"], rows=3)
    assert {name: [len(text) for text in texts] for name, texts in found.items()} == {
        "chosen": [400, 28, 400],
        "rejected": [400, 28, 400],
    }


def test_a_world_holds_the_ranks_that_are_started() -> None:
    with pytest.raises(InputError, match="at least the 8 ranks"):
        Asked(command=("torchrun", "--nproc-per-node", "8", "t.py"), device=find_device("a100"), world=4)
    assert _report(world=64).to_dict()["world_size"] == 64
    assert _report(count=2).to_dict()["world_size"] == 2
