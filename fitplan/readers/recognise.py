"""Whose file it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fitplan.configs.resolve import adapter_file
from fitplan.errors import InputError
from fitplan.readers import axolotl, huggingface, llamafactory, parallel, torchtune
from fitplan.readers.load import MOST_BYTES, load
from fitplan.readers.reading import Keys, Reading

Holds = Callable[[Mapping[str, Any]], bool]


def _has(*keys: str) -> Holds:
    return lambda values: all(key in values for key in keys)


def _any(*keys: str) -> Holds:
    return lambda values: any(key in values for key in keys)


def _of_torchtune(values: Mapping[str, Any]) -> bool:
    parts = [part for part in values.values() if isinstance(part, Mapping)]
    return any(str(part.get("_component_", "")).startswith("torchtune.") for part in parts)


_TOOLS: tuple[tuple[str, Holds, Callable[[Keys], Reading]], ...] = (
    ("peft (adapter_config.json)", _has("peft_type"), huggingface.read_adapter),
    ("torchtune", _of_torchtune, torchtune.read),
    ("Axolotl", _has("base_model"), axolotl.read),
    (
        "LLaMA-Factory",
        _any("stage", "finetuning_type", "cutoff_len", "export_dir", "quantization_bit", "template", "infer_backend"),
        llamafactory.read,
    ),
    ("accelerate", _any("compute_environment", "distributed_type"), parallel.read_accelerate),
    ("DeepSpeed", _any("zero_optimization", "train_micro_batch_size_per_gpu"), parallel.read_deepspeed),
    ("transformers (trainer_state.json)", _has("log_history"), huggingface.read_state),
    ("TRL", huggingface.is_of_trl, huggingface.read_trl),
    (
        "transformers (TrainingArguments)",
        _any("per_device_train_batch_size", "gradient_accumulation_steps", "model_name_or_path"),
        huggingface.read_arguments,
    ),
)


def reader_of(values: Mapping[str, Any]) -> tuple[str, Callable[[Keys], Reading]] | None:
    """Whose keys these are, and who reads them."""
    return next(((tool, read) for tool, holds, read in _TOOLS if holds(values)), None)


def read_training_file(named: Any) -> Reading | None:
    """The training file that is named; ``None`` where a model is: a name, a folder, a model's config.

    A folder with adapters and no model is its ``adapter_config.json``.

    Raises:
        InputError: a file that is no model's config is none of a tool that is known here either, or is damaged.
        MissingDependency: PyYAML is not installed.

    """
    if not isinstance(named, str | Path):
        return None
    file = adapter_file(named) or Path(named)
    is_yaml = file.suffix.lower() in (".yaml", ".yml")
    try:
        if not is_yaml and not (file.suffix.lower() == ".json" and file.is_file()):
            return None
        if is_yaml and not file.exists():
            raise InputError(f"{named} does not exist")
    except (OSError, ValueError):
        return None
    if not is_yaml and file.stat().st_size > MOST_BYTES:
        return None  # whatever it is, the model's reader says so
    try:
        values = load(file)
    except InputError:
        if is_yaml:
            raise
        return None
    if not is_yaml and (not isinstance(values, dict) or "model_type" in values):
        return None
    if not isinstance(values, dict):
        raise InputError(f"{named} holds a {type(values).__name__}, not settings; give a training file")
    values = {str(key): value for key, value in values.items()}
    if (found := reader_of(values)) is not None:
        tool, read = found
        return read(Keys(str(named), tool, values))
    if is_yaml:
        raise InputError(
            f"{named} is no training file of Axolotl, LLaMA-Factory, TRL, torchtune, transformers, accelerate or "
            "DeepSpeed; give one of those, or a model"
        )
    return None
