"""How what is missing is installed: from where fitplan itself was."""

import json
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse


@cache
def install(extra: str) -> str:
    """The command that adds an extra: ``pip install '/path/to/checkout[torch]'``, or by name from an index.

    Source: PEP 610, ``direct_url.json``, which pip writes for what does not come from an index.
    """
    origin: dict[str, Any] = {}
    with suppress(PackageNotFoundError, ValueError):
        origin = json.loads(distribution("fitplan").read_text("direct_url.json") or "{}")
    url = urlparse(str(origin.get("url", "")))
    if url.scheme != "file":
        return f"pip install 'fitplan[{extra}]'"
    path = Path(unquote(url.path))
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{path}[{extra}]'"
