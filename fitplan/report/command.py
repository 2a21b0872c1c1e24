"""The command line for what was asked: the inverse of the parser."""

from collections.abc import Mapping
from typing import Any


def words(command: str, model: str, flags: Mapping[str, Any]) -> list[str]:
    """What follows ``fitplan`` on the command line; ``flags`` by the names of the library's parameters."""
    found = [command, model]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return found
