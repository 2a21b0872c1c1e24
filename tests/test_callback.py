"""The guard of a real training, with the readings of a GPU played."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import fitplan
from fitplan.callback import OUTCOME, Guard
from fitplan.errors import DoesNotFit, InputError
from fitplan.step.architecture import load_config
from fitplan.tracer import tracing_here

GIB = 2**30


@pytest.fixture(autouse=True)
def here() -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    with tracing_here():
        yield


def _trainer(folder: Path, guard: Guard, *, adapters: bool = False) -> Trainer:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(load_config(FAMILIES["llama"]), dtype=torch.float32)
    if adapters:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    rows = [{"input_ids": [5] * 16, "labels": [5] * 16, "attention_mask": [1] * 16}] * 4
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[guard])


def _play(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {
        "get_device_capability": (8, 0),
        "mem_get_info": (free, 80 * GIB),
        "memory_reserved": 0,
        "max_memory_allocated": 17 * 2**20,
        "max_memory_reserved": 20 * 2**20,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


def _run(guard: Guard, folder: Path, **kwargs: Any) -> None:
    """The events as ``Trainer`` calls them, without a step that would ask the GPU that is not there."""
    trainer = _trainer(folder, guard, **kwargs)
    guard.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    guard.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_without_a_gpu_it_says_so_and_the_training_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Guard(action="refuse")
    _trainer(tmp_path, guard).train()
    assert capsys.readouterr().err.count("there is no GPU here, and nothing is planned") == 1
    assert guard.forecast is None
    assert not (tmp_path / OUTCOME).exists()


def test_it_predicts_what_check_predicts_of_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _play(monkeypatch, 80 * GIB)
    guard = Guard(action="log", seq_len=16)
    _run(guard, tmp_path, adapters=True)
    plan = fitplan.check(
        load_config(FAMILIES["llama"]), method="lora", vram="80GiB", seq_len=16, batch_size=2, lora_r=4, lora_alpha=8,
        target_modules="q_proj", dtype="float32", mixed_precision="no", gradient_checkpointing=False, trace=True,
    ).plans[0]  # fmt: skip
    assert guard.forecast is not None
    assert guard.forecast.allocated_bytes == plan.estimate.peak_allocated_bytes + plan.memory.unsplit_bytes
    assert guard.forecast.reserved_bytes == plan.estimate.peak_reserved_bytes
    said = capsys.readouterr().err
    assert "fitplan: this training needs" in said
    assert "fitplan: measured 17.0 MiB allocated, 20.0 MiB reserved; the prediction was" in said
    outcome = json.loads((tmp_path / OUTCOME).read_text())
    assert outcome["predicted"]["allocated_bytes"] == guard.forecast.allocated_bytes
    assert outcome["measured"] == {"allocated_bytes": 17 * 2**20, "reserved_bytes": 20 * 2**20}


@pytest.mark.parametrize("action", ["refuse", "warn"])
def test_what_does_not_fit_is_refused_or_told(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _play(monkeypatch, 2**20)
    guard = Guard(action=action, seq_len=16)
    if action == "refuse":
        with pytest.raises(DoesNotFit, match=r"does not fit into 1\.0 MiB; fitplan advise says what to change"):
            _run(guard, tmp_path)
    else:
        _run(guard, tmp_path)
        assert "and does not fit into 1.0 MiB" in capsys.readouterr().err


def test_a_warning_guard_is_silent_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _play(monkeypatch, 80 * GIB)
    trainer = _trainer(tmp_path, guard := Guard(seq_len=16))
    guard.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert "fitplan" not in capsys.readouterr().err


def test_a_plan_that_fails_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _play(monkeypatch, 80 * GIB)
    _run(Guard(action="refuse", seq_len=-1), tmp_path)
    assert "no plan for this training: seq_len" in capsys.readouterr().err


def test_an_action_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="action is refuse, warn or log"):
        Guard(action="stop")
