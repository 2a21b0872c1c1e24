"""How much of its cache the allocator can give back: replays of traced jobs with less and less memory.

    python benchmarks/given_back.py --out profiles/allocator/given-back.json      # 10 minutes

A job whose device memory is a little above the GPU's runs if the allocator can give back enough of what it keeps. A
trace of that very job decides it. Without torch there is none, and what others could give back tells how likely it is.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from fitplan.allocator.settings import EXPANDABLE, PLAIN
from fitplan.errors import FitplanError
from fitplan.footprint.overhead import replayed
from fitplan.question import Question
from fitplan.tracer import installed_versions, trace_job, tracing_here

MODELS = (
    "llama-3.2-1b",
    "llama-3.1-8b",
    "qwen2.5-1.5b",
    "qwen3-4b",
    "qwen3-8b",
    "mistral-7b-v0.3",
    "gemma-2-2b",
    "phi-3-mini-4k",
    "gpt2",
    "llama-2-13b",
)
METHODS = ("full", "lora", "qlora")
SHAPES = ((1, 1024), (1, 4096), (4, 1024), (2, 2048))


def main() -> int:
    """Trace and replay; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = []
    with tracing_here():
        for name, method, (batch_size, seq_len) in product(MODELS, METHODS, SHAPES):
            if name == "gpt2" and seq_len > 1024:
                continue
            try:
                rows += shares(name, method, batch_size, seq_len)
            except FitplanError as error:
                print(f"{name} {method}: {error}")
    document = {
        "schema": "fitplan.given-back/1",
        "what": "share of the cached bytes that replays with less and less memory could give back",
        "capability": [9, 0],
        "versions": installed_versions(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def shares(name: str, method: str, batch_size: int, seq_len: int) -> Iterator[dict[str, object]]:
    """The job with plain and with expandable segments."""
    question = Question(name, "h100", None, method, (("batch_size", batch_size), ("seq_len", seq_len)))
    job = next(iter(question.by_method()))[1].job()
    trace = trace_job(job.model, job.setup, job.capability, lambda _: None).trace
    sizes = [allocation.size for allocation in trace.allocations]
    sample = replayed(sizes, trace.events, trace.steps, job.shape, trace.emptied, trace.streams, pressed=(False, True))
    for settings, added in ((PLAIN, sample.plain), (EXPANDABLE, sample.expandable)):
        assert added.kept_bytes is not None, "it was looked for"
        if added.cached_bytes:
            row = {
                "model": job.model.name,
                "method": method,
                "batch_size": batch_size,
                "seq_len": seq_len,
                "expandable_segments": settings.expandable_segments,
                "cached_bytes": added.cached_bytes,
                "kept_bytes": added.kept_bytes,
            }
            print(f"{job.model.name:<18} {method:<6} {batch_size} x {seq_len:<5} "
                  f"{'expandable' if settings.expandable_segments else 'plain':<10} "
                  f"{1 - added.kept_bytes / added.cached_bytes:.2f}", flush=True)  # fmt: skip
            yield row


if __name__ == "__main__":
    raise SystemExit(main())
