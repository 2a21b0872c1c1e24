"""One job with TRL: ``trl_job.py '{"trainer": "SFT", "method": "qlora", "length": 2048}'``.

Rows are made of text that gives so many tokens with a tokenizer of four characters a token, as hollow checkpoints have.
"""

import json
import sys

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

job = {
    "trainer": "SFT", "model": "unsloth/Meta-Llama-3.1-8B", "method": "qlora", "length": 2048, "batch": 1, "rows": 16,
    "lengths": None, "completion": None, "kbit": False, "evaluate": 0, "arguments": {},
} | json.loads(sys.argv[1])  # fmt: skip
kind, length = job["trainer"], job["length"]


def text(tokens: int) -> str:
    return "abcd" * int(tokens)


def row(number: int) -> dict:
    tokens = job["lengths"][number % len(job["lengths"])] if job["lengths"] else length + 8
    match kind:
        case "DPO":
            return {"prompt": text(length // 2), "chosen": text(length // 2 + 8), "rejected": text(length // 2 + 8)}
        case "Reward":
            return {"chosen": text(length - 1), "rejected": text(length - 1)}
        case "KTO":
            return {"prompt": text(length // 2), "completion": text(length // 2 + 8), "label": bool(number % 2)}
        case "GRPO":
            return {"prompt": text(length)}
    if job["completion"]:
        prompt = int(length * job["completion"])
        return {"prompt": text(prompt), "completion": text(tokens - prompt)}
    return {"text": text(tokens)}


settings = {"dtype": torch.bfloat16}
if job["method"] != "full":
    settings["device_map"] = {"": 0}
if job["method"] == "qlora":
    settings["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
if kind == "Reward":
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, **settings)
    model.config.pad_token_id = 0
else:
    model = AutoModelForCausalLM.from_pretrained(job["model"], **settings)
if job["kbit"]:
    model = prepare_model_for_kbit_training(model)
task = "SEQ_CLS" if kind == "Reward" else "CAUSAL_LM"
adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)
chosen = {
    "output_dir": "out", "per_device_train_batch_size": job["batch"], "max_steps": 3, "bf16": True, "report_to": "none",
    "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip
if kind != "GRPO":
    chosen["max_length"] = length
extra = {}
if kind == "GRPO":
    extra["reward_funcs"] = lambda completions, **_: [float(i % 4) for i in range(len(completions))]
if job["evaluate"]:
    extra["eval_dataset"] = Dataset.from_list([row(i) for i in range(job["evaluate"])])
trainer = getattr(trl, f"{kind}Trainer")(
    model=model,
    args=getattr(trl, f"{kind}Config")(**chosen | job["arguments"]),
    processing_class=AutoTokenizer.from_pretrained(job["model"]),
    train_dataset=Dataset.from_list([row(i) for i in range(job["rows"])]),
    peft_config=None if job["method"] == "full" else adapter,
    **extra,
)
torch.cuda.reset_peak_memory_stats()
trainer.train()
print("MiB:", torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20)
