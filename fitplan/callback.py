"""A callback of ``transformers.Trainer``: a plan before the first step, and the run beside it after the last.

    trainer = Trainer(..., callbacks=[fitplan.Guard()])             # also TRL's trainers
    trainer = SFTTrainer(..., callbacks=[fitplan.Guard(action="refuse", seq_len=4096)])

What the arguments do not say, such as the length of rows, is given to the guard by its name in
:class:`fitplan.TrainingSetup`. Whatever goes wrong while it plans ends no training: it is said in one sentence.
"""

import copy
import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from fitplan.errors import DoesNotFit, FitplanError, InputError
from fitplan.estimator import answer
from fitplan.question import Question
from fitplan.readers.objects import read_training_objects
from fitplan.units import gib
from fitplan.whole import write_whole

OUTCOME = "fitplan.json"
"""What was predicted and measured, in the output folder of the training."""


class Action(StrEnum):
    """What is done where the training does not fit."""

    REFUSE = "refuse"
    WARN = "warn"
    LOG = "log"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a training will take of its GPU, as PyTorch counts it.

    Attributes:
        allocated_bytes: at the peak, as ``torch.cuda.max_memory_allocated`` counts.
        reserved_bytes: at the peak, as ``torch.cuda.max_memory_reserved`` counts.
        room_bytes: what this process has reserved already, and what is free.

    """

    allocated_bytes: int
    reserved_bytes: int
    room_bytes: int

    @property
    def fits(self) -> bool:
        """Whether there is room for what is allocated."""
        return self.allocated_bytes <= self.room_bytes

    @property
    def sentence(self) -> str:
        """The forecast in words."""
        needs = f"{gib(self.allocated_bytes)} allocated, {gib(self.reserved_bytes)} reserved"
        if not self.fits:
            return f"this training needs {needs}, and does not fit into {gib(self.room_bytes)}"
        tight = "; some of it must be given back while it runs" if self.reserved_bytes > self.room_bytes else ""
        return f"this training needs {needs} of {gib(self.room_bytes)}{tight}"


class Guard(TrainerCallback):  # type: ignore[misc]
    """Plans a training when it begins, on the GPU that it begins on.

    Attributes:
        forecast: what was predicted; ``None`` where there is no GPU, or no prediction.

    """

    def __init__(self, action: Action | str = Action.WARN, **settings: Any) -> None:
        """A guard.

        Args:
            action: ``"refuse"`` raises :class:`fitplan.DoesNotFit` where the training does not fit, ``"warn"`` says so,
                ``"log"`` says also that it fits.
            settings: fields of :class:`fitplan.TrainingSetup` that the arguments of the training do not tell.

        Raises:
            InputError: there is no such action.

        """
        if action not in list(Action):
            raise InputError(f"action is refuse, warn or log, not {action!r}")
        self.action, self._settings = Action(action), settings
        self.forecast: Forecast | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Plan, and say or refuse.

        Raises:
            DoesNotFit: the training does not fit, and is to be refused.

        """
        if not torch.cuda.is_available():
            _say(state, "there is no GPU here, and nothing is planned")
            return
        try:
            self.forecast = self._planned(args, kwargs["model"])
        except Exception as error:  # a plan is no reason to end a training
            _say(state, f"no plan for this training: {' '.join(str(error).split())}")
            return
        if not self.forecast.fits and self.action is Action.REFUSE:
            raise DoesNotFit(f"{self.forecast.sentence}; fitplan advise says what to change")
        if self.action is Action.LOG or not self.forecast.fits:
            _say(state, self.forecast.sentence)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what was measured beside it, and write both down."""
        if self.forecast is None or not state.is_world_process_zero:
            return
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        error = 100 * (self.forecast.allocated_bytes / allocated - 1) if allocated else 0.0
        _say(
            state,
            f"measured {gib(allocated)} allocated, {gib(reserved)} reserved; the prediction was {error:+.2f} % off",
        )
        predicted = self.forecast.allocated_bytes, self.forecast.reserved_bytes
        outcome = {
            name: {"allocated_bytes": sizes[0], "reserved_bytes": sizes[1]}
            for name, sizes in (("predicted", predicted), ("measured", (allocated, reserved)))
        }
        try:
            write_whole(Path(args.output_dir) / OUTCOME, json.dumps(outcome, indent=1).encode())
        except OSError as problem:
            _say(state, f"{OUTCOME} cannot be written: {problem.strerror}")

    def _planned(self, args: Any, model: Any) -> Forecast:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = copy.deepcopy(base.config)
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None:
            del config.quantization_config  # of the weights as they were published it would say so
        adapters = getattr(model, "peft_config", None) if base is not model else None
        reading = read_training_objects(
            config, args, peft_config=next(iter(adapters.values())) if adapters else None, quantization_config=quantised
        )
        settings = {"attn": str(config._attn_implementation), **self._settings}
        if quantised is None:
            settings.setdefault("dtype", str(next(_weights(base)).dtype).removeprefix("torch."))
        capability = torch.cuda.get_device_capability()
        job = Question(reading, settings=tuple(settings.items())).job(capability)
        estimate = answer(job, fresh=False, progress=lambda _: None).estimate
        unsplit = estimate.allocator.unsplit_bytes if estimate.allocator else 0
        allocated = estimate.peak_allocated_bytes + unsplit
        free, _ = torch.cuda.mem_get_info()
        return Forecast(
            allocated_bytes=allocated,
            reserved_bytes=estimate.peak_reserved_bytes or allocated,
            room_bytes=free + torch.cuda.memory_reserved(),
        )


def _weights(model: Any) -> Any:
    """The model's own weights, without adapters."""
    return (weight for path, weight in model.named_parameters() if "lora_" not in path and weight.is_floating_point())


def _say(state: Any, sentence: str) -> None:
    if state.is_world_process_zero:
        print(f"fitplan: {sentence}", file=sys.stderr)


__all__ = ["Action", "DoesNotFit", "FitplanError", "Forecast", "Guard"]
