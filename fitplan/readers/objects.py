"""Objects of transformers, trl and peft, as keys and values: what a program trains with, asked from inside it."""

from collections.abc import Mapping
from typing import Any

from fitplan.errors import InputError
from fitplan.readers import huggingface
from fitplan.readers.reading import Keys, Reading
from fitplan.setup import Method, Stack, as_bitsandbytes_says

_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "activation_checkpointing",
    "bf16", "fp16", "optim", "use_liger_kernel", "max_length", "packing", "packing_strategy", "padding_free", "beta",
    "precompute_ref_log_probs", "desirable_weight", "undesirable_weight", "num_generations", "max_completion_length",
    "deepspeed", "fsdp", "fsdp_config", "eval_strategy", "torch_compile", "neftune_noise_alpha",
    "activation_offloading", "label_smoothing_factor", "auto_find_batch_size",
)  # fmt: skip
"""Of a hundred and more, those that are read."""
_ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "use_dora",
            "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules", "target_parameters")  # fmt: skip


def read_training_objects(
    model: Any, args: Any = None, *, peft_config: Any = None, quantization_config: Any = None
) -> Reading:
    """What a program trains with, as :func:`fitplan.check` takes it in the place of a model.

    Args:
        model: a name, path or config, as for :func:`fitplan.check`.
        args: ``transformers.TrainingArguments``, or a config of trl made from it.
        peft_config: ``peft.LoraConfig``.
        quantization_config: ``transformers.BitsAndBytesConfig``.

    Raises:
        InputError: an object is of another kind, or says what cannot be.

    """
    values = {name: value for name, value in _dictionary(args, "args").items() if name in _ARGUMENTS}
    is_trl = type(args).__module__.partition(".")[0] == "trl"
    if is_trl and not isinstance(init := getattr(args, "model_init_kwargs", None) or {}, str):
        values |= {key: str(init[key]).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in init}
    ranks = getattr(getattr(args, "distributed_state", None), "num_processes", 1)
    if isinstance(ranks, int) and ranks > 1:
        values["num_processes"] = ranks
    adapter, quantised = (
        _dictionary(peft_config, "peft_config"),
        _dictionary(quantization_config, "quantization_config"),
    )
    name = type(args).__name__ if args is not None else type(peft_config).__name__
    keys = Keys(name, "TRL" if is_trl else "transformers", values)
    keys.settings["stack"] = Stack.TRL if is_trl else Stack.TRAINER
    keys.settings["method"] = Method.FULL if not adapter else Method.QLORA if quantised else Method.LORA
    if quantised and not adapter:
        raise InputError(
            "quantised weights are trained with adapters only; give peft_config, or drop quantization_config"
        )
    huggingface.read_objects(keys, is_trl=is_trl)
    if adapter:
        _adapters(keys, {key: adapter[key] for key in _ADAPTER if adapter.get(key) not in (None, {}, [])}, adapter)
    if quantised:
        _quantised(keys, quantised)
    return keys.read(model)


def _dictionary(given: Any, what: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not hasattr(given, "to_dict"):
        raise InputError(f"{what} is a {type(given).__name__}, which has no to_dict; give the library's own object")
    found: Mapping[str, Any] = given.to_dict()
    return found


def _adapters(keys: Keys, said: Mapping[str, Any], adapter: Mapping[str, Any]) -> None:
    kind = str(adapter.get("peft_type", "LORA")).rpartition(".")[2]
    if kind != "LORA":
        raise InputError(f"peft_config of type {kind} is not read here, only LORA; give its settings by hand")
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}
    huggingface.take_adapter(Keys(keys.file, keys.tool, plain, keys.settings, keys.understood))


def _quantised(keys: Keys, said: Mapping[str, Any]) -> None:
    settings = as_bitsandbytes_says(said)
    if not settings:
        raise InputError("quantization_config loads nothing in 4 or 8 bits; drop it")
    keys.settings |= settings
