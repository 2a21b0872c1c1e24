"""Questions as people put them, each with the command that answers it and what it says: ``python docs/questions.py``.

They are those that come up again and again in the issues of fine-tuning tools; their answers need no torch and no GPU.
"""

import contextlib
import io
import os
import shlex
from pathlib import Path

PAGE = Path(__file__).with_name("questions.md")
WIDTH = 110

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("Can I fine-tune Llama-3.1-8B on a 4090?", "check llama-8b --gpu 4090"),
    ("Can I QLoRA a 70B model on one A6000 (48 GB)?", "advise llama-70b --gpu A6000 --method qlora"),
    ("LoRA or QLoRA for Mistral-7B on 24 GB, at 4096 tokens?", "check mistral-7b --gpu 4090 --seq-len 4096"),
    ("What can I fine-tune on a free Colab T4?", "fits llama qwen2.5 gemma --gpu t4 --method qlora"),
    ("Which models can I train fully on an 80 GB card?", "fits 7b 8b 3b --gpu A100 --method full"),
    ("How many GPUs do I need for a full fine-tune of Llama-3.1-8B?", "check llama-8b --gpu 2xA100 --method full"),
    ("Full fine-tune of a 70B on eight H100?", "check llama-70b --gpu 8xH100 --method full"),
    (
        "With two 4090, does each card need less? (DDP)",
        "check llama-8b --gpu 2x4090 --strategy ddp --method lora",
    ),
    ("And with FSDP?", "check llama-8b --gpu 2x4090 --strategy fsdp2 --method lora"),
    ("My batch of 4 x 4096 tokens runs out of memory on a 4090. What now?",
     "advise mistral-7b --gpu 4090 --method lora --batch-size 4 --seq-len 4096"),
    ("Llama-2-13B QLoRA on a T4, batch 4?", "advise llama-2-13b --gpu t4 --method qlora --batch-size 4"),
    ("How long a sequence can I train on a 4090?", "map llama-8b --gpu 4090 --method qlora"),
    ("How much more does one more row take? And 1024 more tokens?", "explain llama-8b --gpu 4090 --method qlora"),
    (
        "What does gradient checkpointing save me?",
        "diff llama-8b --gpu A100 --method lora -- --no-gradient-checkpointing",
    ),
    ("Is Liger worth it?", "diff llama-8b --gpu 4090 --method qlora --seq-len 4096 -- --use-liger-kernel"),
    ("Does 8-bit Adam help a full fine-tune?", "diff llama-3.2-1b --gpu 4090 --method full -- --optim adamw_8bit"),
    ("Does 8-bit Adam help QLoRA?", "diff llama-8b --gpu 4090 --method qlora -- --optim adamw_8bit"),
    (
        "Why does TRL take less than my own Trainer script?",
        "diff llama-8b --gpu A100 --method qlora -- --stack trl --dtype bfloat16 --batch-size 1 --seq-len 2048 "
        "--target-modules all-linear --lora-dropout 0 --double-quant --compute-dtype bfloat16",
    ),
    ("Why does Qwen take so much more than Llama of the same size?", "diff llama-3.2-1b --method lora -- qwen2.5-1.5b"),
    ("Is rank 64 affordable?", "diff llama-8b --gpu 4090 --method qlora -- --lora-r 64"),
    ("What does k-bit preparation cost?", "diff llama-8b --gpu 4090 --method qlora -- --no-kbit-prepare"),
    ("QLoRA of Mixtral on one A100?", "check mixtral-8x7b --gpu A100 --method qlora"),
    ("Can I train flan-t5-xl on a 3090?", "check flan-t5-xl --gpu 3090"),
    (
        "BERT, full, batch 32 x 512, on 8 GB?",
        "check bert-large-uncased --vram 8GiB --method full --batch-size 32 --seq-len 512",
    ),
    ("GPT-2 from a laptop card with 6 GB?", "check gpt2 --gpu 2060 --method full --batch-size 8"),
    ("Which card should I rent for LoRA on Qwen2.5-32B?", "advise qwen2.5-32b --gpu 4090 --method lora"),
    ("8192 tokens with Llama-3-8B on a T4: why so much?", "check llama-3-8b --gpu t4 --method qlora --seq-len 8192"),
    ("What would my scheduler have to reserve?", "check llama-8b --method lora --seq-len 2048"),
    ("How far can this 80 GB card go with Llama-3.1-70B?", "advise llama-70b --gpu H100 --method qlora"),
    ("Is a smaller Gemma possible on 12 GB?", "fits gemma --vram 12GiB"),
)  # fmt: skip


def answered(command: str) -> str:
    """What the command prints on a terminal of :data:`WIDTH` columns, its notes first."""
    from fitplan.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(shlex.split(command))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return (err.getvalue() + out.getvalue()).strip()


def page() -> str:
    """The page, with every question asked anew."""
    from schemas import no_torch

    parts = [
        "# Thirty questions",
        "As people put them, with the command that answers and what it says, without torch and without a GPU. Made by "
        "`python docs/questions.py`; the tests ask them again.",
    ]
    with no_torch():
        for number, (question, command) in enumerate(QUESTIONS, 1):
            parts += [f"## {number}. {question}", f"```\n$ fitplan {command}\n{answered(command)}\n```"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
