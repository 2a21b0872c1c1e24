"""TRL's own ``SFTTrainer`` on one GPU, job by job, held against what is predicted for ``--stack trl``.

    python benchmarks/trl_matrix.py --predict predicted.json     # here, before; needs no GPU and no trl
    python benchmarks/trl_matrix.py --run measured.json          # on a machine with a GPU and trl 1.16, four minutes
    python benchmarks/trl_matrix.py --compare predicted.json measured.json
    python benchmarks/trl_matrix.py --write                      # the tables of docs/stacks.md, from benchmarks/trl

Allocated is what ``torch.cuda.max_memory_allocated`` counts: with the rests of blocks that are too small to split off.
Weights are random and rows are made up; both are as large as those of the models and lengths that the jobs name.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

KEPT = ROOT / "benchmarks" / "trl"
PAGE = ROOT / "docs" / "stacks.md"
BEGIN, END = "<!-- trl: begin -->", "<!-- trl: end -->"
TABLES = (
    (
        """\
On a real H200, predicted with the libraries of the run (torch 2.11, transformers 5.17), for an H100. Of the twelve jobs
below, these nine ran until the time was up:""",
        "predicted-torch-2.11", "measured-h200",
    ),
    ("On a real H100 with the same libraries; these predictions were made after the runs:",
     "predicted-torch-2.11", "measured-h100"),
    ("The same runs, as they were predicted before with torch 2.13 and transformers 5.23:",
     "predicted", "measured-h100"),
    ("Rehearsed on an H100 that is not there (torch 2.14, transformers 5.24), the same trainer, unmodified:",
     "predicted", "rehearsed-h100"),
)  # fmt: skip
"""Words, predictions and runs; the latter are files of ``benchmarks/trl``."""

GPU = "h100"
STEPS = 3
PLAIN = {"target_modules": "all-linear", "lora_dropout": 0.0, "dtype": "bfloat16"}
JOBS: dict[str, dict[str, Any]] = {
    "trl sft, lora, as it comes": {"model": "qwen2.5-1.5b", "method": "lora"},
    "trl sft, qlora, as it comes": {"model": "qwen2.5-1.5b", "method": "qlora"},
    "trl sft, full, as it comes": {"model": "qwen3-0.6b", "method": "full"},
    "full, bfloat16, packed": {"model": "qwen3-0.6b", "method": "full", "dtype": "bfloat16", "padding": "packed",
                               "batch_size": 4},
    "lora, bfloat16": {"model": "llama-3.2-1b", "method": "lora", "dtype": "bfloat16"},
    "lora, padding-free": PLAIN | {"model": "llama-3.2-1b", "method": "lora", "padding": "free", "batch_size": 4,
                                   "seq_len": 512},
    "lora, long, accumulated": PLAIN | {"model": "llama-3.2-1b", "method": "lora", "batch_size": 1, "seq_len": 8192,
                                        "gradient_accumulation_steps": 4},
    "qlora, long": PLAIN | {"model": "llama-3.2-1b", "method": "qlora", "batch_size": 1, "seq_len": 8192},
    "qlora, packed": PLAIN | {"model": "qwen2.5-1.5b", "method": "qlora", "batch_size": 2, "seq_len": 2048,
                              "padding": "packed"},
    "qlora, 8-bit AdamW": PLAIN | {"model": "qwen2.5-1.5b", "method": "qlora", "batch_size": 4, "seq_len": 1024,
                                   "optim": "adamw_8bit"},
    "full, no checkpointing": {"model": "qwen3-0.6b", "method": "full", "dtype": "bfloat16", "batch_size": 2,
                               "gradient_checkpointing": False},
    "lora, dropout, no checkpointing": {"model": "qwen3-0.6b", "method": "lora", "dtype": "bfloat16", "batch_size": 2,
                                        "gradient_checkpointing": False},
}  # fmt: skip


def predict(out: Path) -> None:
    import fitplan
    from fitplan.tracer import tracing_here

    found = {}
    for name, job in JOBS.items():
        settings = {"stack": "trl", **job}
        with tracing_here():
            plan = fitplan.check(settings.pop("model"), gpu=GPU, trace=True, **settings).plans[0]
        estimate = plan.estimate
        found[name] = {
            "setup": plan.setup.to_dict(),
            "allocated": estimate.peak_allocated_bytes + plan.memory.unsplit_bytes,
            "reserved": estimate.peak_reserved_bytes,
            "versions": plan.versions,
        }
        print(f"{name:34} {found[name]['allocated'] / 2**30:8.3f} {found[name]['reserved'] / 2**30:8.3f}")
    out.write_text(json.dumps(found, indent=1))


def run(out: Path, rehearsed: bool) -> None:
    """Each job in a process of its own; what was measured is kept as it comes."""
    ahead = [sys.executable, "-m", "fitplan", "rehearse", "--gpu", GPU, "--steps", "0", "--"] if rehearsed else []
    found = json.loads(out.read_text()) if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in JOBS if name not in found]:
            done = subprocess.run(
                [*ahead, sys.executable, __file__, "--job", name, "--models", folder],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            line = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('{"allocated"')] or [
                ""
            ]
            try:
                found[name] = json.loads(line[0])
                print(name, *(f"{found[name][key] / 2**30:.3f}" for key in ("allocated", "reserved")), flush=True)
            except ValueError:
                print(name, "failed:", done.stderr[-1500:], flush=True)
            out.write_text(json.dumps(found, indent=1))


def _checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of random weights in bfloat16, made once."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from fitplan.configs.resolve import resolve_model

    path = folder / name
    if not path.exists():
        settings = dict(resolve_model(name).settings)
        config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def one_job(name: str, folder: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path[:2]!r}\n"
         f"from trl_matrix import _checkpoint; from pathlib import Path; "
         f"print(_checkpoint({JOBS[name]['model']!r}, Path({str(folder)!r})))"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    ).stdout.splitlines()[-1]  # fmt: skip
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    from fitplan.question import Question

    job = {"stack": "trl", **JOBS[name]}
    question = Question(job.pop("model"), GPU, method=job.pop("method"), settings=tuple(job.items()))
    setup = question.job().setup
    rows = setup.batch_size * setup.gradient_accumulation_steps * STEPS
    length = setup.seq_len if setup.padding != "packed" else setup.seq_len // 2
    texts = rows if setup.padding != "packed" else 2 * rows
    data = Dataset.from_dict({"input_ids": [[2] * length for _ in range(texts)]})
    init = {} if setup.dtype == "float32" else {"dtype": str(setup.dtype)}
    arguments = trl.SFTConfig(
        output_dir=str(folder / "out"),
        max_length=None if setup.padding == "free" else setup.seq_len,
        per_device_train_batch_size=setup.batch_size,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        gradient_checkpointing=setup.gradient_checkpointing,
        optim=str(setup.optim),
        packing=setup.padding == "packed",
        padding_free=setup.padding == "free",
        model_init_kwargs=init,
        max_steps=STEPS,
        report_to="none",
        save_strategy="no",
    )
    adapters, quantised = None, None
    if setup.method != "full":
        named = setup.target_modules
        targets = None if named == "peft-default" else named if isinstance(named, str) else list(named)
        adapters = LoraConfig(
            r=setup.lora_r, lora_alpha=setup.lora_alpha, lora_dropout=setup.lora_dropout, target_modules=targets,
            task_type="CAUSAL_LM",
        )  # fmt: skip
    if setup.method == "qlora":
        quantised = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=str(setup.quant), bnb_4bit_use_double_quant=setup.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, str(setup.compute_dtype)),
        )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=path, args=arguments, train_dataset=data, processing_class=_tokenizer(), peft_config=adapters,
        quantization_config=quantised,
    )  # fmt: skip
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    print()
    print(json.dumps({
        "allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "trl": trl.__version__,
    }))  # fmt: skip


def compared(predicted: Path, measured: Path, what: str = "measured") -> str:
    """The table of the jobs that were run, in Markdown."""
    before, after = json.loads(predicted.read_text()), json.loads(measured.read_text())
    lines = [f"| job | {what}: allocated / reserved, GiB | predicted | error, % |", f"{'| --- ' * 4}|"]
    for name, real in after.items():
        said = before[name]
        sizes = [f"{one['allocated'] / 2**30:.3f} / {one['reserved'] / 2**30:.3f}" for one in (real, said)]
        errors = [f"{100 * (said[key] / real[key] - 1):+.3f}" for key in ("allocated", "reserved")]
        lines.append(f"| {name} | {sizes[0]} | {sizes[1]} | {' / '.join(errors)} |")
    return "\n".join(lines)


def section() -> str:
    """The tables of the page, from what is kept."""
    parts = [BEGIN]
    for words, predicted, measured in TABLES:
        what = measured.partition("-")[0]
        parts += [words, compared(KEPT / f"{predicted}.json", KEPT / f"{measured}.json", what)]
    return "\n\n".join([*parts, END])


def write() -> None:
    """Put the tables into the page."""
    from measured import put_into

    put_into(PAGE, BEGIN, END, section())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", type=Path, metavar="FILE")
    parser.add_argument("--run", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--rehearse", action="store_true", help="on a GPU that is not there, about ten minutes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        try:
            one_job(options.job, options.models)
        except Exception:
            traceback.print_exc()
            return 1
    if options.predict:
        predict(options.predict)
    if options.run:
        run(options.run, options.rehearse)
    if options.compare:
        print(compared(*options.compare))
    if options.write:
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
