"""How what is missing is installed: from where fitplan itself was."""

from functools import cache


@cache
def install(extra: str) -> str:
    """The command that adds an extra: ``pip install '/path/to/checkout[torch]'``, or by name from an index.

    Source: PEP 610, ``direct_url.json``, which pip writes for what does not come from an index.
    """
    import json
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, distribution  # which takes as long to import as rich
    from pathlib import Path
    from urllib.parse import unquote, urlparse

    origin = {}
    with suppress(PackageNotFoundError, ValueError):
        origin = json.loads(distribution("fitplan").read_text("direct_url.json") or "{}")
    url = urlparse(str(origin.get("url", "")))
    if url.scheme != "file":
        return f"pip install 'fitplan[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{Path(unquote(url.path))}[{extra}]'"
