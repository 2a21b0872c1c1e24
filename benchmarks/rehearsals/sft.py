"""QLoRA of an 8B model with TRL, as people write it."""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

name = "unsloth/Meta-Llama-3.1-8B"
four_bit = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, quantization_config=four_bit),
    args=SFTConfig(output_dir="out", max_length=4096, per_device_train_batch_size=2, bf16=True, report_to=[]),
    train_dataset=Dataset.from_dict({"text": ["the same words over and over, " * 2000] * 100}),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
