"""The exceptions that fitplan raises.

    FitplanError
    ├── InputError             what was asked for makes no sense, or cannot be found (exit code 2)
    │   ├── ModelNotFound      no model under that name, id or path
    │   ├── ModelNotSupported  the model is there, but cannot be built without running foreign code
    │   ├── SetupConflict      two settings contradict each other
    │   └── DeviceNotFound     no GPU under that name
    │       └── NoUsableGpu    this machine has no such GPU, or it cannot be used (exit code 3)
    ├── ProcessFailed          a process beside this one did not come to its end
    │   ├── TraceFailed        the one that traces, as where the machine is out of memory (exit code 2)
    │   └── ValidationFailed   a validation run (exit code 4)
    ├── MissingDependency      the answer needs a package that is not installed (exit code 2)
    │   └── RehearsalImpossible  this machine or this PyTorch cannot play a GPU that is not there
    └── LibraryMoved           an installed library is not as this version of fitplan knows it (exit code 2)

"Does not fit" is an answer, not an error. The messages name fields, never command line flags.
"""

ERROR_SCHEMA = "fitplan.error/1"
"""Of the document that stands for an answer where there is none."""


class FitplanError(Exception):
    """Base of everything that fitplan raises on purpose. The message is one sentence for a person."""


class InputError(FitplanError):
    """What was asked for makes no sense: the message says what, where, and what to do."""


class ModelNotFound(InputError):
    """No model is known under that name, hub id or path."""


class ModelNotSupported(InputError):
    """The model cannot be built by the installed libraries without running foreign code."""


class SetupConflict(InputError):
    """Two settings contradict each other."""

    def __init__(self, first: str, second: str, message: str) -> None:
        super().__init__(message)
        self.first = first
        self.second = second


class DeviceNotFound(InputError):
    """No GPU is known under that name."""


class NoUsableGpu(DeviceNotFound):
    """A GPU of this machine was asked for that is not there, or cannot be used."""


class DoesNotFit(FitplanError):
    """A training does not fit the GPU that it was begun on, and was to be refused."""


class MissingDependency(FitplanError):
    """The answer needs a package that is not installed."""


class RehearsalImpossible(MissingDependency):
    """A GPU that is not there cannot be played on this machine, or to the PyTorch that a program uses."""


class LibraryMoved(FitplanError):
    """An installed library is not as this version of fitplan knows it.

    Attributes:
        library: the name of its module.

    """

    def __init__(self, library: str, message: str) -> None:
        super().__init__(message)
        self.library = library


class ProcessFailed(FitplanError):
    """Base of what is told of a process that did not come to its end.

    Attributes:
        details: what it wrote to stderr last, for whoever looks for the cause.

    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class TraceFailed(ProcessFailed):
    """A process that traced was ended from outside, as by a machine that is out of memory."""


class ValidationFailed(ProcessFailed):
    """A validation run did not come to its end: the message says where, and why."""
