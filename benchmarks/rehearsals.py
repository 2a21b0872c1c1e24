"""Rehearses training stacks as their users start them, and sets each beside a figure from elsewhere.

    python benchmarks/rehearsals.py --environment trl=/envs/trl --environment deepspeed=/envs/deepspeed

Every environment is a folder with ``bin/python`` that has a CUDA build of PyTorch and the packages of its rows. Rows
whose environment is not named are left as they were. What a row told is kept as one JSON document in
``benchmarks/rehearsals/results``; the table is written from these to ``docs/rehearsals.md``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "rehearsals"
RESULTS = PROGRAMS / "results"
TABLE = HERE.parent / "docs" / "rehearsals.md"
GIB = 2**30
SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Row:
    """A program and the figure that it should meet.

    Attributes:
        name: of the row, and of its result.
        title: what runs.
        environment: where it runs.
        gpu: the GPU that is played.
        words: the command; the first is a program of the environment's ``bin``.
        allocated: the figure to meet, in GiB; ``None`` where there is none.
        source: of the figure.

    """

    name: str
    title: str
    environment: str
    gpu: str
    words: tuple[str, ...]
    allocated: float | None
    source: str


MEASURED = "measured, H100 80GB, torch 2.11"
TRACED = "`fitplan check --trace`"
FMS = "measured, fms-acceleration, 2 x A100"
NONE = "-"


def program(name: str, *words: str) -> tuple[str, ...]:
    """A program of ``benchmarks/rehearsals``."""
    return ("python", str(PROGRAMS / name), *words)


def ranks(name: str, *words: str) -> tuple[str, ...]:
    """The same on two GPUs."""
    return ("python", "-m", "torch.distributed.run", "--nproc-per-node", "2", str(PROGRAMS / name), *words)


def trl(**job: Any) -> tuple[str, ...]:
    """A job of TRL."""
    return program("trl_job.py", json.dumps(job))


SMALL, LARGE = "unsloth/Llama-3.2-1B", "unsloth/Llama-3.3-70B-Instruct"
EIGHT = "unsloth/Meta-Llama-3.1-8B"
GENERATING = {"num_generations": 8, "generation_batch_size": 8, "max_completion_length": 256}


def row(
    name: str, title: str, environment: str, gpu: str, words: tuple[str, ...], allocated: float | None, source: str
) -> Row:
    """One line of the table."""
    return Row(
        name=name, title=title, environment=environment, gpu=gpu, words=words, allocated=allocated, source=source
    )


ROWS = (
    row("trl-packed", "TRL SFT, packed, Llama-3.2-1B QLoRA, 2 x 1024", "trl", "h100",
        trl(model=SMALL, length=1024, batch=2, lengths=[350, 150, 750, 250], rows=128, arguments={"packing": True}),
        1531.2 / 1024, f"{MEASURED}; lengths of its rows not stated"),
    row("trl-grpo", "TRL GRPO, Llama-3.2-1B LoRA, 2 x 1024, 8 generations of 256", "trl", "h100",
        trl(trainer="GRPO", model=SMALL, method="lora", length=1024, batch=2, arguments=GENERATING),
        None, NONE),
    row("trainer-8b", "Trainer, Llama-3.1-8B QLoRA with k-bit preparation, 1 x 2048", "trl", "h100",
        program("trainer_qlora.py", EIGHT, "2048"), None, NONE),
    row("trainer-70b", "Trainer, Llama-3.3-70B QLoRA with k-bit preparation, 1 x 1024", "trl", "h100",
        program("trainer_qlora.py", LARGE, "1024"), None, NONE),
    row("fsdp2-accelerate", "accelerate launch, FSDP2, Llama-3.2-1B full, 1 x 2048", "trl", "a100",
        ("accelerate", "launch", "--config_file", str(PROGRAMS / "fsdp2.yaml"), str(PROGRAMS / "zero.py"),
         "accelerate", SMALL, "2048"), None, NONE),
    row("zero2", "ZeRO-2 through Trainer, Llama-3.2-1B full, 1 x 2048", "deepspeed", "a100",
        ranks("zero.py", "zero2", SMALL, "2048"), None, NONE),
    row("zero3", "ZeRO-3 through Trainer, Llama-3.2-1B full, 1 x 2048", "deepspeed", "a100",
        ranks("zero.py", "zero3", SMALL, "2048"), None, NONE),
    row("fsdp1-full", "FSDP1, Mistral-7B full, 2 x 4096", "fsdp1", "a100",
        ranks("fsdp1.py", "full", "2"), 33.738, FMS),
    row("fsdp1-lora-2", "FSDP1, Mistral-7B LoRA, 2 x 4096", "fsdp1", "a100",
        ranks("fsdp1.py", "lora", "2"), 14.105, FMS),
    row("fsdp1-lora-4", "FSDP1, Mistral-7B LoRA, 4 x 4096", "fsdp1", "a100",
        ranks("fsdp1.py", "lora", "4"), 20.452, FMS),
    row("axolotl", "axolotl, Llama-3.1-8B QLoRA r=32, 1 x 2048, 8-bit Adam", "axolotl", "a100",
        ("python", "-m", "axolotl.cli.train", str(PROGRAMS / "axolotl.yaml")), 9.266, TRACED),
    row("torchtune", "torchtune 0.6.1, Llama-3.2-3B full, 2 x 4096 packed, compiled, chunked loss, checkpoints",
        "torchtune", "a100", program("torchtune_3b.py"), 24.9, "measured, torchtune's README, A100 80GB"),
    row("torchtune-in-backward", "the same, optimizer in backward", "torchtune", "a100",
        program("torchtune_3b.py", "in_backward"), 23.1, "measured, torchtune's README, A100 80GB"),
    row("llamafactory", "LLaMA-Factory, Llama-2-7B (float16) QLoRA r=8, 1 x 2048, accumulation 4", "llamafactory",
        "a100",
        ("llamafactory-cli", "train", str(PROGRAMS / "llamafactory.yaml")), None, NONE),
    row("unsloth", "Unsloth, Llama-3.1-8B QLoRA r=16, 1 x 2048, 8-bit Adam", "unsloth", "a100",
        program("unsloth_qlora.py", EIGHT, "2048", "1"), None, NONE),
)  # fmt: skip


def write_rows(folder: Path) -> None:
    """Data for the stacks that read it from files: rows that are longer than the longest sequence."""
    text = "abcd" * 2100
    (folder / "rows.jsonl").write_text("\n".join([json.dumps({"text": text})] * 16), encoding="utf-8")
    pair = {"instruction": text[: len(text) // 2], "input": "", "output": text}
    (folder / "rows.json").write_text(json.dumps([pair] * 16), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")


def run(one: Row, environment: Path) -> str:
    """Rehearse a row; how it ended, in a word or two."""
    command = [str(environment / "bin" / one.words[0]), *one.words[1:]]
    with tempfile.TemporaryDirectory(prefix="rows-") as name:
        write_rows(Path(name))
        asked = [
            sys.executable,
            "-m",
            "fitplan",
            "rehearse",
            "--json",
            "--timeout",
            str(SECONDS),
            "--gpu",
            one.gpu,
            "--",
        ]
        done = subprocess.run([*asked, *command], cwd=name, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    if told["verdict"] is None:
        return f"the program failed with exit code {told['exit_code']}: {done.stderr.strip().splitlines()[-1]}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{one.name}.json").write_text(json.dumps(_kept(told), indent=1) + "\n", encoding="utf-8")
    return str(told["verdict"])


def _kept(told: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a rehearsal."""
    of_rank = ("rank", "steps", "peak_allocated_bytes", "peak_reserved_bytes", "device_bytes")
    found = [{name: rank[name] for name in of_rank} | {"peaks_in": rank["peak"]["phase"]} for rank in told["ranks"]]
    return {"gpu": told["gpu"], "ranks": found, "assumed": told["assumed"], "provenance": told["provenance"]}


HEAD = """\
# Training stacks, rehearsed

Written by `benchmarks/rehearsals.py`. Every figure in the column *rehearsed* comes from a rehearsal: the program ran on
the real CUDA libraries and a GPU that was not there. None was measured on a GPU; where the figure beside it was, its
source says so. Three optimizer steps each; of several ranks, the fullest.

| job | GPU | rehearsed: allocated / reserved, GiB | figure to meet | its source | difference | versions |
| --- | --- | ---: | ---: | --- | ---: | --- |
"""


def table() -> str:
    """The rows that have a result."""
    lines = [line(one, json.loads(path.read_text())) for one in ROWS if (path := RESULTS / f"{one.name}.json").exists()]
    return HEAD + "".join(lines)


def line(one: Row, told: dict[str, Any]) -> str:
    """One of them."""
    fullest = max(told["ranks"], key=lambda rank: rank["peak_allocated_bytes"])
    allocated, reserved = fullest["peak_allocated_bytes"] / GIB, fullest["peak_reserved_bytes"] / GIB
    count = told["gpu"]["count"]
    gpu = f"{count} x {told['gpu']['name']}" if count > 1 else told["gpu"]["name"]
    versions = ", ".join(f"{name} {version}" for name, version in told["provenance"]["versions"].items() if version)
    met = f"{one.allocated:.3f}" if one.allocated else NONE
    difference = f"{round(100 * (allocated / one.allocated - 1), 2) + 0.0:+.2f} %" if one.allocated else NONE
    cells = (one.title, gpu, f"{allocated:.3f} / {reserved:.3f}", met, one.source, difference, versions)
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Run what can be run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--only", action="append", metavar="ROW", help="run these rows alone")
    options = parser.parse_args()
    environments = {name: Path(folder) for name, _, folder in (one.partition("=") for one in options.environment)}
    for one in ROWS:
        if one.environment in environments and (options.only is None or one.name in options.only):
            print(f"{one.name}: {run(one, environments[one.environment])}", flush=True)
    TABLE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
