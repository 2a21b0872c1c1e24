"""Settings, written as files of other tools: the inverse of :mod:`fitplan.readers`.

What is written is read again. Where the tool would run another job than the one that was estimated, nothing is written,
and the settings in which the two differ are told.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fitplan.errors import InputError, MissingDependency
from fitplan.plan import CheckReport, Plan
from fitplan.question import Question
from fitplan.readers import axolotl, huggingface, llamafactory
from fitplan.readers.reading import Keys, Reading
from fitplan.settings import Decides, shown
from fitplan.setup import (
    ALL_LINEAR,
    END_TO_END,
    PEFT_DEFAULT,
    SETTINGS,
    Attention,
    Method,
    MixedPrecision,
    Objective,
    Padding,
    Quant,
    TrainingSetup,
)
from fitplan.units import gib

Values = dict[str, Any]


def write_config(report: CheckReport, tool: str) -> str:
    """A training file with the settings of a report on one method: YAML, with what is predicted at its head.

    Args:
        report: the answer.
        tool: one of :data:`TOOLS`.

    Raises:
        InputError: the report is on several methods, or the tool would run another job.
        MissingDependency: PyYAML is not installed.

    """
    from fitplan.emit import ONE_METHOD

    if len(report.plans) != 1:
        raise InputError(ONE_METHOD)
    (plan,) = report.plans
    title, write, read = _TOOLS[tool]
    values = {key: value for key, value in write(report, plan.setup).items() if value is not None}
    other = Question(
        read(Keys(f"the file of {title}", title, values)), gpu=report.gpu, settings=(("task", plan.setup.task),)
    ).job()
    _check_same(plan.setup, other.setup, title, tool)
    try:
        import yaml
    except ImportError:
        raise MissingDependency("writing a training file needs PyYAML; pip install pyyaml") from None
    return f"{_head(report, plan, title)}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


def _check_same(ours: TrainingSetup, theirs: TrainingSetup, title: str, tool: str) -> None:
    differ = [
        f"{one.name} {shown(getattr(theirs, one.name)) or 'open'}, not {shown(getattr(ours, one.name)) or 'open'}"
        for one in SETTINGS.values()
        if one.decides not in (Decides.NOTHING, Decides.ALLOCATOR) and one.name != "attn"
        and _told(getattr(ours, one.name)) != _told(getattr(theirs, one.name))
    ]  # fmt: skip
    if differ:
        raise InputError(
            f"{title} would run another job: {'; '.join(differ)}; choose stack {tool} and its defaults, or another form"
        )


def _told(value: Any) -> Any:
    """Names in any order are the same."""
    return sorted(map(str, value)) if isinstance(value, tuple) else value


def _head(report: CheckReport, plan: Plan, title: str) -> str:
    device = f" on {report.gpu.name}" if report.gpu is not None else ""
    return (
        f"# {title}. fitplan predicts {gib(plan.memory.bytes)}{device}, of which "
        f"{gib(plan.estimate.peak_allocated_bytes)} are allocated at the peak.\n"
        "# Add your data; nothing else here decides the memory."
    )


def _model(report: CheckReport) -> str:
    return report.model.pretrained or report.model.name


def _targets(setup: TrainingSetup) -> Any:
    return list(setup.target_modules) if isinstance(setup.target_modules, tuple) else setup.target_modules


def _attn(setup: TrainingSetup) -> str | None:
    return None if setup.attn in (None, Attention.SDPA) else str(setup.attn)


def _of_trl(report: CheckReport, setup: TrainingSetup) -> Values:
    adapted, quantised = setup.method is not Method.FULL, setup.method is Method.QLORA
    four = quantised and setup.quant is not Quant.INT8
    targets = _targets(setup)
    return {
        "model_name_or_path": _model(report),
        "dtype": str(setup.dtype),
        "attn_implementation": _attn(setup),
        "bf16": setup.mixed_precision is MixedPrecision.BF16,
        "fp16": True if setup.mixed_precision is MixedPrecision.FP16 else None,
        "output_dir": "out",
        "max_length": setup.seq_len,
        "per_device_train_batch_size": setup.batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "optim": str(setup.optim),
        "use_liger_kernel": True if setup.use_liger_kernel else None,
        "packing": True if setup.padding is Padding.PACKED else None,
        "padding_free": True if setup.padding is Padding.FREE else None,
        "beta": 0.1 if setup.objective is Objective.DPO else setup.beta,
        "center_rewards_coefficient": 0.0 if setup.objective is Objective.REWARD else None,
        "num_generations": setup.batch_size if setup.objective is Objective.GRPO else None,
        "max_prompt_length": setup.seq_len - (setup.completion_len or 0) if setup.objective is Objective.GRPO else None,
        "max_completion_length": setup.completion_len if setup.objective is Objective.GRPO else None,
        "eval_strategy": "no" if setup.eval_batch_size is None else "steps",
        "per_device_eval_batch_size": setup.eval_batch_size,
        "activation_offloading": True if setup.activation_offloading else None,
        "desirable_weight": 1.0 if setup.objective is Objective.KTO else None,
        "precompute_ref_log_probs": True if setup.precompute_ref_log_probs else None,
        "use_peft": True if adapted else None,
        "lora_r": setup.lora_r,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": setup.lora_dropout,
        "lora_target_modules": None if targets == PEFT_DEFAULT else targets,
        "lora_modules_to_save": list(setup.modules_to_save) if setup.modules_to_save else None,
        "use_dora": True if setup.use_dora else None,
        "use_rslora": True if setup.use_rslora else None,
        "load_in_4bit": True if four else None,
        "bnb_4bit_quant_type": str(setup.quant) if four else None,
        "use_bnb_nested_quant": setup.double_quant if four else None,
        "load_in_8bit": True if quantised and not four else None,
    }


def _of_llamafactory(report: CheckReport, setup: TrainingSetup) -> Values:
    adapted, quantised = setup.method is not Method.FULL, setup.method is Method.QLORA
    attention = {Attention.FLASH_ATTENTION_2: "fa2", Attention.EAGER: "disabled"}
    targets = _targets(setup)
    pure = setup.mixed_precision is MixedPrecision.NO
    return {
        "model_name_or_path": _model(report),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if adapted else "full",
        "lora_rank": setup.lora_r,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": setup.lora_dropout,
        "lora_target": ("all" if targets == ALL_LINEAR else ",".join(targets))
        if isinstance(targets, str | list)
        else None,
        "additional_target": ",".join(setup.modules_to_save) if setup.modules_to_save else None,
        "use_dora": True if setup.use_dora else None,
        "use_rslora": True if setup.use_rslora else None,
        "quantization_bit": (8 if setup.quant is Quant.INT8 else 4) if quantised else None,
        "double_quantization": setup.double_quant if quantised else None,
        "cutoff_len": setup.seq_len,
        "per_device_train_batch_size": setup.batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        "disable_gradient_checkpointing": not setup.gradient_checkpointing,
        "flash_attn": attention.get(setup.attn) if setup.attn is not None else None,
        "enable_liger_kernel": True if setup.use_liger_kernel else None,
        "neat_packing": True if setup.padding in END_TO_END else None,
        "optim": str(setup.optim),
        "val_size": None if setup.eval_batch_size is None else 0.01,
        "eval_strategy": None if setup.eval_batch_size is None else "steps",
        "per_device_eval_batch_size": setup.eval_batch_size,
        "bf16": setup.mixed_precision is MixedPrecision.BF16,
        "fp16": True if setup.mixed_precision is MixedPrecision.FP16 else None,
        "pure_bf16": True if pure else None,
        "output_dir": "out",
    }


def _of_axolotl(report: CheckReport, setup: TrainingSetup) -> Values:
    eight = setup.quant is Quant.INT8
    targets = _targets(setup)
    padded = setup.padding is Padding.MAX_LENGTH
    return {
        "base_model": _model(report),
        "adapter": {Method.FULL: None, Method.LORA: "lora", Method.QLORA: "lora" if eight else "qlora"}[setup.method],
        "load_in_4bit": True if setup.method is Method.QLORA and not eight else None,
        "load_in_8bit": True if eight else None,
        "lora_r": setup.lora_r,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": setup.lora_dropout,
        "lora_target_linear": True if targets == ALL_LINEAR else None,
        "lora_target_modules": targets if isinstance(targets, list) else None,
        "lora_modules_to_save": list(setup.modules_to_save) if setup.modules_to_save else None,
        "peft_use_dora": True if setup.use_dora else None,
        "peft_use_rslora": True if setup.use_rslora else None,
        "sequence_len": setup.seq_len,
        "micro_batch_size": setup.batch_size,
        "gradient_accumulation_steps": setup.gradient_accumulation_steps,
        "sample_packing": True if setup.padding is Padding.PACKED else None,
        "pad_to_sequence_len": True if padded else None,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "activation_offloading": True if setup.activation_offloading else None,
        "val_set_size": None if setup.eval_batch_size is None else 0.01,
        "eval_batch_size": setup.eval_batch_size,
        "optimizer": "adamw_bnb_8bit" if setup.optim == "adamw_8bit" else str(setup.optim),
        "attn_implementation": _attn(setup),
        "bf16": setup.mixed_precision is MixedPrecision.BF16,
        "fp16": True if setup.mixed_precision is MixedPrecision.FP16 else None,
        "output_dir": "out",
    }


_TOOLS: Mapping[
    str, tuple[str, Callable[[CheckReport, TrainingSetup], Values], Callable[[Keys], Reading]]
] = {
    "trl": ("TRL", _of_trl, huggingface.read_trl),
    "llamafactory": ("LLaMA-Factory", _of_llamafactory, llamafactory.read),
    "axolotl": ("Axolotl", _of_axolotl, axolotl.read),
}  # fmt: skip
TOOLS = tuple(_TOOLS)
"""Whose files are written."""
