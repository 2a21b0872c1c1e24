"""What TRL took: its trainers' own runs, unmodified, and what the step that is traced for them must give.

``real``: an H100 80GB HBM3, torch 2.11, transformers 5.17, trl 1.16, 2026-11-25. ``rehearsed``: an A100 that was not
there, torch 2.14, transformers 5.24, trl 1.16 (0.24 with transformers 5.6 and peft 0.18.1), 2026-11-25. Hollow
checkpoints, full rows, three steps; GiB of ``max_memory_allocated`` and ``max_memory_reserved``. Full fine-tuning is
left out of the rehearsed ones: their way of keeping values true held the gradient of a tied head twice (0.489 GiB of
Llama-3.2-1B), which the real ones do not.
"""

from typing import Any

_8B = {"model": "llama-3.1-8b", "method": "qlora", "batch_size": 1, "seq_len": 2048}
_1B = {"model": "llama-3.2-1b", "method": "full", "batch_size": 1, "seq_len": 2048}
_DPO = {"objective": "dpo", "seq_len": 1024}
_GRPO = {"objective": "grpo", "batch_size": 4, "seq_len": 384, "completion_len": 128}
"""Four answers of 128 tokens to a prompt of 256."""
_REWARD = {"task": "sequence-classification", "num_labels": 1, "batch_size": 4, "seq_len": 1024}
"""Two pairs."""

Run = tuple[str, float, float, dict[str, Any]]

REAL: list[Run] = [
    ("qlora 1 x 2048", 6.646, 6.984, _8B),
    ("qlora 1 x 4096", 7.570, 8.057, _8B | {"seq_len": 4096}),
    ("qlora 4 x 1024", 7.568, 8.055, _8B | {"batch_size": 4, "seq_len": 1024}),
    ("lora 1 x 2048", 16.649, 16.949, _8B | {"method": "lora"}),
    ("lora 1 x 4096", 17.807, 18.295, _8B | {"method": "lora", "seq_len": 4096}),
    ("full 1b", 9.771, 10.258, _1B),
    ("full 3b", 24.747, 25.740, _1B | {"model": "llama-3.2-3b"}),
    ("no checkpointing", 17.073, 17.330, _8B | {"gradient_checkpointing": False}),
    ("packed", 6.661, 7.002, _8B | {"padding": "packed"}),
    ("Liger", 6.544, 6.805, _8B | {"use_liger_kernel": True}),
    ("k-bit preparation", 9.424, 9.674, _8B | {"kbit_prepare": True}),
    ("dpo, lora", 16.649, 16.934, _8B | _DPO | {"method": "lora"}),
    ("dpo, qlora, 4 pairs", 9.523, 10.418, _8B | _DPO | {"batch_size": 4}),
    ("dpo, full", 12.074, 12.561, _1B | _DPO),
    ("kto, qlora", 6.646, 6.969, _8B | _DPO | {"objective": "kto", "batch_size": 2}),
    ("kto, full", 12.074, 12.559, _1B | _DPO | {"objective": "kto", "batch_size": 2}),
    ("reward, lora", 16.827, 17.406, _8B | _REWARD | {"method": "lora"}),
    ("reward, full", 9.324, 9.830, _1B | _REWARD),
]  # fmt: skip

REHEARSED: list[Run] = [
    ("dpo, qlora", 6.599, 6.898, _8B | _DPO),
    ("dpo, lora, qwen", 16.911, 17.262, _8B | _DPO | {"model": "qwen2.5-7b", "method": "lora", "seq_len": 2048}),
    ("qlora 1 x 2048", 6.599, 6.914, _8B),
    ("qlora 1 x 4096", 7.523, 7.994, _8B | {"seq_len": 4096}),
    ("qlora 4 x 1024", 7.521, 7.992, _8B | {"batch_size": 4, "seq_len": 1024}),
    ("no checkpointing", 17.027, 17.299, _8B | {"gradient_checkpointing": False}),
    ("accumulated 4 times", 6.677, 6.918, _8B | {"gradient_accumulation_steps": 4}),
    ("Liger", 6.498, 6.789, _8B | {"use_liger_kernel": True}),
    ("packed 1 x 2048", 6.614, 6.986, _8B | {"padding": "packed"}),
    ("packed 4 x 1024", 7.577, 8.090, _8B | {"batch_size": 4, "seq_len": 1024, "padding": "packed"}),
    ("padding-free 4 x 1022", 7.615, 8.057, _8B | {"batch_size": 4, "seq_len": 1022, "padding": "free"}),
    ("padded 4 x 1024", 7.580, 8.088, _8B | {"batch_size": 4, "seq_len": 1024, "padding": "longest"}),
    ("lora 1 x 2048", 16.603, 16.990, _8B | {"method": "lora"}),
    ("lora 1 x 4096", 17.761, 18.373, _8B | {"method": "lora", "seq_len": 4096}),
    ("lora in float32", 32.468, 32.785, _8B | {"method": "lora", "dtype": "float32"}),
    ("offloaded 1 x 2048", 6.221, 6.518, _8B | {"activation_offloading": True}),
    ("offloaded 1 x 4096", 6.684, 6.996, _8B | {"activation_offloading": True, "seq_len": 4096}),
    (
        "offloaded, lora, no checkpointing",
        3.185,
        3.500,
        {
            "model": "llama-3.2-1b",
            "method": "lora",
            "batch_size": 1,
            "seq_len": 2048,
            "activation_offloading": True,
            "gradient_checkpointing": False,
        },
    ),
    ("evaluated in batches of 8", 2.288, 2.820, _8B | {"model": "llama-3.2-1b", "eval_batch_size": 8}),
    ("half of each row scored", 6.599, 6.898, _8B | {"completion_len": 1024}),
    ("reward, qlora", 6.543, 6.936, _8B | {"objective": "reward", "batch_size": 2, "seq_len": 1024}),
    ("reward, lora", 16.781, 17.373, _8B | {"method": "lora", "objective": "reward", "batch_size": 2, "seq_len": 1024}),
    ("grpo, lora", 16.315, 16.613, _8B | _GRPO | {"method": "lora"}),
    ("grpo, qlora", 6.371, 6.744, _8B | _GRPO),
    ("0.24, lora", 18.910, 19.908, _8B | {"method": "lora", "stack_version": "0.24"}),
    ("0.24, qlora", 9.753, 11.168, _8B | {"stack_version": "0.24"}),
]


def question(run: Run) -> dict[str, Any]:
    """The run as ``fitplan.check`` is asked about it."""
    settings = {"stack": "trl", "dtype": "bfloat16", **run[3]}
    if settings["method"] != "full":
        settings |= {"target_modules": "all-linear", "lora_dropout": 0.0}
    if settings["method"] == "qlora":
        settings["double_quant"] = True
    return settings
