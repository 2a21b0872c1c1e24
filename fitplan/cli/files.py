"""The files that a command writes for the person who named them."""

import os
from pathlib import Path

from fitplan.errors import InputError
from fitplan.whole import write_whole


def check_writable(file: Path) -> None:
    """Complain now about a file that cannot be written, not after minutes of work.

    Raises:
        InputError: it is a folder, its own folder does not exist, or it may not be written.

    """
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file in it, such as {file / 'report.html'}")
    if not file.parent.is_dir():
        raise InputError(f"there is no folder {file.parent} to write {file.name} in")
    touched = ([file] if file.exists() else []) + ([] if _is_device(file) else [file.parent])
    if not all(os.access(one, os.W_OK) for one in touched):
        raise InputError(f"{file} may not be written")


def write_answer(file: Path, text: str) -> None:
    """Write a text, all of it or nothing, to a file or to what is no plain file, such as ``/dev/stdout``.

    Raises:
        InputError: it cannot be written. What was there before is there still.

    """
    try:
        if _is_device(file):
            file.write_text(text, encoding="utf-8")
        else:
            write_whole(file.resolve(), text)  # what a link leads to, not the link
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error


def _is_device(file: Path) -> bool:
    """Whether it is there and no plain file, such as ``/dev/stdout``: nothing can be moved into its place."""
    return file.exists() and not file.is_file()
