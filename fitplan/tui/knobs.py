"""What can be changed about a setup, and how: one row of the settings for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitplan.errors import InputError
from fitplan.setup import (
    ALL_LINEAR,
    LORA_FIELDS,
    QLORA_FIELDS,
    Attention,
    Dtype,
    Method,
    MixedPrecision,
    Optim,
    Padding,
    Quant,
    TrainingSetup,
)

METHOD_NAMES = {Method.FULL: "full", Method.LORA: "LoRA", Method.QLORA: "QLoRA"}


@dataclass(frozen=True)
class Knob:
    """One setting.

    Attributes:
        name: the field of :class:`TrainingSetup`.
        label: as it is called on the screen.
        help: what it does to the memory.
        choices: the values that an arrow key steps through.
        fine: how far a step with shift goes, for numbers.

    """

    name: str
    label: str
    help: str
    choices: Sequence[Any]
    fine: int = 0

    @property
    def is_number(self) -> bool:
        """Whether any whole number can be typed."""
        return self.fine > 0

    @property
    def is_open(self) -> bool:
        """Whether other words than the choices can be typed: names of modules."""
        return len(self.choices) == 1

    def applies(self, setup: TrainingSetup) -> bool:
        """Whether it means something for the method."""
        foreign = (setup.method is Method.FULL and self.name in LORA_FIELDS) or (
            setup.method is not Method.QLORA and self.name in QLORA_FIELDS
        )
        return not foreign and not (setup.quant is Quant.INT8 and self.name == "double_quant")

    def step(self, value: Any, by: int, fine: bool = False) -> Any:
        """The next value in a direction: numbers stop at the ends, words go round."""
        if not self.is_number:
            place = self.choices.index(value) if value in self.choices else -min(by, 0)
            return self.choices[(place + by) % len(self.choices)]
        if fine:
            return max(1, (value // self.fine + by) * self.fine or 1)
        beyond = [n for n in self.choices if (n > value if by > 0 else n < value)]
        return value if not beyond else min(beyond) if by > 0 else max(beyond)

    def shown(self, value: Any) -> str:
        """A value as text."""
        if value is None:
            return "–"
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, Method):
            return METHOD_NAMES[value]
        if isinstance(value, tuple):
            return ",".join(value)
        return f"{value:,}" if self.is_number else str(value)

    def parse(self, text: str) -> Any:
        """A value from what was typed.

        Raises:
            InputError: it is none.

        """
        if self.is_number:
            try:
                return int(text.replace(",", "").replace("_", ""))
            except ValueError:
                raise InputError(f"{text!r} is no whole number") from None
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        return names[0] if len(names) == 1 and names[0] in self.choices else names


def _doubling(least: int, most: int) -> tuple[int, ...]:
    values = [least]
    while values[-1] < most:
        values.append(2 * values[-1])
    return tuple(values)


_SWITCH = (True, False)

KNOBS = (
    Knob("method", "method", "all weights, adapters, or adapters on quantised weights", tuple(Method)),
    Knob("batch_size", "batch", "rows in a micro-batch; activations and logits grow with it", _doubling(1, 1024), 1),
    Knob("seq_len", "length", "tokens in a row; activations and logits grow with it", _doubling(128, 131_072), 64),
    Knob("gradient_accumulation_steps", "accumulate", "micro-batches in an optimizer step", _doubling(1, 256), 1),
    Knob("lora_r", "rank", "rank of the adapters; all that they need grows with it", _doubling(1, 512), 1),
    Knob("target_modules", "targets", "the modules that get adapters", (ALL_LINEAR,)),
    Knob("quant", "quantise", "format of the frozen weights (bitsandbytes)", tuple(Quant)),
    Knob("double_quant", "double quant", "quantise the scales of the 4-bit blocks again", _SWITCH),
    Knob("kbit_prepare", "k-bit prep", "norms, embedding and head in float32 (peft)", _SWITCH),
    Knob("gradient_checkpointing", "checkpointing", "recompute activations in backward, not keep them", _SWITCH),
    Knob("attn", "attention", "the attention implementation of transformers", tuple(Attention)),
    Knob("optim", "optimizer", "what is kept for each trained parameter", tuple(Optim)),
    Knob("use_liger_kernel", "Liger", "kernels for norms, MLPs and the loss, which keeps no logits", (False, True)),
    Knob("dtype", "dtype", "the type that the weights are loaded in", tuple(Dtype)),
    Knob("mixed_precision", "autocast", "automatic mixed precision", tuple(MixedPrecision)),
    Knob("padding", "padding", "padded rows need an attention mask", tuple(Padding)),
)
"""In the order of the screen."""

_BY_NAME = {knob.name: knob for knob in KNOBS}


def knob_of(name: str) -> Knob | None:
    """The knob of a setting, if it has one."""
    return _BY_NAME.get(name)
