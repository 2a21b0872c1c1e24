"""Files of Axolotl, as its schemas of 0.19 read them (``utils/schemas/``, ``loaders/model.py``)."""

from fitplan.readers.common import ONE_GPU, attention_named, evaluation, optimizer
from fitplan.readers.parallel import share
from fitplan.readers.reading import Keys, Reading, fraction, names, once, whole
from fitplan.setup import ALL_LINEAR, Attention, Dtype, Method, MixedPrecision, Padding, Quant, Stack

_LEFT_OUT = {
    "deepspeed": ONE_GPU,
    "tensor_parallel_size": ONE_GPU,
    "context_parallel_size": ONE_GPU,
    "rl": "another loss than that of supervised fine-tuning",
    "tokens": "rows that are added to the embedding",
    "unfrozen_parameters": "only these parameters are trained",
    "torch_compile": "compiled code may keep less",
    "gptq": "weights that are quantised already",
    "processor_type": "images",
    "chunked_cross_entropy": "a loss in pieces, which makes the answer too high",
    "cut_cross_entropy": "a loss without logits, which makes the answer too high",
    "plugins": "what they exchange in the model",
    "relora": "adapters that are merged during training",
    "lora_on_cpu": "adapters on the host",
}
_OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}


def read(keys: Keys) -> Reading:
    """A job of Axolotl."""
    keys.settings["stack"] = Stack.AXOLOTL
    method = _method(keys)
    keys.settings["method"] = method
    keys.take({"sequence_len": "seq_len", "micro_batch_size": "batch_size"}, whole)
    keys.take({"gradient_accumulation_steps": "gradient_accumulation_steps"}, whole)
    if method is not Method.FULL:
        _adapters(keys)
    _rows(keys)
    _precision(keys)
    _attention(keys)
    _checkpointing(keys)
    optimizer(keys, "optimizer", _OPTIMIZERS)
    _evaluation(keys)
    keys.leave_out(_LEFT_OUT)
    share(keys, version=1, by_config=True)
    model = keys.get("base_model")
    keys.know("base_model", "the model")
    return keys.read(str(model) if model is not None else None)


def _evaluation(keys: Keys) -> None:
    """Also before the first step (``eval_on_start``), in batches of ``eval_batch_size``, else as in training."""
    share = fraction(keys.get("val_set_size", 0))
    if (share or keys.get("test_datasets")) and str(keys.get("eval_strategy", "")) != "no":
        evaluation(keys, "eval_batch_size", keys.settings.get("batch_size", 1))
    for key in ("val_set_size", "eval_batch_size", "test_datasets", "eval_strategy"):
        keys.know(key, keys.understood.get(key, f"eval_batch_size {keys.settings.get('eval_batch_size', 'open')}"))


def _checkpointing(keys: Keys) -> None:
    value = str(keys.get("gradient_checkpointing", "")).lower()
    if value:
        keys.put("gradient_checkpointing", "gradient_checkpointing", value not in ("false", "no", "off", "0"))
    if keys.is_on("activation_offloading"):
        keys.put("activation_offloading", "activation_offloading", True)
        if keys.settings["method"] is not Method.FULL:
            keys.settings["gradient_checkpointing"] = False  # which it takes the place of (``loaders/model.py``)
    elif keys.get("activation_offloading") not in (None, False):
        keys.left_out.append("activation_offloading other than true: activations on the host")
        keys.know("activation_offloading", "not in the answer")
    if value in ("offload", "offload_disk", "unsloth"):
        keys.left_out.append(f"gradient_checkpointing {value}: on the host, which makes the answer too high")


def _method(keys: Keys) -> Method:
    adapter = str(keys.get("adapter", "")).lower()
    four, eight = keys.is_on("load_in_4bit"), keys.is_on("load_in_8bit")
    for key in ("adapter", "load_in_4bit", "load_in_8bit"):
        keys.know(key, "the method")
    if adapter == "qlora" and not eight:
        if not four:
            keys.traps.append("adapter qlora without load_in_4bit: Axolotl refuses that; load_in_4bit is taken as on")
        keys.settings["quant"] = Quant.NF4
        return Method.QLORA
    if adapter in ("lora", "qlora") and eight:
        keys.settings["quant"] = Quant.INT8
        return Method.QLORA
    if adapter == "lora" and four:
        keys.settings["dtype"] = Dtype.FLOAT32
        keys.traps.append(
            "adapter lora with load_in_4bit: Axolotl quantises for adapter qlora only, and prepares the model as if it "
            "were quantised, which makes all weights float32; say adapter qlora"
        )
        return Method.LORA
    if adapter and adapter != "lora":
        keys.left_out.append(f"adapter {adapter}: it is answered as LoRA")
    return Method.LORA if adapter else Method.FULL


def _adapters(keys: Keys) -> None:
    keys.take({"lora_r": "lora_r", "lora_alpha": "lora_alpha"}, whole)
    keys.take({"lora_dropout": "lora_dropout"}, fraction)
    targets = names(keys.get("lora_target_modules", []))
    if keys.is_on("lora_target_linear"):
        keys.put("lora_target_linear", "target_modules", ALL_LINEAR)
        keys.know("lora_target_modules", "among all linear layers")
    elif targets:
        keys.put("lora_target_modules", "target_modules", once(targets) if isinstance(targets, list) else targets)
    keys.take({"lora_modules_to_save": "modules_to_save", "lora_target_parameters": "target_parameters"}, names)
    if keys.is_on("peft_use_dora"):
        keys.put("peft_use_dora", "use_dora", True)
    if keys.is_on("peft_use_rslora"):
        keys.put("peft_use_rslora", "use_rslora", True)
    if keys.is_on("lora_fan_in_fan_out"):
        keys.know("lora_fan_in_fan_out", "takes no memory")


def _rows(keys: Keys) -> None:
    if keys.is_on("sample_packing"):
        rows, length = keys.settings.get("batch_size", 1), keys.settings.get("seq_len", 512)
        keys.settings |= {"batch_size": 1}
        keys.put("sample_packing", "padding", Padding.PACKED)
        keys.settings["seq_len"] = rows * length
        keys.understood["sample_packing"] = f"one row of {rows * length} tokens"
        keys.know("pad_to_sequence_len", "so it is, where rows are packed")
    elif keys.is_on("pad_to_sequence_len"):
        keys.put("pad_to_sequence_len", "padding", Padding.MAX_LENGTH)
    else:
        keys.settings["padding"] = Padding.LONGEST
        keys.know("pad_to_sequence_len", "padding longest")
        keys.know("sample_packing", "padding longest")


def _precision(keys: Keys) -> None:
    bfloat16 = keys.is_on("bf16") or keys.is_on("bfloat16") or str(keys.get("bf16", "auto")).lower() in ("auto", "full")
    for key in ("bf16", "fp16", "bfloat16", "float16"):
        keys.know(key, "the precision")
    if keys.is_on("float16"):
        keys.settings |= {"dtype": Dtype.FLOAT16, "mixed_precision": MixedPrecision.NO}
    elif keys.is_on("fp16"):
        keys.settings |= {"mixed_precision": MixedPrecision.FP16}
        keys.settings.setdefault("dtype", Dtype.FLOAT16)
    elif bfloat16:
        keys.settings |= {"mixed_precision": MixedPrecision.BF16}
        eight = keys.settings.get("quant") is Quant.INT8
        keys.settings.setdefault("dtype", Dtype.FLOAT16 if eight else Dtype.BFLOAT16)
    else:
        keys.settings |= {"mixed_precision": MixedPrecision.NO}
        keys.settings.setdefault("dtype", Dtype.FLOAT32)


_ATTENTION = {
    "flash_attention": Attention.FLASH_ATTENTION_2,
    "sdp_attention": Attention.SDPA,
    "eager_attention": Attention.EAGER,
}


def _attention(keys: Keys) -> None:
    for key, attention in _ATTENTION.items():
        if keys.is_on(key):
            keys.put(key, "attn", attention)
    attention_named(keys, "attn_implementation")
    for key in ("xformers_attention", "flex_attention", "sage_attention"):
        if keys.is_on(key):
            keys.left_out.append(f"{key}: it is answered as sdpa")
            keys.know(key, "sdpa")
