"""The command line for what was asked: the inverse of the parser."""

from collections.abc import Mapping
from typing import Any

from fitplan.settings import shown


def words(command: str, model: str, settings: Mapping[str, Any]) -> list[str]:
    """What follows ``fitplan`` on the command line; ``settings`` by the names of the library's parameters."""
    return [command, model, *flags(settings)]


def flags(settings: Mapping[str, Any]) -> list[str]:
    """The flags that set the library's parameters: ``["--seq-len", "4096", "--no-kbit-prepare"]``."""
    found = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", shown(value)]
    return found
