"""Command lines of training programs, as keys and values: ``trl sft --model_name_or_path gpt2 --packing``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitplan.errors import InputError
from fitplan.readers.reading import Keys, Reading
from fitplan.readers.recognise import read_training_file, reader_of

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1}, "kto": {"desirable_weight": 1.0}, "reward": {"center_rewards_coefficient": 0.0},
    "grpo": {"num_generations": 8},
}  # fmt: skip
"""What TRL's command says with its second word."""


def read_command_line(words: Sequence[str]) -> Reading:
    """What a command line says: in its flags, and in the training file that it names, which flags override.

    Raises:
        InputError: neither says anything that is known.

    """
    shown = " ".join(words[:3]) + (" ..." if len(words) > 3 else "")
    values: dict[str, Any] = {}
    for word in words:
        if word.lower().endswith((".yaml", ".yml")) and Path(word).is_file():
            reading = read_training_file(word)
            if reading is not None and reading.model is not None:
                return _overridden(reading, words)
    if "trl" in {Path(word).name for word in words}:
        values |= {"output_dir": "", "max_length": None, "use_peft": False}
        values |= next((_OBJECTIVES[word] for word in words if word in _OBJECTIVES), {})
    values |= flags(words)
    read = reader_of(values)
    if read is None:
        raise InputError(f"the command line {shown!r} names no training settings that are known here")
    tool, read_keys = read
    return read_keys(Keys(shown, tool, values))


def _overridden(reading: Reading, words: Sequence[str]) -> Reading:
    """A file's settings with what follows it; of that only what the file's own tool would read."""
    given = {**dict(reading.values), **flags(words), **_pairs(words)}
    read = reader_of(given)
    if read is None:
        return reading
    return replace(read[1](Keys(reading.file, read[0], given)), file=reading.file)


def flags(words: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and ``--key``; several values are a list."""
    found: dict[str, Any] = {}
    key = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            found[key] = _value(value) if equals else True
        elif word.endswith(".py"):  # what was before is the launcher's
            key = ""
        elif key:
            before = found[key]
            value = _value(word)
            found[key] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
    return found


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """``key=value``, as torchtune and LLaMA-Factory take them."""
    pairs = [word.partition("=") for word in words if "=" in word and not word.startswith("-")]
    return {key: _value(value) for key, _, value in pairs if key.replace("_", "").isalnum()}


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text
