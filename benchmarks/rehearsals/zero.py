"""A strategy of ``transformers.Trainer``: ``torchrun --nproc-per-node 2 zero.py zero2|zero3|fsdp2 MODEL LENGTH``.

Full fine-tuning in bfloat16 with TRL's ``SFTTrainer``, which hands DeepSpeed and FSDP2 on to Trainer and accelerate.
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

strategy, name, length = sys.argv[1], sys.argv[2], int(sys.argv[3])


def deepspeed(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage, "overlap_comm": True, "contiguous_gradients": True},
    }


fsdp2 = {
    "version": 2,
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "cpu_ram_efficient_loading": True,
}
sharded = {
    "zero2": {"deepspeed": deepspeed(2)},
    "zero3": {"deepspeed": deepspeed(3)},
    "fsdp2": {"fsdp": "full_shard auto_wrap", "fsdp_config": fsdp2},
    "accelerate": {},  # what the launcher's own configuration says
}[strategy]
arguments = SFTConfig(  # before the model: ZeRO-3 divides it as it is loaded
    output_dir="out",
    per_device_train_batch_size=1,
    max_length=length,
    max_steps=3,
    bf16=True,
    report_to="none",
    save_strategy="no",
    logging_steps=1,
    **sharded,
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16),
    args=arguments,
    processing_class=AutoTokenizer.from_pretrained(name),
    train_dataset=Dataset.from_list([{"text": "abcd" * (length + 8)}] * 16),
)
torch.cuda.reset_peak_memory_stats()
trainer.train()
print("GiB:", torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
