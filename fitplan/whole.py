"""Files that are written whole or not at all, and read whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident

MOST_READ = 64 * 2**20
"""Bytes; the largest file of ours is a tenth of it."""


def read_whole(path: Path) -> bytes:
    """The content of a file that was written here: no device, no pipe, nothing that fills the memory.

    Raises:
        OSError: it is no regular file, or larger than :data:`MOST_READ`, or cannot be read.

    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    if path.stat().st_size > MOST_READ:
        raise OSError(errno.EFBIG, "too large to be one of ours", str(path))
    return path.read_bytes()


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
