"""QLoRA with ``transformers.Trainer``, as in peft's guide: ``trainer_qlora.py MODEL LENGTH [ROWS]``."""

import sys

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

name, length, batch = sys.argv[1], int(sys.argv[2]), int([*sys.argv, "1"][3])
four_bit = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
model = AutoModelForCausalLM.from_pretrained(
    name, dtype=torch.bfloat16, quantization_config=four_bit, device_map={"": 0}
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
row = {"input_ids": list(range(5, 5 + length)), "labels": list(range(5, 5 + length))}
arguments = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=batch,
    bf16=True,
    gradient_checkpointing=True,
    max_steps=10,
    report_to=[],
    save_strategy="no",
)
Trainer(model=model, args=arguments, train_dataset=[row] * 40 * batch).train()
