"""What is written as a file of another tool is read as the job that was estimated; or it is not written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import fitplan
from fitplan.cli.main import main
from fitplan.errors import InputError
from fitplan.question import Question
from fitplan.settings import Decides
from fitplan.setup import SETTINGS
from fitplan.writers import TOOLS, write_config

MODEL = "llama-3.2-1b"
IMPOSSIBLE = {"method": "full", "dtype": "bfloat16"}
"""LLaMA-Factory trains float32 weights under autocast, or bfloat16 ones without."""
JOBS: list[dict[str, Any]] = [
    {"method": "full"},
    IMPOSSIBLE,
    {"method": "lora"},
    {"method": "lora", "target_modules": "q_proj,v_proj", "lora_r": 8, "lora_alpha": 64, "lora_dropout": 0.1},
    {"method": "lora", "target_modules": "all-linear", "use_dora": True, "optim": "adamw_8bit"},
    {"method": "lora", "modules_to_save": "lm_head,embed_tokens", "gradient_accumulation_steps": 4},
    {"method": "qlora"},
    {"method": "qlora", "batch_size": 3, "seq_len": 640},
    {"method": "qlora", "gradient_checkpointing": True, "attn": "eager"},
]
OF_ONE: dict[str, list[dict[str, Any]]] = {
    "trl": [
        {"method": "lora", "padding": "packed"},
        {"method": "lora", "padding": "free"},
        {"method": "full", "objective": "dpo", "precompute_ref_log_probs": True},
        {"method": "qlora", "objective": "kto", "quant": "int8"},
        {"method": "qlora", "quant": "fp4", "double_quant": True, "use_liger_kernel": True},
    ],
    "llamafactory": [{"method": "lora", "use_liger_kernel": True}, {"method": "qlora", "quant": "int8"}],
    "axolotl": [{"method": "lora", "padding": "max_length"}, {"method": "qlora", "padding": "packed", "batch_size": 1}],
}


def _report(tool: str, settings: dict[str, Any]) -> fitplan.CheckReport:
    return fitplan.check(MODEL, gpu="h100", stack=tool, **settings)


@pytest.mark.parametrize(
    ("tool", "settings"),
    [(tool, job) for tool in TOOLS for job in (*JOBS, *OF_ONE[tool]) if (tool, job) != ("llamafactory", IMPOSSIBLE)],
    ids=str,
)
def test_what_is_written_is_read_as_what_was_estimated(tool: str, settings: dict[str, Any], tmp_path: Path) -> None:
    report = _report(tool, settings)
    file = tmp_path / "train.yaml"
    file.write_text(write_config(report, tool))
    read, asked = Question(file, gpu="h100").job().setup.to_dict(), report.plans[0].setup.to_dict()
    for name, one in SETTINGS.items():
        if one.decides is not Decides.NOTHING and name not in ("task", "attn"):
            listed = isinstance(asked[name], list)
            assert (sorted(read[name]) if listed else read[name]) == (sorted(asked[name]) if listed else asked[name])
    assert read["stack"] == tool


def test_a_job_that_the_tool_would_not_run_is_not_written() -> None:
    with pytest.raises(InputError, match=r"TRL would run another job: .*loss fused, not logits.* choose stack trl"):
        write_config(fitplan.check(MODEL, gpu="h100", method="qlora"), "trl")
    with pytest.raises(InputError, match=r"LLaMA-Factory would run another job: .*kbit_prepare off, not on"):
        write_config(fitplan.check(MODEL, gpu="h100", method="qlora"), "llamafactory")
    with pytest.raises(InputError, match="dtype float32, not bfloat16"):
        write_config(_report("llamafactory", IMPOSSIBLE), "llamafactory")
    with pytest.raises(InputError, match="one method at a time"):
        write_config(fitplan.check(MODEL, gpu="h100", stack="trl", dtype="bfloat16"), "trl")


def test_the_command_writes_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["check", MODEL, "--gpu", "h100", "--stack", "trl", "--method", "lora", "--emit", "trl"]
    assert main(asked) == 0
    written = capsys.readouterr().out
    assert written.startswith("# TRL. fitplan predicts ")
    assert yaml.safe_load(written)["use_peft"] is True
    assert main([*asked[:-1], "axolotl"]) == 2
    assert "Axolotl would run another job" in capsys.readouterr().err
