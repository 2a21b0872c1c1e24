"""Configs of torchtune, as its recipes of 0.6 read them: the model is a builder's name."""

import re
from collections.abc import Mapping
from typing import Any

from fitplan.readers.common import ONE_GPU, optimizer
from fitplan.readers.reading import Keys, Reading, fraction, whole
from fitplan.setup import Dtype, Method, MixedPrecision, Stack

_MLP = ("gate_proj", "up_proj", "down_proj")
_OPTIMIZERS = {
    "torch.optim.AdamW": "adamw_torch", "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit", "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "torch.optim.SGD": "sgd",
}  # fmt: skip
_LEFT_OUT = {
    "optimizer_in_bwd": "gradients that are used up one by one, which makes the answer too high",
    "compile": "compiled code may keep less",
    "fsdp_cpu_offload": ONE_GPU,
    "tensor_parallel_dim": ONE_GPU,
}
_BUILDER = re.compile(r"(?:(q?lora)_)?([a-z]+)(\d*(?:_\d)?)_(\d+(?:_\d+)?[bm]|mini|medium)\w*")


def read(keys: Keys) -> Reading:
    """A job of torchtune."""
    keys.settings["stack"] = Stack.TRAINER
    model = _part(keys, "model")
    found = _BUILDER.fullmatch(str(model.get("_component_", "")).rpartition(".")[2])
    keys.know("model", str(model.get("_component_", "")))
    method = {None: Method.FULL, "lora": Method.LORA, "qlora": Method.QLORA}[found[1] if found else None]
    if method is Method.LORA and model.get("quantize_base") is True:
        method = Method.QLORA
    keys.settings["method"] = method
    if method is not Method.FULL:
        _adapters(keys, model)
    if method is Method.QLORA:
        keys.settings |= {"double_quant": True, "kbit_prepare": False}
        keys.left_out.append("torchao's NF4, whose products take other scratch memory than those of bitsandbytes")
    keys.take({"batch_size": "batch_size", "gradient_accumulation_steps": "gradient_accumulation_steps"}, whole)
    keys.settings["gradient_checkpointing"] = keys.is_on("enable_activation_checkpointing")
    keys.know("enable_activation_checkpointing", f"gradient_checkpointing {keys.settings['gradient_checkpointing']}")
    if keys.is_on("enable_activation_offloading"):
        keys.put("enable_activation_offloading", "activation_offloading", True)
    half = str(keys.get("dtype", "bf16")) in ("bf16", "bfloat16")
    keys.settings |= {
        "dtype": Dtype.BFLOAT16 if half else Dtype.FLOAT32,
        "mixed_precision": MixedPrecision.NO,
    }
    if half and method is not Method.FULL:
        keys.settings["adapter_dtype"] = Dtype.BFLOAT16
    keys.know("dtype", "dtype, without autocast")
    length = _part(keys, "tokenizer").get("max_seq_len")
    if length is not None:
        keys.put("tokenizer", "seq_len", whole(length))
    else:
        keys.traps.append("the tokenizer has no max_seq_len: rows are as long as the data; give seq_len")
    named = str(_part(keys, "optimizer").get("_component_", "torch.optim.AdamW"))
    at = Keys(keys.file, keys.tool, {"optimizer": named})
    optimizer(at, "optimizer", {name.lower(): optim for name, optim in _OPTIMIZERS.items()})
    keys.settings |= at.settings
    keys.left_out += at.left_out
    keys.know("optimizer", named)
    loss = str(_part(keys, "loss").get("_component_", ""))
    keys.know("loss", loss)
    if "Chunked" in loss or "LinearCrossEntropy" in loss:
        keys.left_out.append(f"{loss.rpartition('.')[2]}: a loss in pieces, which makes the answer too high")
    keys.leave_out(_LEFT_OUT)
    return keys.read(_model(found))


def _part(keys: Keys, key: str) -> Mapping[str, Any]:
    part = keys.get(key, {})
    return part if isinstance(part, Mapping) else {}


def _model(found: "re.Match[str] | None") -> str | None:
    """``lora_llama3_1_8b`` is llama-3.1-8b."""
    if found is None:
        return None
    _, family, version, size = found.groups()
    return "-".join(filter(None, [family, version.strip("_").replace("_", "."), size.replace("_", ".")]))


def _adapters(keys: Keys, model: Mapping[str, Any]) -> None:
    modules = model.get("lora_attn_modules")
    targets = [str(name).replace("output_proj", "o_proj") for name in modules] if isinstance(modules, list) else []
    if model.get("apply_lora_to_mlp") is True:
        targets += _MLP
    if targets:
        keys.settings["target_modules"] = targets
    if model.get("apply_lora_to_output") is True:
        keys.left_out.append("apply_lora_to_output: adapters on the output head")
    at = Keys(keys.file, keys.tool, {"lora_rank": 8, "lora_alpha": 16, **model})
    at.take({"lora_rank": "lora_r", "lora_alpha": "lora_alpha"}, whole)
    at.take({"lora_dropout": "lora_dropout"}, fraction)
    keys.settings |= at.settings
