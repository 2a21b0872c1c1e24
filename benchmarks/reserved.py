"""How near is the reserved memory of a shipped footprint to that of a replayed trace?

    python benchmarks/reserved.py
    python benchmarks/reserved.py --jobs 200 --model llama-3.1-8b --model qwen3-4b

Jobs are drawn at random; for each the footprint's estimate is held against a replay of its own trace.
"""

import argparse
import random
import statistics
import sys
from dataclasses import dataclass

from fitplan.configs.resolve import resolve_model
from fitplan.estimator import SHIPPED, answer
from fitplan.setup import Method, Optim, TrainingSetup
from fitplan.tracer import quiet
from fitplan.units import GIB

A100 = (8, 0)
MODELS = ("llama-3.1-8b", "llama-3.2-1b", "qwen3-4b")


@dataclass(frozen=True)
class Sample:
    """One job: reserved bytes estimated and replayed, and how far the estimate says that it may be off."""

    setup: TrainingSetup
    estimated: int
    replayed: int
    spread: int

    @property
    def error(self) -> float:
        """Percent of what is reserved."""
        return 100 * (self.estimated - self.replayed) / self.replayed


def random_setup(dice: random.Random) -> TrainingSetup:
    """A job as people run them."""
    method = dice.choice(list(Method))
    rank = {} if method is Method.FULL else {"lora_r": dice.choice((8, 16, 32, 64))}
    return TrainingSetup(
        method=method,
        batch_size=dice.choice((1, 2, 3, 4, 8)),
        seq_len=dice.choice((512, 777, 1024, 2000, 4096, 5000)),
        gradient_checkpointing=dice.random() < 0.6,
        gradient_accumulation_steps=dice.choice((1, 1, 4)),
        optim=dice.choice((Optim.ADAMW_TORCH_FUSED, Optim.ADAMW_TORCH_FUSED, Optim.ADAMW_8BIT)),
        expandable_segments=dice.random() < 0.3,
        **rank,
    )


def compare(model: str, setup: TrainingSetup) -> Sample | None:
    """The job, or ``None`` where nothing ships for it."""
    config = resolve_model(model)
    shipped, traced = (answer(config, setup, A100, fresh=fresh, progress=lambda _: None) for fresh in (False, True))
    ours, theirs = shipped.estimate, traced.estimate
    if shipped.source != SHIPPED or ours.allocator is None or theirs.peak_reserved_bytes is None:
        return None
    assert ours.peak_reserved_bytes is not None
    return Sample(setup, ours.peak_reserved_bytes, theirs.peak_reserved_bytes, ours.allocator.spread_bytes)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40, help="jobs for each model (default 40)")
    parser.add_argument("--model", action="append", help=f"default {', '.join(MODELS)}")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print(
        f"{'model':16} {'jobs':>4} {'median %':>9} {'95 % %':>7} {'worst %':>8} {'in spread':>14} {'mean spread':>12}"
    )
    for model in chosen.model or MODELS:
        dice = random.Random(chosen.seed)
        with quiet():
            found = [s for _ in range(chosen.jobs) if (s := compare(model, random_setup(dice))) is not None]
        errors = sorted(abs(sample.error) for sample in found)
        inside = sum(abs(s.estimated - s.replayed) <= s.spread for s in found)
        spread = statistics.mean(s.spread for s in found) / GIB
        print(f"{model:16} {len(found):4} {statistics.median(errors):9.2f} {errors[int(0.95 * len(errors))]:7.2f} "
              f"{errors[-1]:8.2f} {inside:10}/{len(found)} {spread:8.2f} GiB")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
