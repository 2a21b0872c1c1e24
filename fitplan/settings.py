"""What a setting is: one record, from which flags, rows of the app, descriptions, checks and the docs are made."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from fitplan.errors import InputError
from fitplan.names import did_you_mean


class Names:
    """The kind of a setting that names modules: in a list, or in one string with commas."""


class Pattern(Names):
    """The kind of a setting that names modules, or gives one regular expression for their whole paths, as peft does."""


class Numbers:
    """The kind of a setting that lists whole numbers: in a list, or in one string with commas."""


class ByName:
    """The kind of a setting that gives a whole number for names: in a mapping, or as ``"q_proj=8,v_proj=16"``."""


class Version:
    """The kind of a setting that is a version, such as ``"1.16"``."""


class Group(StrEnum):
    """Under which heading a setting is told."""

    JOB = "the job"
    GPUS = "several GPUs"
    ADAPTERS = "LoRA and QLoRA"
    TRAINING = "how it is trained"


class Decides(StrEnum):
    """What of a prediction a setting decides."""

    RECIPE = "which operators run"
    SHAPE = "how large their tensors are"
    OPTIMIZER = "the optimizer"
    ALLOCATOR = "the allocator"
    NOTHING = "nothing of the memory"


@dataclass(frozen=True)
class Only:
    """A setting means something with some values of another only.

    Attributes:
        other: the other setting.
        values: with which of its values.
        why: what is told otherwise; ``{}`` stands for the other's value.

    """

    other: str
    values: tuple[str, ...]
    why: str

    def allows(self, setup: object) -> bool:
        """Whether the other setting has such a value, or is open yet."""
        value = getattr(setup, self.other)
        return value is None or value in self.values


@dataclass(frozen=True)
class Row:
    """How a setting stands in the app.

    Attributes:
        label: as it is called on the screen.
        help: what it does to the memory.
        choices: the values that an arrow key steps through; of an enum all if empty.
        fine: how far a step with shift goes, for numbers.

    """

    label: str
    help: str
    choices: Sequence[Any] = ()
    fine: int = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: the field of :class:`fitplan.setup.TrainingSetup`.
        kind: an enum, ``int``, ``float``, ``bool``, or one of the classes above.
        default: what it is where nobody says; ``None`` is open.
        usual: what it becomes if it is open and means something.
        usual_for: what it becomes instead with some adapters.
        told_default: the default in words, where it depends on other things.
        group: the heading.
        help: what it is.
        theirs: its name in transformers, peft or bitsandbytes, where that is another.
        metavar: what stands for its value on the command line.
        span: least and most, for numbers; of a fraction the most is not reached.
        spellings: other words for its values.
        special: words that stand for names.
        only: what it depends on.
        decides: what of the prediction.
        row: how it stands in the app; ``None`` if it does not.
        words: a value in a description of a setup, empty where it goes without saying; what begins with a blank goes
            on with the words before.

    """

    kind: Any
    group: Group
    help: str
    name: str = ""
    default: Any = None
    usual: Any = None
    usual_for: Mapping[str, Any] = field(default_factory=dict)
    told_default: str = ""
    theirs: str = ""
    metavar: str = ""
    span: tuple[int, int] | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    only: tuple[Only, ...] = ()
    decides: Decides = Decides.RECIPE
    row: Row | None = None
    words: Callable[[Any], str] = lambda _: ""

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return f"--{self.name.replace('_', '-')}"

    @cached_property
    def is_enum(self) -> bool:
        """Whether it has one of a few words."""
        return isinstance(self.kind, type) and issubclass(self.kind, StrEnum)

    @property
    def help_with_default(self) -> str:
        """What it is, and what it is where nobody says."""
        default = self.told_default or self._shown_default()
        return f"{self.help} (default{'' if default.startswith(':') else ' '}{default})" if default else self.help

    def _shown_default(self) -> str:
        others = [f"{shown(value)} with {adapter}" for adapter, value in self.usual_for.items()]
        return "; ".join(filter(None, [shown(self.usual if self.default is None else self.default), *others]))

    def suits(self, setup: object) -> bool:
        """Whether it means something in a setup."""
        return all(only.allows(setup) for only in self.only)

    def read(self, value: Any) -> Any:
        """A value that was given, as it stands in a setup.

        Raises:
            InputError: it is none.

        """
        if value is None:
            return None
        if self.is_enum:
            return self._read_word(value)
        reader: Callable[[Setting, Any], Any] = _READERS.get(self.kind, Setting._read_number)
        return reader(self, value)

    def _read_switch(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise InputError(f"{self.name} must be true or false, not {value!r}")
        return value

    def _read_word(self, value: Any) -> StrEnum:
        if isinstance(value, self.kind):
            return value  # type: ignore[no-any-return]
        text = self.spellings.get(str(value).lower(), str(value))
        try:
            return self.kind(text)  # type: ignore[no-any-return]
        except ValueError:
            near = did_you_mean(text, self.kind, 2)
            hint = f"; {near}" if near else ""
            raise InputError(f"{self.name} cannot be {value!r}: known are {', '.join(self.kind)}{hint}") from None

    def _read_number(self, value: Any) -> int | float:
        whole = self.kind is int
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InputError(f"{self.name} must be a {'whole ' if whole else ''}number, not {value!r}")
        least, most = self.span or (value, value)
        if not (least <= value <= most if whole else least <= value < most):
            raise InputError(f"{self.name} must lie between {least} and {most}, not {value}")
        return value

    def _read_names(self, value: Any) -> tuple[str, ...] | str:
        """The names; a word that stands for names alone, such as ``"all-linear"``, stays a word."""
        names = _parts(value) if isinstance(value, str) else value
        is_list = isinstance(names, list | tuple | set | frozenset) and all(isinstance(n, str) and n for n in names)
        if not is_list or not names:
            known = "".join(f" or {word!r}" for word in self.special)
            raise InputError(f"{self.name} must be module names{known}, not {value!r}")
        first = next(iter(names))
        return str(first) if len(names) == 1 and first in self.special else tuple(names)

    def _read_pattern(self, value: Any) -> tuple[str, ...] | str:
        if not isinstance(value, str) or _PLAIN_NAMES.fullmatch(value):
            return self._read_names(value)
        try:
            re.compile(value)
        except re.error as error:
            raise InputError(f"{self.name} {value!r} is neither names nor a regular expression: {error}") from None
        return value

    def _read_numbers(self, value: Any) -> tuple[int, ...]:
        parts = _parts(value) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        try:
            return tuple(int(self._read_number(int(part) if isinstance(part, str) else part)) for part in parts)
        except ValueError:
            raise InputError(f"{self.name} must be whole numbers with commas between, not {value!r}") from None

    def _read_by_name(self, value: Any) -> tuple[tuple[str, int], ...]:
        """Pairs, so that a setup can be a key."""
        try:
            pairs = [part.split("=") for part in _parts(value)] if isinstance(value, str) else dict(value).items()
            return tuple((str(name).strip(), int(self._read_number(int(number)))) for name, number in pairs)
        except (TypeError, ValueError):
            raise InputError(f"{self.name} must be such as q_proj=8,v_proj=16, not {value!r}") from None

    def _read_version(self, value: Any) -> str:
        if not isinstance(value, str) or not _VERSION.fullmatch(value):
            raise InputError(f"{self.name} must be such as '1.16', not {value!r}")
        return value


_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}", re.ASCII)
_PLAIN_NAMES = re.compile(r"[\w.,\s-]*")

_READERS: Mapping[Any, Callable[[Setting, Any], Any]] = {
    bool: Setting._read_switch,
    Names: Setting._read_names,
    Pattern: Setting._read_pattern,
    Numbers: Setting._read_numbers,
    ByName: Setting._read_by_name,
    Version: Setting._read_version,
}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def shown(value: Any) -> str:
    """A value in words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple):
        return ",".join("=".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(default: Any = None, **settings: Any) -> Any:
    """The field of a dataclass that is a setting, with its record; the arguments are those of :class:`Setting`."""
    return field(default=default, metadata={"setting": Setting(default=default, **settings)})


def doubling(least: int, most: int) -> tuple[int, ...]:
    """``least`` and its doubles, up to the first that is not less than ``most``."""
    values = [least]
    while values[-1] < most:
        values.append(2 * values[-1])
    return tuple(values)
