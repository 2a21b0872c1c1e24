"""Tracing as a service to the rest: torch is imported when it is needed; what goes wrong is told in one sentence."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

from fitplan.configs.resolve import ModelConfig
from fitplan.errors import MissingDependency, ModelNotSupported
from fitplan.faults import moved_library, told_as
from fitplan.guard import Guard
from fitplan.installing import install
from fitplan.limits import limited
from fitplan.setup import LIGER_PACKAGE, TrainingSetup

if TYPE_CHECKING:
    from fitplan.trace.kernels import Gpu
    from fitplan.trace.tracing import TracedRun

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")

Progress = Callable[[str], None]

_HERE: ContextVar[bool] = ContextVar("fitplan_traces_here", default=False)


@contextlib.contextmanager
def tracing_here() -> Iterator[None]:
    """Inside, this thread traces in its own process, not in one beside it (:mod:`fitplan.making`).

    That spares the import of torch where it is there already, and is for programs that do nothing else meanwhile.
    """
    token = _HERE.set(True)
    try:
        yield
    finally:
        _HERE.reset(token)


def traces_here() -> bool:
    """Whether it is traced in this process."""
    return _HERE.get()


def installed_versions(setup: TrainingSetup | None = None) -> dict[str, str]:
    """The versions of the libraries that decide the numbers (of this setup), without importing them.

    They are read off the names of the installed packages' folders, ``{name}-{version}.dist-info``
    (packaging.python.org, "Recording installed projects"), because ``importlib.metadata`` takes as long as a whole
    shipped answer; once in a process, as a search asks hundreds of times.
    """
    libraries = (*LIBRARIES, LIGER_PACKAGE) if setup is not None and setup.use_liger_kernel else LIBRARIES
    found = _versions_on(tuple(sys.path))
    return {library: found[library] for library in libraries if library in found}


@cache
def _versions_on(folders: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208
                library, _, number = name.removesuffix(".dist-info").partition("-")
                if library in (*LIBRARIES, LIGER_PACKAGE) and name.endswith(".dist-info"):
                    found.setdefault(library, number)
    return found


@contextlib.contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Inside, a package that is not there is told in one sentence.

    Raises:
        MissingDependency: an import failed.
        LibraryMoved: what is imported is not what fitplan knows.

    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        if (told := moved_library(error)) is not None:
            raise told from error
        if isinstance(error, AttributeError):
            raise
        raise MissingDependency(
            f"{what} needs {error.name or 'torch'}, which is not installed; {install('torch')}"
        ) from error


def trace_job(
    model: ModelConfig,
    setup: TrainingSetup,
    capability: tuple[int, int] | None,
    progress: Progress,
    *,
    exactly: bool = False,
    multiprocessors: int | None = None,
    only_optimizer: bool = False,
) -> "TracedRun":
    """The training step of ``setup``, or its optimizer's alone, traced for a GPU of that compute capability or the CPU.

    Raises:
        MissingDependency: torch and its companions are not installed.
        ModelNotSupported: the step cannot be run as config and setup say.
        InputError: the setup does not suit the model.
        LibraryMoved: a library is not as this version of fitplan knows it.

    """
    progress(f"{setup.method}: importing torch and transformers")
    with quiet(), no_network():
        with needed_for("tracing a model"):
            from fitplan.step.architecture import load_config
            from fitplan.trace.kernels import Gpu
            from fitplan.trace.tracing import trace_training
        what = f"the training step of {model.name} cannot be run as its config and the setup say"
        with (
            limited(f"tracing {model.name}"),
            told_as(ModelNotSupported, what, _way_out),
        ):
            return trace_training(
                load_config(model.settings),
                setup,
                None if capability is None else _gpu(Gpu, capability, multiprocessors, exactly=exactly),
                only_optimizer=only_optimizer,
                progress=lambda what: progress(f"{setup.method}: {what}"),
            )


def _way_out(error: Exception) -> str:
    """What to do about an error of a library: sizes that do not suit each other come from the config."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in ("shape", "size", "dim")):
        return "check the config's dimensions against each other"
    if "'tuple' object has no attribute 'dtype'" in str(error):  # peft lora/layer.py, of a router's several results
        return "peft adapts a router here, which it cannot; name target_modules, such as q_proj,k_proj,v_proj,o_proj"
    return "transformers or peft refuse this step; other target_modules, attn or gradient_checkpointing may be answered"


def _gpu(kind: "type[Gpu]", capability: tuple[int, int], multiprocessors: int | None, *, exactly: bool) -> "Gpu":
    return kind.exactly(capability, multiprocessors) if exactly else kind(capability)


_CLOSED: ContextVar[bool] = ContextVar("fitplan_network_closed", default=False)


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Inside, this thread reaches no network: a config is a file from strangers, and names no address to call.

    Raises:
        ModelNotSupported: a library wants to.

    """
    _watch_sockets()
    token = _CLOSED.set(True)
    try:
        yield
    finally:
        _CLOSED.reset(token)


@cache
def _watch_sockets() -> None:
    """Audit hooks stay for the life of a process (PEP 578); this one does nothing outside of :func:`no_network`."""

    def refuse(event: str, _arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") and _CLOSED.get():
            raise ModelNotSupported(
                "a library wanted to reach the network for this model, which a trace does not do; "
                "look in its config for code that it names"
            )

    sys.addaudithook(refuse)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries' remarks about a GPU that is not there, and about weights that are not real, help nobody here."""
    with Guard() as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard.exchange_here(logging.Logger, "isEnabledFor", lambda *_: False)
        yield
