# ruff: noqa: E501 - messages are quoted line by line
"""Why it ended: messages of PyTorch as people quote them since 2018, snapshots, the driver's and the system's words."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import fitplan
from fitplan.cli.main import main
from fitplan.errors import InputError
from fitplan.postmortem import Cause, read_log
from fitplan.units import GIB, MIB

TRACEBACK = 'Traceback (most recent call last):\n  File "/w/train.py", line 12, in <module>\n    trainer.train()\n'
BACKWARD = (
    '  File "/v/torch/_tensor.py", line 581, in backward\n  File "/v/torch/autograd/graph.py", line 825, in _engine\n'
)

# What was refused, of what, and the words: pytorch/pytorch#59778, #16417, and issues that quote other versions.
MESSAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "2018, cached": (
        "CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity; 8.57 MiB already allocated; "
        "9.28 GiB free; 4.68 MiB cached)",
        {
            "requested_bytes": int(12.5 * MIB),
            "gpu": 0,
            "unallocated_bytes": round(4.68 * MIB),
            "cause": "fragmentation",
        },
    ),
    "2021, reserved": (
        "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 1; 1.96 GiB total capacity; 1.24 GiB already "
        "allocated; 2.88 MiB free; 1.25 GiB reserved in total by PyTorch)",
        {"requested_bytes": 20 * MIB, "gpu": 1, "allocated_bytes": round(1.24 * GIB), "cause": "too_much"},
    ),
    "2.1, in pieces": (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacty of 23.65 "
        "GiB of which 1.66 GiB is free. Including non-PyTorch memory, this process has 20.81 GiB memory in use. Of the "
        "allocated memory 12.09 GiB is allocated by PyTorch, and 4.84 GiB is reserved by PyTorch but unallocated.",
        {
            "requested_bytes": 3 * GIB,
            "process_bytes": round(20.81 * GIB),
            "unallocated_bytes": round(4.84 * GIB),
            "cause": "fragmentation",
        },
    ),
    "2.5, too much": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB "
        "of which 12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB memory in use. Of the "
        "allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is reserved by PyTorch but unallocated. If "
        "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        {"requested_bytes": round(22.78 * GIB), "allocated_bytes": round(9.08 * GIB), "cause": "too_much"},
    ),
    "another process": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 2 has a total capacity of 79.15 GiB "
        "of which 12.56 MiB is free. Process 4242 has 72.00 GiB memory in use. Process 17 has 1.00 GiB memory in use. "
        "Including non-PyTorch memory, this process has 6.10 GiB memory in use. Of the allocated memory 5.50 GiB is "
        "allocated by PyTorch, and 100.00 MiB is reserved by PyTorch but unallocated.",
        {"gpu": 2, "process_bytes": round(6.1 * GIB), "cause": "another_process", "free_bytes": round(12.56 * MIB)},
    ),
    "itself, in a container": (
        "CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 47.53 GiB of which 16.88 MiB is "
        "free. Process 3652628 has 47.51 GiB memory in use. Of the allocated memory 47.14 GiB is allocated by PyTorch, "
        "and 57.79 MiB is reserved by PyTorch but unallocated.",
        {"process_bytes": round(47.51 * GIB), "others": (), "cause": "too_much"},
    ),
    "nothing free": (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB of which 0 bytes is "
        "free. Of the allocated memory 14.51 GiB is allocated by PyTorch, and 15.90 MiB is reserved by PyTorch but "
        "unallocated.",
        {"free_bytes": 0, "process_bytes": None, "cause": "too_much"},
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_is_read_to_the_byte(name: str) -> None:
    message, expected = MESSAGES[name]
    found = read_log(f"step 1\n{TRACEBACK}{BACKWARD}{message}\n")
    assert found is not None
    assert {key: getattr(found, key) for key in expected} == expected
    assert (found.moment, found.source) == ("backward", "message")


def test_the_other_process_is_told_first_and_what_is_outside_is_counted(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "train.log"
    log.write_text(MESSAGES["another process"][0])
    assert main(["autopsy", str(log)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Another process holds the GPU: 73.00 GiB (process 4242 and 1 more); without it")
    assert "514.4 MiB" in next(
        line for line in text.splitlines() if "CUDA context" in line
    )  # 6.10 - 5.50 GiB - 100 MiB
    assert "end the other process" in text


@pytest.mark.parametrize(
    ("lines", "moment"),
    [
        (BACKWARD, "backward"),
        (BACKWARD + '  File "/v/torch/utils/checkpoint.py", line 1128, in unpack_hook\n', "recompute"),
        ('  File "/v/torch/optim/adamw.py", line 243, in step\n', "optimizer step"),
        ('  File "/v/trainer.py", line 4, in prediction_step\n  File "m.py", line 1, in forward\n', "evaluation"),
        ('  File "/v/transformers/modeling_utils.py", line 9, in from_pretrained\n', "loading the model"),
        ('  File "/v/transformers/loss/loss_utils.py", line 3, in ForCausalLMLoss\n', "forward of the loss"),
        ('  File "/v/torch/nn/modules/module.py", line 1, in _call_impl\n', "forward"),
        ('  File "/w/train.py", line 1, in prepare\n', None),
    ],
)
def test_the_traceback_tells_the_moment(lines: str, moment: str | None) -> None:
    found = read_log(TRACEBACK + lines + MESSAGES["2.5, too much"][0])
    assert found is not None
    assert found.moment == moment


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("RuntimeError: CUDA error: out of memory", Cause.DRIVER),
        ("RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.", Cause.HOST_MEMORY),
        ("torch.distributed: failed (exitcode: -9) local_rank: 0", Cause.HOST_MEMORY),
        ("Out of memory: Killed process 4711 (python) total-vm:1kB", Cause.HOST_MEMORY),
        ("epoch 1\nKilled\n", Cause.HOST_MEMORY),
    ],
)
def test_what_others_say_is_understood(text: str, cause: Cause) -> None:
    found = read_log(text)
    assert found is not None
    assert found.cause is cause


def test_the_table_of_nvidia_smi_is_read() -> None:
    found = read_log(
        "| N/A   34C    P0   70W / 400W |  73001MiB / 81920MiB |      0%      Default |\n"
        "|    0   N/A  N/A      1234      C   python3                         72000MiB |\n"
        "|    0   N/A  N/A       999      G   /usr/lib/xorg/Xorg                 12MiB |\n"
    )
    assert found is not None
    assert [(one.pid, one.bytes) for one in found.others] == [(1234, 72000 * MIB), (999, 12 * MIB)]
    assert found.free_bytes == (81920 - 73001) * MIB


def _block(size: int, state: str, name: str = "") -> dict[str, Any]:
    frames = [
        {"filename": "CUDACachingAllocator.cpp", "line": 0, "name": "malloc"},
        {"filename": "/v/torch/nn/functional.py", "line": 9, "name": "linear"},
        {"filename": "/v/transformers/modeling_llama.py", "line": 181, "name": name},
    ]
    return {"size": size, "requested_size": size, "state": state, "frames": frames if name else []}


def test_a_snapshot_says_what_held_the_memory(tmp_path: Path, capsys: Any) -> None:
    blocks = [_block(3 * MIB, "active_allocated", "forward") for _ in range(4)]
    blocks += [_block(2 * MIB, "active_allocated", "loss"), _block(5 * MIB, "inactive"), _block(4 * MIB, "inactive")]
    segment = {"device": 1, "total_size": 23 * MIB, "allocated_size": 14 * MIB, "blocks": blocks}
    oom = {"action": "oom", "size": 8 * MIB, "device_free": MIB, "frames": []}
    path = tmp_path / "s.pickle"
    path.write_bytes(pickle.dumps({"segments": [segment], "device_traces": [[oom]]}))
    found = fitplan.autopsy(path)
    assert (found.cause, found.requested_bytes, found.free_bytes) == (Cause.FRAGMENTATION, 8 * MIB, MIB)
    assert (found.allocated_bytes, found.unallocated_bytes, found.largest_hole_bytes) == (14 * MIB, 9 * MIB, 5 * MIB)
    assert [(one.where, one.bytes, one.blocks) for one in found.holders] == [
        ("forward (modeling_llama.py:181)", 12 * MIB, 4),
        ("loss (modeling_llama.py:181)", 2 * MIB, 1),
    ]
    assert main(["autopsy", str(path)]) == 0
    assert "12.0 MiB  forward (modeling_llama.py:181), 4 blocks" in capsys.readouterr().out


class _Touches:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_no_snapshot_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path, left = tmp_path / "s.pickle", tmp_path / "left"
    for content in (pickle.dumps(_Touches(left)), b"\x80\x04junk", pickle.dumps([1, 2]), pickle.dumps({})):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no snapshot"):
            fitplan.autopsy(path)
    assert not left.exists()


@pytest.mark.parametrize("length", range(0, 300, 23))
def test_half_a_snapshot_is_one_sentence(length: int, tmp_path: Path) -> None:
    whole = pickle.dumps({"segments": [{"device": 0, "total_size": 2, "blocks": [_block(2, "active_allocated", "f")]}]})
    assert len(whole) > 300
    path = tmp_path / "s.pickle"
    path.write_bytes(whole[:length])
    with pytest.raises(InputError, match=r"is no snapshot|says nothing of memory"):
        fitplan.autopsy(path)


def test_beside_the_plan_a_run_that_took_more_is_another_job(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "train.log"
    log.write_text(MESSAGES["2.5, too much"][0])
    asked = ["autopsy", str(log), "--model", "llama-8b", "--method", "qlora"]
    assert main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "fitplan.autopsy/1"
    (plan,) = document["plan"]["plans"]
    assert document["plan"]["gpu"]["total_bytes"] == round(31.47 * GIB)
    assert plan["estimate"]["peak_allocated_bytes"] < document["allocated_bytes"] + document["requested_bytes"]
    assert main(asked) == 0
    assert "it is another job" in " ".join(capsys.readouterr().out.split())


def test_a_file_without_anything_gets_one_sentence(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.log").write_text("all is well")
    assert main(["autopsy", str(tmp_path / "x.log")]) == 2
    assert "says nothing of memory" in capsys.readouterr().err
    assert main(["autopsy", str(tmp_path / "none.log")]) == 2
    assert "is no file" in capsys.readouterr().err
