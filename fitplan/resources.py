"""The data that ships with fitplan: the ``profiles/`` folder, in a wheel, an editable install or a checkout."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def profiles() -> Path:
    """The ``profiles/`` folder: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "profiles"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "profiles"


@cache
def read_json(relative: str) -> Any:
    """A JSON file of the ``profiles/`` folder."""
    return json.loads((profiles() / relative).read_text(encoding="utf-8"))
