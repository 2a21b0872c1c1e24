"""QLoRA with Unsloth, as in its notebooks: ``unsloth_qlora.py MODEL LENGTH ROWS``."""

import sys

from unsloth import FastLanguageModel  # isort: skip  (before trl and transformers, which it changes)
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

name, length, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model, tokenizer = FastLanguageModel.from_pretrained(
    name, max_seq_length=length, load_in_4bit=True, use_exact_model_name=True
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_alpha=16,
    use_gradient_checkpointing="unsloth",
)
arguments = SFTConfig(
    output_dir="out",
    max_length=length,
    per_device_train_batch_size=batch,
    gradient_accumulation_steps=1,
    max_steps=3,
    logging_steps=1,
    optim="adamw_8bit",
    report_to="none",
    save_strategy="no",
    dataset_num_proc=1,
)
rows = Dataset.from_list([{"text": "abcd" * (length + 8)}] * 16)
SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=arguments).train()
