"""Runs an emitted script in a process of its own, and tells which settings were in force."""

import json
import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SCALARS = 64
"""Bytes of counters and learning rates that ``Trainer`` keeps and the step does not."""

_IMPORTED = ["torch", "transformers.trainer", "transformers.models.auto.modeling_auto", "peft", "bitsandbytes"]


def start(script: Path, *arguments: str) -> ForkServerProcess:
    """The script in a process that has the libraries imported already, which alone would take ten seconds.

    What was in force is written beside the script (:func:`finish` reads it), with what it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_run, args=(script, arguments))
    process.start()
    return process


def finish(process: ForkServerProcess, script: Path) -> dict[str, Any]:
    """Wait for the script; the settings that were in force, and what it allocated."""
    process.join(120)
    log = script.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    assert process.exitcode == 0, log[-3000:]
    found: dict[str, Any] = json.loads(script.with_suffix(".json").read_text(encoding="utf-8"))
    return found | {"log": log}


def _run(script: Path, arguments: tuple[str, ...]) -> None:
    log = os.open(script.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(script.parent)

    import torch
    from transformers import Trainer

    from fitplan.trace.recorder import Recorder

    torch.set_num_threads(1)
    recorder = Recorder("cpu")
    found: dict[str, Any] = {}
    train = Trainer.train

    def watched(trainer: Any) -> None:
        for tensor in (*trainer.model.parameters(), *trainer.model.buffers()):
            tensor.detach()  # shows the recorder what was mapped from the file
        loaded, start = _live(recorder), len(recorder.trace.events)
        train(trainer)
        found.update(_in_force(trainer), steps=trainer.state.global_step, peak=_peak(recorder, start) - loaded)

    Trainer.train = watched  # type: ignore[method-assign,assignment]
    sys.argv = [str(script), *arguments]
    with recorder:
        runpy.run_path(str(script), run_name="__main__")
    script.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")


def _live(recorder: Any) -> int:
    return sum(recorder.trace.allocations[number].size for _, number in recorder._live.values())


def _peak(recorder: Any, start: int) -> int:
    total = peak = 0
    for place, (allocation, sign, _) in enumerate(recorder.trace.sizes()):
        total += sign * allocation.size
        if place >= start:
            peak = max(peak, total)
    return peak


def _in_force(trainer: Any) -> dict[str, Any]:
    batch = next(iter(trainer.get_train_dataloader()))
    return {
        "model": describe(trainer.model),
        "arguments": json.loads(json.dumps(trainer.args.to_dict(), default=str)),
        "batch": {name: list(tensor.shape) for name, tensor in batch.items()},
        "padded": bool((batch["attention_mask"] == 0).any()),
    }


def describe(model: Any) -> dict[str, Any]:
    """What a model is as it is trained, as JSON-ready values: what the script and the step must agree in."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    quantization = getattr(base.config, "quantization_config", None)
    adapters = getattr(model, "peft_config", {}).get("default")
    lora = ("r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "modules_to_save", "bias")
    return {
        "class": type(base).__name__,
        "attn": base.config._attn_implementation,
        "use_cache": base.config.use_cache,
        "parameters": {
            name: [str(param.dtype), list(param.shape), param.requires_grad] for name, param in model.named_parameters()
        },
        "quantization": json.loads(quantization.to_json_string(use_diff=False)) if quantization else None,
        "lora": {name: _plain(getattr(adapters, name, None)) for name in lora} if adapters else None,
        "reentrant": sorted(
            {
                module._gradient_checkpointing_func.keywords["use_reentrant"]
                for module in base.modules()
                if getattr(module, "gradient_checkpointing", False)
            }
        ),
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list) else value
