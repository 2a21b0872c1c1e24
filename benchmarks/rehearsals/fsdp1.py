"""FSDP1 through Trainer: ``torchrun --nproc-per-node 2 fsdp1.py full|lora ROWS``: Mistral-7B, 4096 tokens.

As in the runs of fms-acceleration whose figures are public (transformers 4.48.1, accelerate 1.3, peft 0.14; 2 x A100).
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

method, batch = sys.argv[1], int(sys.argv[2])
name = sys.argv[3] if len(sys.argv) > 3 else "mistralai/Mistral-7B-v0.1"
model = AutoModelForCausalLM.from_pretrained(
    name, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, attn_implementation="sdpa", use_cache=False
)
model.enable_input_require_grads()
if method == "lora":
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
arguments = TrainingArguments(
    "out",
    per_device_train_batch_size=batch,
    max_steps=3,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": True},
    report_to="none",
    save_strategy="no",
    logging_steps=1,
    optim="adamw_torch",
    fsdp="full_shard auto_wrap",
    fsdp_config={
        "backward_prefetch": "backward_pre",
        "forward_prefetch": False,
        "use_orig_params": method == "full",
        "cpu_ram_efficient_loading": True,
        "sync_module_states": True,
    },
)
row = {"input_ids": [5] * 4096, "labels": [5] * 4096}
trainer = Trainer(model=model, args=arguments, train_dataset=[row] * 64)
torch.cuda.reset_peak_memory_stats()
trainer.train()
print("GiB:", torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
