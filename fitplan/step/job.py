"""Where a training step runs, and what it tells whoever watches."""

from dataclasses import dataclass
from typing import Protocol

from fitplan.phase import Phase


class Observer(Protocol):
    """Told what the program does: the phase, and in the loading phase the parameter."""

    def __call__(self, phase: Phase, owner: str = "", /) -> None:
        """``phase`` begins, or goes on with ``owner``."""


@dataclass(frozen=True)
class Place:
    """Where the tensors live, and which kernels the libraries are to choose.

    Attributes:
        device: ``"meta"``, ``"cpu"`` or ``"cuda"``.
        kernels: ``"cuda"`` or ``"cpu"``; differs from ``device`` on ``meta`` only.

    """

    device: str
    kernels: str
