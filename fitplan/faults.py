"""Whose fault an exception is: the config's, a library's that has moved on, or fitplan's own.

A training step is foreign code, run as a config says: whatever it raises is the config's fault, as a rule. Two kinds
are not. A name that fitplan asks of a library and that is not there, or takes other arguments: the library is newer or
older than this version knows. And what fitplan's own code raises: a defect, which must reach whoever can mend it.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fitplan.errors import FitplanError, LibraryMoved

KNOWN = {
    "torch": "2.13.0",
    "triton": "3.7.1",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "liger_kernel": "0.8.5",
}
"""The newest version of each library that the tests run with, ``constraints/newest.txt``."""

_HERE = str(Path(__file__).parent)
_PASSING_ON = ("__getattr__", "_find_and_load", "_handle_fromlist", "_gcd_import")
"""Functions of a library or of Python's import that say for another one that a name is not there."""


def moved(library: str, what: str) -> LibraryMoved:
    """The error for a library that is not as fitplan knows it: what is not, which version is here, which one works."""
    from importlib.metadata import PackageNotFoundError, version  # which takes as long to import as rich

    package = library.replace("_", "-")
    try:
        installed = f"{package} {version(package)}"
    except PackageNotFoundError:
        installed = package
    works = f"{package} {KNOWN[library]}" if library in KNOWN else "an older one"
    return LibraryMoved(
        library,
        f"{installed} is not as this version of fitplan knows it: {what}; {works} works, or a newer fitplan may",
    )


def library_of(holder: Any) -> str:
    """The library that a module, a class or an object comes from: ``torch`` of ``torch.nn.Linear``."""
    where = holder if isinstance(holder, ModuleType | type) else type(holder)
    name = where.__name__ if isinstance(where, ModuleType) else where.__module__
    return str(name).partition(".")[0]


def moved_library(error: BaseException) -> LibraryMoved | None:
    """The error to tell instead, if this one says that a library lacks a name."""
    match error:
        case ModuleNotFoundError(name=str(name)) if "." not in name:
            return None  # it is not installed
        case ImportError(name=str(name)):
            library = name.partition(".")[0]
        case AttributeError() if is_raised_here(error) and not _is_config(error.obj):
            library = library_of(error.obj)
        case _:
            return None
    return moved(library, one_line(error)) if library in KNOWN else None


@contextmanager
def interface_of(library: str) -> Iterator[None]:
    """Inside, private functions of ``library`` are called.

    Raises:
        LibraryMoved: one takes other arguments.

    """
    try:
        yield
    except TypeError as error:
        if is_raised_here(error):
            raise moved(library, one_line(error)) from error
        raise


@contextmanager
def told_as(error_of: type[FitplanError], what: str, advice: "str | Callable[[Exception], str]") -> Iterator[None]:
    """Inside, foreign code runs as a config says; what it raises is told in one sentence.

    Raises:
        FitplanError: of the kind that is given: the config's fault.
        LibraryMoved: a library is not as fitplan knows it.
        Exception: what fitplan's own code raises, as it is.

    """
    try:
        yield
    except FitplanError:
        raise
    except Exception as error:
        if (told := moved_library(error)) is not None:
            raise told from error
        if is_own(error):
            raise
        do = advice if isinstance(advice, str) else advice(error)
        raise error_of(f"{what}: {type(error).__name__}: {one_line(error)}; {do}") from error


def is_own(error: BaseException) -> bool:
    """Whether fitplan's own code raised it: a defect.

    Where a step's operators run through fitplan, what PyTorch says of their operands comes from there as well. It says
    it as ``RuntimeError``, of dimensions as ``IndexError`` (``c10/util/Exception.h``), which fitplan never raises.
    """
    said_by_torch = isinstance(error, RuntimeError) or (isinstance(error, IndexError) and "imension" in str(error))
    return is_raised_here(error) and not said_by_torch


def is_raised_here(error: BaseException) -> bool:
    """Whether the innermost function that the exception went through is one of fitplan's."""
    frames = [
        frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name not in _PASSING_ON
    ]
    return bool(frames) and frames[-1].co_filename.startswith(_HERE)


def one_line(error: BaseException) -> str:
    """An error message in one line, not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


def _is_config(value: Any) -> bool:
    """A config lacks what its model type does not have."""
    return any(kind.__name__ in ("PretrainedConfig", "PreTrainedConfig") for kind in type(value).__mro__)
