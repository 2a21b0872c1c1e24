"""The real edge of memory: the largest job that runs, found by running jobs until one does not."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError
from fitplan.setup import MAX_STEP_TOKENS, MAX_TOKENS, TrainingSetup
from fitplan.tracer import Progress
from fitplan.validation.runner import Options, Target, forecast, validate_job

SCHEMA = "fitplan.limit/1"


class Axis(StrEnum):
    """What is enlarged."""

    BATCH = "batch"
    SEQ = "seq"


SEQ_STEP = 64
"""Sequence lengths are tried in multiples of this."""

MOST = 4096
"""Of steps along the axis."""


@dataclass(frozen=True)
class Trial:
    """One run on the way to the edge."""

    value: int
    ran: bool
    phase: str


@dataclass(frozen=True)
class LimitReport:
    """The edge.

    Attributes:
        model: the model.
        setup: the setup at the largest job that ran; as asked about if none did.
        axis: what was enlarged.
        predicted: the largest value that was predicted to run; 0 if none.
        measured: the largest value that ran; 0 if none.
        trials: the runs.

    """

    model: ModelConfig
    setup: TrainingSetup
    axis: Axis
    predicted: int
    measured: int
    trials: tuple[Trial, ...]

    @property
    def within(self) -> bool:
        """A search has no tolerance: both edges are shown."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.limit/1`` document."""
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "setup": self.setup.to_dict(),
            "axis": self.axis,
            "predicted": self.predicted,
            "measured": self.measured,
            "trials": [asdict(trial) for trial in self.trials],
        }


def find_limit(
    model: ModelConfig, setup: TrainingSetup, target: Target, options: Options, axis: Axis, progress: Progress
) -> LimitReport:
    """Find the largest batch, or the longest sequence, that runs.

    Raises:
        InputError: the CPU is asked without a limit, which it would find by exhausting the machine.
        ValidationFailed: a run ended for another reason than memory.

    """
    if target.gpu is None and options.limit_bytes is None:
        raise InputError("on the CPU the edge is found under a limit only; give vram, such as 2GiB")
    unit = SEQ_STEP if axis is Axis.SEQ else 1

    def at(units: int) -> TrainingSetup:
        return setup.with_(**{"seq_len" if axis is Axis.SEQ else "batch_size": units * unit})

    def is_predicted_to_run(units: int) -> bool:
        progress(f"predicting {axis} {units * unit}")
        return forecast(model, at(units), target, options.limit_bytes, progress).runs_on_paper

    trials: list[Trial] = []
    ran = setup
    forced = replace(options, force=True, history=False)

    def runs(units: int) -> bool:
        nonlocal ran
        report = validate_job(model, at(units), target, forced, progress)
        failed = report.measurement.out_of_memory
        trials.append(Trial(units * unit, failed is None, failed.phase if failed else ""))
        ran = report.setup if failed is None else ran
        return failed is None

    most = _most(model, setup, axis, unit)
    predicted = _edge(is_predicted_to_run, 1, most)
    measured = _edge(runs, max(1, predicted), most)
    return LimitReport(model, ran, axis, predicted * unit, measured * unit, tuple(trials))


def _most(model: ModelConfig, setup: TrainingSetup, axis: Axis, unit: int) -> int:
    """Units that there is anything to try of: what the model has positions for, and what can be traced."""
    other = setup.batch_size if axis is Axis.SEQ else setup.seq_len
    tokens = min(MAX_TOKENS, MAX_STEP_TOKENS // setup.gradient_accumulation_steps)
    positions = model.positions if axis is Axis.SEQ and model.positions else MOST * unit
    return max(1, min(MOST, positions // unit, tokens // (other * unit)))


def _edge(runs: Callable[[int], bool], guess: int, most: int) -> int:
    """The largest number from 1 to ``most`` that ``runs``, 0 if there is none; looked for from ``guess`` on."""
    low, high, at, stride = 0, most + 1, guess, 1
    while low < at < high:
        if runs(at):
            low, at = at, at + stride
        else:
            high, at = at, at - stride
        stride *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low
