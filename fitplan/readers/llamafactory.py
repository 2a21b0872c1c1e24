"""Files of LLaMA-Factory, as its arguments of 0.9.5 read them (``hparams/``)."""

from fitplan.errors import InputError
from fitplan.readers.common import ONE_GPU, evaluation, optimizer
from fitplan.readers.huggingface import PER_DEVICE
from fitplan.readers.parallel import share
from fitplan.readers.reading import Keys, Reading, fraction, names, whole
from fitplan.setup import ALL_LINEAR, Attention, Dtype, Method, MixedPrecision, Padding, Quant, Stack

_LEFT_OUT = {
    "deepspeed": ONE_GPU,
    "use_unsloth": "Unsloth's kernels, which makes the answer too high",
    "use_unsloth_gc": "checkpoints on the host, which makes the answer too high",
    "use_galore": "its own optimizer states",
    "use_apollo": "its own optimizer states",
    "use_badam": "its own optimizer states",
    "use_adam_mini": "its own optimizer states",
    "use_muon": "its own optimizer states",
    "upcast_layernorm": "norms in float32",
    "shift_attn": "its attention",
    "neat_packing": "rows of several texts",
    "image_max_pixels": "images",
    "adapter_name_or_path": "an adapter that is there already",
}
_QUANTS = {4: Quant.NF4, 8: Quant.INT8}
_ATTENTION = {"fa2": Attention.FLASH_ATTENTION_2, "fa3": Attention.FLASH_ATTENTION_2, "sdpa": Attention.SDPA,
              "disabled": Attention.EAGER}  # fmt: skip


def read(keys: Keys) -> Reading:
    """A job of LLaMA-Factory."""
    if keys.get("stage") is None and not keys.is_on("do_train") and keys.get("per_device_train_batch_size") is None:
        what = "exports a model with" if keys.get("export_dir") is not None else "asks a model in"
        raise InputError(f"{keys.file} {what} LLaMA-Factory and trains none; give a training file")
    keys.settings["stack"] = Stack.LLAMAFACTORY
    stage = str(keys.get("stage", "sft"))
    keys.know("stage", stage)
    if stage not in ("sft", "pt"):
        keys.left_out.append(f"stage {stage}: another loss than that of supervised fine-tuning")
    method = _method(keys)
    keys.settings["method"] = method
    keys.take({
        "cutoff_len": "seq_len",
        "per_device_train_batch_size": "batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
    }, whole)  # fmt: skip
    if method is not Method.FULL:
        _adapters(keys)
    _precision(keys, method)
    if (attention := _ATTENTION.get(str(keys.get("flash_attn", "auto")))) is not None:
        keys.put("flash_attn", "attn", attention)
    keys.know("flash_attn", keys.understood.get("flash_attn", "as transformers chooses"))
    off = keys.is_on("disable_gradient_checkpointing")
    keys.settings["gradient_checkpointing"] = not off
    keys.know("disable_gradient_checkpointing", f"gradient_checkpointing {'off' if off else 'on'}")
    if keys.is_on("enable_liger_kernel"):
        keys.put("enable_liger_kernel", "use_liger_kernel", True)
    if keys.is_on("packing") or keys.is_on("neat_packing"):
        keys.put("packing", "padding", Padding.PACKED if keys.is_on("neat_packing") else Padding.NONE)
    optimizer(keys, "optim")
    _evaluation(keys)
    keys.leave_out(_LEFT_OUT)
    share(keys, version=2)
    keys.know("model_name_or_path", "the model")
    model = keys.get("model_name_or_path")
    return keys.read(str(model) if model is not None else None)


def _evaluation(keys: Keys) -> None:
    named = str(keys.get("eval_strategy", "no")).lower()
    if (fraction(keys.get("val_size", 0)) or keys.get("eval_dataset")) and (named != "no" or keys.is_on("do_eval")):
        evaluation(keys, "per_device_eval_batch_size", PER_DEVICE)
    for key in ("val_size", "eval_dataset", "eval_strategy", "do_eval", "per_device_eval_batch_size"):
        keys.know(key, keys.understood.get(key, f"eval_batch_size {keys.settings.get('eval_batch_size', 'open')}"))


def _method(keys: Keys) -> Method:
    kind = str(keys.get("finetuning_type", "lora"))
    keys.know("finetuning_type", f"method {kind}")
    bits = whole(keys.get("quantization_bit"))
    if kind not in ("lora", "full"):
        keys.left_out.append(f"finetuning_type {kind}: it is answered as {'LoRA' if kind == 'oft' else 'full'}")
    if kind in ("full", "freeze"):
        return Method.FULL
    if bits is None:
        return Method.LORA
    if not isinstance(bits, int) or bits not in _QUANTS:
        bits = 4
        keys.left_out.append(f"quantization_bit {keys.get('quantization_bit')}: it is answered as 4")
    keys.put("quantization_bit", "quant", _QUANTS[bits])
    if str(keys.get("quantization_method", "bnb")).lower() not in ("bnb", "bitsandbytes"):
        keys.left_out.append(f"quantization_method {keys.get('quantization_method')}: it is answered as bitsandbytes")
    keys.know("quantization_method", "bitsandbytes")
    if keys.settings["quant"] is Quant.NF4 and keys.get("double_quantization") is not None:
        keys.put("double_quantization", "double_quant", keys.is_on("double_quantization"))
    return Method.QLORA


def _adapters(keys: Keys) -> None:
    keys.take({"lora_rank": "lora_r", "lora_alpha": "lora_alpha"}, whole)
    if "lora_alpha" not in keys.settings and "lora_r" in keys.settings:
        keys.settings["lora_alpha"] = 2 * keys.settings["lora_r"]
    keys.take({"lora_dropout": "lora_dropout"}, fraction)
    target = keys.get("lora_target", "all")
    every = target == "all" or target == ["all"]
    if every:
        keys.settings["target_modules"] = ALL_LINEAR
        keys.know("lora_target", f"target_modules {ALL_LINEAR}")
    else:
        keys.put("lora_target", "target_modules", names(target))
    keys.take({"additional_target": "modules_to_save"}, names)
    for key in ("use_dora", "use_rslora"):
        if keys.is_on(key):
            keys.put(key, key, True)


def _precision(keys: Keys, method: Method) -> None:
    """Trained parameters are float32 unless ``pure_bf16`` is on."""
    for key in ("bf16", "fp16", "pure_bf16"):
        keys.know(key, "the precision")
    if keys.is_on("pure_bf16"):
        keys.settings |= {"dtype": Dtype.BFLOAT16, "mixed_precision": MixedPrecision.NO}
        if method is not Method.FULL:
            keys.settings["adapter_dtype"] = Dtype.BFLOAT16
        return
    half = keys.is_on("fp16")
    if method is not Method.FULL:
        keys.settings["dtype"] = Dtype.FLOAT16 if half else Dtype.BFLOAT16
    keys.settings["mixed_precision"] = MixedPrecision.FP16 if half else MixedPrecision.BF16
