"""Files that are written whole or not at all, and read whole or not at all; and what is there for a while only.

What was kept and cannot be read back costs itself only: it is left out, and that is told once.

What a killed process leaves unfinished is removed by the next one that writes beside it. Whether somebody is still at
it, a lock tells that ends with its holder (flock(2)); on Windows, where there is none, it stays.
"""

import errno
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident

from fitplan.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_READ = 64 * 2**20
"""Bytes; the largest file of ours is a tenth of it."""

PART = ".fitplan-part"
"""How the names of unfinished files end."""
SCRATCH = ".fitplan-scratch-"
"""How the names of folders begin that are there for a while only."""


def read_whole(path: Path) -> bytes:
    """The content of a file that was written here: no device, no pipe, nothing that fills the memory.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is no regular file, or larger than :data:`MOST_READ`, or cannot be read.

    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    if found.st_size > MOST_READ:
        raise OSError(errno.EFBIG, "too large to be one of ours", str(path))
    return path.read_bytes()


DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, InputError)
"""What reading another file than was written may end in; text that is no UTF-8 is a ``ValueError``."""


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@dataclass
class _Telling:
    """Who is told what is left out, and what was told already."""

    tell: Callable[[str], None] = _warn
    told: set[Path] = field(default_factory=set)


_telling = [_Telling()]


@contextmanager
def told_to(tell: Callable[[str], None]) -> Iterator[None]:
    """What is left out as damaged is told to ``tell``, each file once; elsewhere it is a ``UserWarning``."""
    _telling.append(_Telling(tell))
    try:
        yield
    finally:
        _telling.pop()


@contextmanager
def left_out_if_damaged(path: Path, what: str) -> Iterator[None]:
    """Within this a file is read back that was kept earlier; if it cannot be, it is told once, and the rest goes on.

    Args:
        path: the file. That there is none is nothing to tell.
        what: it holds, as in ``"the record"``.

    """
    try:
        yield
    except FileNotFoundError:
        return
    except DAMAGED as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, or of another version"
        if path not in _telling[-1].told:
            _telling[-1].told.add(path)
            _telling[-1].tell(f"{what} in {path} is left out: {why}; remove the file if you do not need it")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside ``path`` and move it into place, so that no reader sees half of one; text is UTF-8.

    Several may write at once: the last one stays. Folders that are missing are made.

    Raises:
        OSError: it cannot be written; what was there before is there still.

    """
    data = content.encode() if isinstance(content, str) else content
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}{PART}")
    for left in reversed(range(_TRIES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, f".*{PART}")
        try:
            with unfinished.open("wb") as file:
                _lock(file.fileno())
                file.write(data)
            unfinished.replace(path)
        except BaseException as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if left and isinstance(error, FileNotFoundError):  # swept in a moment in which it was not locked
                continue
            raise
        return


_TRIES = 10


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is there for a while only: in ``parent``, by default where temporary files go.

    Raises:
        OSError: it cannot be made.

    """
    where = parent or Path(tempfile.gettempdir())
    _sweep(where, f"{SCRATCH}????????")  # as tempfile ends names
    with ExitStack() as stack:
        for _ in range(_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=where))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if fcntl is not None:
                held = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, held)
                _lock(held)
            if folder.is_dir():  # else it was swept in the moment before it was locked
                break
        yield folder


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes of this user have left in ``folder``; what cannot be removed stays."""
    if fcntl is None:
        return
    for path in folder.glob(pattern):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or somebody is at it
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            finally:
                os.close(lock)


def _lock(file: int) -> None:
    """As long as this process has it open, it is not swept."""
    with suppress(OSError):  # a file system without locks: nobody can sweep there
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
