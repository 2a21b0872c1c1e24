"""Files of TRL, transformers and peft: their arguments by name.

Sources: trl 1.16 ``trainer/sft_config.py`` and ``trainer/model_config.py``; transformers 5.24
``training_args.py``; peft 0.21 ``tuners/lora/config.py``.
"""

from collections.abc import Mapping
from typing import Any

from fitplan.errors import InputError
from fitplan.readers.common import ONE_GPU, attention_named, evaluation, optimizer
from fitplan.readers.parallel import share
from fitplan.readers.reading import Keys, Reading, fraction, names, whole
from fitplan.setup import ALL_LINEAR, PEFT_DEFAULT, Dtype, Method, MixedPrecision, Objective, Padding, Quant, Stack

_OF_TRL = (
    "max_length", "max_seq_length", "packing", "padding_free", "use_peft", "lora_r", "load_in_4bit", "num_generations",
    "max_completion_length", "max_prompt_length", "dataset_mixture", "completion_only_loss", "beta", "loss_type",
)  # fmt: skip
_LEFT_OUT = {
    "deepspeed": ONE_GPU,
    "parallelism_config": ONE_GPU,
    "torch_compile": "compiled code may keep less",
    "neftune_noise_alpha": "noise on the embeddings",
    "optim_target_modules": "optimizer states of low rank",
    "auto_find_batch_size": "a batch that is made smaller where it does not fit",
    "label_smoothing_factor": "a loss from all logits",
}
PER_DEVICE = 8
"""``per_device_train_batch_size`` and ``per_device_eval_batch_size`` where nobody says."""
_TRAINING = {
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
_DTYPES = {"bfloat16": Dtype.BFLOAT16, "float16": Dtype.FLOAT16, "float32": Dtype.FLOAT32, "bf16": Dtype.BFLOAT16,
           "fp16": Dtype.FLOAT16, "fp32": Dtype.FLOAT32, "auto": Dtype.BFLOAT16}  # fmt: skip


def is_of_trl(values: Mapping[str, Any]) -> bool:
    """Whether arguments are TRL's, not transformers' alone."""
    return any(key in values for key in _OF_TRL) and any(
        key in values for key in ("model_name_or_path", "per_device_train_batch_size", "learning_rate", "output_dir")
    )


def read_trl(keys: Keys) -> Reading:
    """A job of TRL."""
    keys.settings["stack"] = Stack.TRL
    method = _method(keys)
    keys.settings["method"] = method
    _arguments(keys)
    _length(keys)
    if method is not Method.FULL:
        keys.take({"lora_r": "lora_r", "lora_alpha": "lora_alpha"}, whole)
        keys.take({"lora_dropout": "lora_dropout"}, fraction)
        _targets(keys, "lora_target_modules")
        keys.take({"lora_modules_to_save": "modules_to_save", "lora_target_parameters": "target_parameters"}, names)
        for key in ("use_rslora", "use_dora"):
            if keys.is_on(key):
                keys.put(key, key, True)
    _rows(keys)
    _other_losses(keys)
    return _done(keys)


def _rows(keys: Keys) -> None:
    if keys.is_on("packing") and str(keys.get("packing_strategy", "bfd")) != "wrapped":
        keys.put("packing", "padding", Padding.PACKED)
    elif keys.is_on("padding_free"):
        keys.put("padding_free", "padding", Padding.FREE)
    for key in ("packing", "packing_strategy", "padding_free"):
        keys.know(key, keys.understood.get(key, "how rows are laid out"))


def read_arguments(keys: Keys) -> Reading:
    """Arguments of ``transformers.Trainer``."""
    keys.settings["stack"] = Stack.TRAINER
    _arguments(keys)
    keys.take({"block_size": "seq_len", "max_seq_length": "seq_len"}, whole)
    return _done(keys)


def read_objects(keys: Keys, *, is_trl: bool) -> None:
    """Arguments as an object has them: all of them, with their defaults."""
    _arguments(keys)
    if is_trl:
        _length(keys)
        _rows(keys)
        _other_losses(keys)
    keys.leave_out(_LEFT_OUT)
    share(keys, version=2)
    _evaluation(keys)


def _evaluation(keys: Keys) -> None:
    """``TrainingArguments.eval_strategy``: evaluation before the steps, or between them, takes the same."""
    named = str(keys.get("eval_strategy", keys.get("evaluation_strategy", "no"))).rpartition(".")[2].lower()
    if named != "no" or keys.is_on("do_eval"):
        evaluation(keys, "per_device_eval_batch_size", PER_DEVICE)
    for key in ("eval_strategy", "evaluation_strategy", "do_eval", "per_device_eval_batch_size"):
        keys.know(key, keys.understood.get(key, f"eval_batch_size {keys.settings.get('eval_batch_size', 'open')}"))


def _done(keys: Keys) -> Reading:
    keys.leave_out(_LEFT_OUT)
    share(keys, version=2)
    _evaluation(keys)
    keys.know("model_name_or_path", "the model")
    model = keys.get("model_name_or_path")
    return keys.read(str(model) if model is not None else None)


def _method(keys: Keys) -> Method:
    four, eight = keys.is_on("load_in_4bit"), keys.is_on("load_in_8bit")
    adapted = keys.is_on("use_peft")
    for key in ("load_in_4bit", "load_in_8bit", "use_peft"):
        keys.know(key, "the method")
    if not adapted:
        if four or eight:
            keys.traps.append("load_in_4bit or load_in_8bit without use_peft: quantised weights cannot be trained; "
                              "it is answered with adapters")  # fmt: skip
        elif keys.get("lora_r") is not None:
            keys.traps.append("lora_r without use_peft: TRL trains all weights; say use_peft true for adapters")
        if not (four or eight):
            return Method.FULL
    if not (four or eight):
        return Method.LORA
    keys.settings["quant"] = Quant.INT8 if eight else Quant.NF4
    if four:
        if (kind := keys.get("bnb_4bit_quant_type")) is not None:
            keys.put("bnb_4bit_quant_type", "quant", str(kind))
        keys.settings["double_quant"] = keys.is_on("use_bnb_nested_quant")
        keys.know("use_bnb_nested_quant", "double_quant")
    return Method.QLORA


def _length(keys: Keys) -> None:
    keys.take({"max_length": "seq_len"}, whole)
    if (longest := keys.get("max_seq_length")) is not None and "seq_len" not in keys.settings:
        keys.put("max_seq_length", "seq_len", whole(longest))
        keys.traps.append(
            f"max_seq_length {longest}: TRL has called it max_length since 0.20, and `trl sft` takes 1024 without a "
            "word where it reads the old name; the answer is for what the file means"
        )


GRPO_COMPLETION, GRPO_PROMPT = 512, 512
"""``GRPOConfig.max_completion_length``, and ``max_prompt_length`` of the versions that had it."""


def _grpo(keys: Keys) -> None:
    """The batch counts answers, each behind its prompt; only answers are scored."""
    keys.settings["objective"] = Objective.GRPO
    prompt = whole(keys.get("max_prompt_length", GRPO_PROMPT))
    completion = whole(keys.get("max_completion_length", GRPO_COMPLETION))
    keys.settings["completion_len"] = completion
    if "max_completion_length" in keys.values:
        keys.put("max_completion_length", "completion_len", completion)
    if isinstance(prompt, int) and isinstance(completion, int):
        keys.settings["seq_len"] = prompt + completion
        keys.know("max_prompt_length", f"seq_len {prompt + completion}")
    if keys.get("max_prompt_length") is None:
        keys.traps.append(f"prompts are as long as the data has them: {prompt} tokens are taken; give seq_len")
    if keys.get("beta") is not None:
        keys.put("beta", "beta", fraction(keys.get("beta")))
    keys.know("num_generations", "answers to one prompt, which are rows of the batch")
    keys.left_out.append("the writing of the answers: its cache, beside the model and its optimizer")


def _other_losses(keys: Keys) -> None:
    if keys.get("num_generations") is not None or keys.get("max_completion_length") is not None:
        _grpo(keys)
        if keys.is_on("use_vllm"):
            share = keys.get("vllm_gpu_memory_utilization", 0.3)
            keys.left_out.append(f"use_vllm: vLLM takes {share} of the GPU for itself where it shares it")
        for key in ("use_vllm", "vllm_gpu_memory_utilization"):
            keys.know(key, "not in the answer")
    elif keys.get("center_rewards_coefficient") is not None:
        keys.settings["objective"] = Objective.REWARD
    elif keys.get("desirable_weight") is not None or keys.get("undesirable_weight") is not None:
        keys.settings["objective"] = Objective.KTO
    elif keys.get("beta") is not None or keys.get("loss_type") in ("sigmoid", "ipo", "hinge", "apo_zero"):
        keys.settings["objective"] = Objective.DPO
    for key in ("beta", "desirable_weight", "undesirable_weight", "center_rewards_coefficient"):
        keys.know(key, keys.understood.get(key, f"objective {keys.settings.get('objective', 'sft')}"))
    if keys.is_on("precompute_ref_log_probs"):
        keys.put("precompute_ref_log_probs", "precompute_ref_log_probs", True)
    if keys.get("loss_type") == "chunked_nll":
        keys.put("loss_type", "loss", "chunked")


def _arguments(keys: Keys) -> None:
    """Of ``TrainingArguments`` and of how the model is loaded."""
    keys.take(_TRAINING, whole)
    checkpointing = (
        "activation_checkpointing" if "activation_checkpointing" in keys.values else "gradient_checkpointing"
    )
    if keys.get(checkpointing) is not None:
        keys.put(checkpointing, "gradient_checkpointing", keys.is_on(checkpointing))
    elif keys.settings["stack"] is Stack.TRAINER:
        keys.settings["gradient_checkpointing"] = False
    attention_named(keys, "attn_implementation")
    optimizer(keys, "optim")
    if keys.is_on("activation_offloading"):
        keys.put("activation_offloading", "activation_offloading", True)
    if keys.is_on("use_liger_kernel") or keys.is_on("use_liger"):
        keys.put("use_liger_kernel" if keys.is_on("use_liger_kernel") else "use_liger", "use_liger_kernel", True)
    for key in ("dtype", "torch_dtype"):
        if (named := keys.get(key)) is not None:
            keys.put(key, "dtype", _DTYPES.get(str(named).removeprefix("torch."), named))
            if key == "torch_dtype" and keys.settings["stack"] is Stack.TRL:
                keys.traps.append(
                    f"torch_dtype {named}: TRL has called it dtype since 0.27, and `trl sft` loads float32 without a "
                    "word where it reads the old name; the answer is for what the file means"
                )
    for key in ("bf16", "fp16"):
        if keys.is_on(key):
            keys.put(key, "mixed_precision", MixedPrecision(key))
            return
    if keys.get("bf16") is not None or keys.settings["stack"] is Stack.TRAINER:
        keys.settings["mixed_precision"] = MixedPrecision.NO
        keys.know("bf16", "mixed_precision no")
        keys.know("fp16", "mixed_precision no")


def _targets(keys: Keys, key: str) -> None:
    target = keys.get(key)
    if target == ALL_LINEAR or target == [ALL_LINEAR]:
        keys.put(key, "target_modules", ALL_LINEAR)
    elif target is not None:
        keys.put(key, "target_modules", names(target))


def read_adapter(keys: Keys) -> Reading:
    """The adapter of a run: ``adapter_config.json``."""
    kind = str(keys.get("peft_type"))
    keys.know("peft_type", f"adapter {kind.lower()}")
    if kind != "LORA":
        raise InputError(f"{keys.file}: peft_type {kind} is not read here, only LORA; give its settings by hand")
    keys.settings["method"] = Method.LORA
    take_adapter(keys)
    keys.traps.append("it says nothing of quantisation, batch and length: those are fitplan's defaults, or yours")
    keys.know("base_model_name_or_path", "the model")
    model = keys.get("base_model_name_or_path")
    return keys.read(str(model) if model is not None else None)


def take_adapter(keys: Keys) -> None:
    """The fields of a ``LoraConfig``; what is not there has peft's default."""
    keys.settings |= {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": PEFT_DEFAULT}
    keys.take({"r": "lora_r", "lora_alpha": "lora_alpha"}, whole)
    keys.take({"lora_dropout": "lora_dropout"}, fraction)
    target = keys.get("target_modules")
    if target is not None:
        keys.put("target_modules", "target_modules", target)
    keys.take({"modules_to_save": "modules_to_save", "target_parameters": "target_parameters"}, names)
    keys.take({"exclude_modules": "exclude_modules"})
    for key in ("use_rslora", "use_dora"):
        if keys.is_on(key):
            keys.put(key, key, True)
    for key in ("rank_pattern", "alpha_pattern"):
        if keys.get(key):
            keys.put(key, key, keys.get(key))
    if isinstance(keys.settings.get("target_modules"), list) and keys.get("layers_to_transform") is not None:
        keys.put("layers_to_transform", "layers_to_transform", keys.get("layers_to_transform"))


def read_state(keys: Keys) -> Reading:
    """What a run left behind: ``trainer_state.json``."""
    keys.take({"train_batch_size": "batch_size"}, whole)
    keys.traps.append("it holds the batch size of a run, and no other setting")
    return keys.read(None)
