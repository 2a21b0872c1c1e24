"""Every answer that ships, so that a change of the code can be shown to move none of them.

python benchmarks/answers.py --out before.json       # each shipped model and setup, at several shapes and GPUs
python benchmarks/answers.py --compare before.json   # the same now; exit code 1 if one of them moved

Answers come from the light path: torch cannot be imported, and the user's cache is empty. Keys may be added to a
document, as its schema says; whatever was there must be the same.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["XDG_CACHE_HOME"] = os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="fitplan-")
sys.modules["torch"] = None  # type: ignore[assignment]

import fitplan
from fitplan.configs.catalog import catalog
from fitplan.footprint.recipe import settings_of
from fitplan.footprint.store import shipped_recipes

CAPABILITIES = {"sm50": [(7, 0), (7, 5)], "sm80": [(8, 0), (9, 0), (12, 0)]}
SHAPES: tuple[dict[str, Any], ...] = (
    {"batch_size": 1, "seq_len": 512},
    {"batch_size": 3, "seq_len": 360, "gradient_accumulation_steps": 2, "optim": "paged_adamw_8bit"},
    {"batch_size": 8, "seq_len": 500, "optim": "adamw_8bit", "expandable_segments": True},
)
DOCUMENTS = ("llama-8b", "gpt2", "bert-base-uncased", "mixtral-8x7b")
GPUS = ("h100", "4090", "t4")


def answers() -> Iterator[tuple[str, Any]]:
    for entry in catalog():
        for kernels, capabilities in CAPABILITIES.items():
            for number, recipe in enumerate(shipped_recipes(entry.name, kernels)):
                for place, shape in enumerate(SHAPES):
                    rank = {} if recipe["method"] == "full" else {"lora_r": 32 if place else 16}
                    settings = settings_of(recipe) | shape | rank
                    capability = capabilities[(number + place) % len(capabilities)]
                    yield (
                        f"{entry.name} {kernels} {number} {place}",
                        _document(fitplan.estimate, entry.name, capability=capability, **settings),
                    )
    for name in DOCUMENTS:
        for gpu in GPUS:
            yield f"check {name} {gpu}", _document(fitplan.check, name, gpu=gpu)
            for method in ("full", "lora", "qlora"):
                for ask in (fitplan.check, fitplan.advise, fitplan.explain, fitplan.fit_map):
                    yield (
                        f"{ask.__name__} {name} {gpu} {method}",
                        _document(ask, name, gpu=gpu, method=method, seq_len=512),
                    )


def _document(ask: Any, *args: Any, **settings: Any) -> Any:
    try:
        found = ask(*args, **settings).to_dict()
    except fitplan.FitplanError as error:
        found = {"error": str(error)}
    return json.loads(json.dumps(found))


def moved(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Where two documents differ; a key that was added is no difference."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            yield from moved(before[key], after.get(key, "(gone)"), f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from moved(one, other, f"{where}/{number}")
    elif before != after:
        yield f"{where}: {before!r} is now {after!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = dict(answers())
    if options.out:
        options.out.write_text(json.dumps(found, indent=0))
        print(f"{len(found)} answers written")
        return 0
    before = json.loads(options.compare.read_text())
    told = list(moved(before, found))
    print(*told[:20], f"{len(before)} answers compared, {len(told)} places moved", sep="\n")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
