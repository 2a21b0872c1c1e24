"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside ``path`` and move it into place, so that no reader sees half of one; text is UTF-8.

    Several may write at once: the last one stays. Folders that are missing are made.

    Raises:
        OSError: it cannot be written; what was there before is there still.

    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
