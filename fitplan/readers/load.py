"""The text of a file as plain values: numbers, strings, lists, mappings."""

import json
from pathlib import Path
from typing import Any

from fitplan.errors import InputError, MissingDependency

MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""What aliases in YAML stand for is counted each time: a file of a few hundred bytes can say a billion values."""


def load(file: Path) -> Any:
    """What a file of JSON or YAML holds.

    Raises:
        InputError: it cannot be read, is too large, or is neither.
        MissingDependency: it is YAML, and PyYAML is not installed.

    """
    try:
        if not file.is_file():
            raise InputError(f"{file} is not a file; give a training file, a model's folder or its config.json")
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is larger than 1 MiB, which no training file is")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file} is no text in UTF-8") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply to be a training file") from error
    except ValueError as error:
        if file.suffix == ".json":
            raise InputError(f"{file} is not valid JSON ({error})") from error
    return _load_yaml(file, text)


def _load_yaml(file: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingDependency(f"reading {file} needs PyYAML; pip install pyyaml") from None
    try:
        value = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{file} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
    except (RecursionError, ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    _count(file, value)
    return value


def _count(file: Path, value: Any) -> None:
    left, seen = [value], 0
    while left:
        seen += 1
        if seen > MOST_VALUES:
            raise InputError(f"{file} stands for more values than a training file has")
        here = left.pop()
        left += here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
