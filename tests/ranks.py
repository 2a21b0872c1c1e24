"""Jobs on two GPUs, small enough for two processes on the CPU."""

from typing import Any

from families import FAMILIES

from fitplan.setup import TrainingSetup

LLAMA = FAMILIES["llama"]
ODD = {**LLAMA, "num_hidden_layers": 3, "vocab_size": 131}
"""Its vocabulary cannot be divided by two."""


def _case(settings: dict[str, Any], strategy: str, **setup: Any) -> tuple[dict[str, Any], TrainingSetup]:
    common = {"method": "full", "batch_size": 2, "seq_len": 16, "gpus": 2, "strategy": strategy}
    return settings, TrainingSetup.from_dict(common | setup)


PLAIN: dict[str, Any] = {"mixed_precision": "no"}
CASES = {
    "fsdp2": _case(LLAMA, "fsdp2"),
    "fsdp2-float32": _case(LLAMA, "fsdp2", dtype="float32", **PLAIN),
    "fsdp2-no-autocast": _case(LLAMA, "fsdp2", **PLAIN),
    "fsdp2-gathered": _case(LLAMA, "fsdp2", reshard_after_forward=False),
    "fsdp2-uneven": _case(ODD, "fsdp2"),
    "fsdp2-no-checkpointing": _case(LLAMA, "fsdp2", gradient_checkpointing=False),
    "fsdp2-accumulated": _case(LLAMA, "fsdp2", gradient_accumulation_steps=2),
    "fsdp2-lora": _case(LLAMA, "fsdp2", method="lora"),
    "fsdp2-qlora": _case(LLAMA, "fsdp2", method="qlora", kbit_prepare=False),
    "fsdp2-qlora-sharded": _case(LLAMA, "fsdp2", method="qlora", kbit_prepare=False, quant_storage="bfloat16"),
    "fsdp2-tied": _case(FAMILIES["qwen2"], "fsdp2"),
    "fsdp2-mixtral": _case(FAMILIES["mixtral"], "fsdp2"),
    "fsdp2-gpt2": _case(FAMILIES["gpt2"], "fsdp2"),
    "fsdp1": _case(LLAMA, "fsdp1"),
    "fsdp1-no-autocast": _case(LLAMA, "fsdp1", **PLAIN),
    "fsdp1-uneven": _case(ODD, "fsdp1", use_orig_params=False, **PLAIN),
    "fsdp1-flat": _case(LLAMA, "fsdp1", use_orig_params=False),
    "fsdp1-gathered": _case(LLAMA, "fsdp1", reshard_after_forward=False),
    "fsdp1-prefetched": _case(LLAMA, "fsdp1", backward_prefetch="backward_pre"),
    "fsdp1-lora": _case(LLAMA, "fsdp1", method="lora"),
    "fsdp1-qlora": _case(LLAMA, "fsdp1", method="qlora", kbit_prepare=False, quant_storage="bfloat16"),
    "ddp": _case(LLAMA, "ddp"),
    "ddp-views": _case(LLAMA, "ddp", gradient_as_bucket_view=True),
    "ddp-accumulated": _case(LLAMA, "ddp", gradient_accumulation_steps=2),
    "ddp-lora": _case(LLAMA, "ddp", method="lora"),
    "ddp-qlora": _case(LLAMA, "ddp", method="qlora"),
    "ddp-tied": _case(FAMILIES["qwen2"], "ddp"),
}
