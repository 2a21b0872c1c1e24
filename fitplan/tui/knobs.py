"""What can be changed about a setup, and how: one row of the settings for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitplan.errors import InputError
from fitplan.settings import shown
from fitplan.setup import SETTINGS, Method, TrainingSetup

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
        return SETTINGS[self.name].suits(setup)

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
        if isinstance(value, Method):
            return METHOD_NAMES[value]
        return f"{value:,}" if self.is_number else shown(value)

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


def _knob(name: str) -> Knob:
    one = SETTINGS[name]
    assert one.row is not None, "only what has a row is shown"
    choices = one.row.choices or (tuple(one.kind) if one.is_enum else (True, False))
    return Knob(name, one.row.label, one.row.help, choices, one.row.fine)


_ORDER = (
    "method", "batch_size", "seq_len", "gradient_accumulation_steps", "lora_r", "target_modules", "adapter", "quant",
    "double_quant", "kbit_prepare", "gradient_checkpointing", "attn", "optim", "use_liger_kernel", "dtype",
    "mixed_precision", "padding",
)  # fmt: skip
"""Of the screen: what is changed most comes first."""

KNOBS = tuple(map(_knob, _ORDER))

_BY_NAME = {knob.name: knob for knob in KNOBS}


def knob_of(name: str) -> Knob | None:
    """The knob of a setting, if it has one."""
    return _BY_NAME.get(name)
