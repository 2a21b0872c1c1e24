"""What a file says, and the keys of a file as they are gone through."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fitplan.errors import InputError
from fitplan.setup import SETTINGS


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A training file, read.

    Attributes:
        file: its name, as it was given.
        tool: whose file it is: ``"Axolotl"``.
        model: the one that it names, as it names it, or that was given beside it; ``None`` where it names none.
        settings: fields of :class:`fitplan.setup.TrainingSetup`; the method among them, where the file decides it.
        understood: keys of the file, and what each was read as.
        traps: sentences on what the tool makes of the file that its author may not expect.
        left_out: sentences on what takes memory and is not in the answer.
        ignored: keys that decide nothing of the memory, or are not known here.
        values: all of the file.

    """

    file: str
    tool: str
    model: Any
    settings: Mapping[str, Any]
    understood: Mapping[str, str]
    traps: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the reader of an answer must know of the file."""
        read = f"{self.file} is read as a file of {self.tool}"
        return (read, *self.traps, *(f"not in the answer: {one}" for one in self.left_out))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "file": self.file,
            "tool": self.tool,
            "model": self.model if isinstance(self.model, str) else None,
            "understood": dict(self.understood),
            "traps": list(self.traps),
            "left_out": list(self.left_out),
            "ignored": list(self.ignored),
        }


Convert = Callable[[Any], Any]


@dataclass
class Keys:
    """The keys of a file, while they are read: which were understood, and as what."""

    file: str
    tool: str
    values: Mapping[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    understood: dict[str, str] = field(default_factory=dict)
    traps: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def get(self, key: str, default: Any = None) -> Any:
        """A value; blank, ``null`` and the words for it are the default."""
        value = self.values.get(key)
        if isinstance(value, str) and value.strip().lower() in ("", "none", "null"):
            return default
        return default if value is None else value

    def is_on(self, key: str) -> bool:
        """Whether a switch is on: ``true``, or a word for it."""
        value = self.get(key, False)
        return value.strip().lower() in ("true", "yes", "1", "on") if isinstance(value, str) else value is True

    def put(self, key: str, setting: str, value: Any) -> None:
        """A key means a setting.

        Raises:
            InputError: the setting has no such value.

        """
        try:
            SETTINGS[setting].read(value)
        except InputError as error:
            raise InputError(f"{self.file}: {key} {_short(self.values.get(key))}: {error}") from None
        self.settings[setting] = value
        self.understood[key] = f"{setting} {_short(value)}"

    def take(self, names: Mapping[str, str], convert: Convert = lambda value: value) -> None:
        """Keys that mean a setting each, where they are given."""
        for key, setting in names.items():
            if (value := self.get(key)) is not None:
                self.put(key, setting, convert(value))

    def know(self, key: str, what: str) -> None:
        """A key is understood, and means this."""
        if key in self.values:
            self.understood[key] = what

    def leave_out(self, sentences: Mapping[str, str]) -> None:
        """Keys that take memory, where they are on, and are not in the answer."""
        for key, sentence in sentences.items():
            value = self.get(key)
            if value is not None and value is not False and value not in ("no", "none", "false", "False", 0, [], {}):
                self.left_out.append(f"{key} {_short(value)}: {sentence}")
                self.understood[key] = "not in the answer"

    def read(self, model: Any) -> Reading:
        """All of it."""
        return Reading(
            file=self.file,
            tool=self.tool,
            model=model,
            settings=self.settings,
            understood=self.understood,
            traps=tuple(self.traps),
            left_out=tuple(self.left_out),
            ignored=tuple(str(key) for key in self.values if key not in self.understood),
            values=self.values,
        )


def whole(value: Any) -> Any:
    """``"8"`` and ``8.0`` are 8, as tools take them; what is no number stays as it is, and is refused."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return int(number) if not isinstance(value, bool) and number.is_integer() else value


def fraction(value: Any) -> Any:
    """``"5e-2"`` is 0.05: YAML takes it for text."""
    try:
        return float(value) if not isinstance(value, bool) else value
    except (TypeError, ValueError, OverflowError):
        return value


def names(value: Any) -> Any:
    """``"q_proj,v_proj"`` or a list; one regular expression stays as it is."""
    if not isinstance(value, str) or not _NAMES.fullmatch(value):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


_NAMES = re.compile(r"[\w.,\s-]*")


def once(listed: list[Any]) -> list[Any]:
    """Each name once, in order."""
    return [name for place, name in enumerate(listed) if name not in listed[:place]]


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
