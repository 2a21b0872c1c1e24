"""The environment in which a program is rehearsed. It is given to child processes only."""

import os
from collections.abc import Mapping
from pathlib import Path

from fitplan.devices.device import Device
from fitplan.rehearsal.build import StandIns
from fitplan.rehearsal.gpu import environment_of

FOLDER_VARIABLE = "FITPLAN_REHEARSAL_FOLDER"
"""Names the folder for what belongs to one rehearsal alone."""
INSIDE = Path(__file__).parent / "inside"
"""Its ``sitecustomize`` is run by every Python that starts with this folder on its path."""


def environment(
    stand_ins: StandIns, device: Device, *, count: int = 1, before: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What to add to the environment of a process so that it, and what it starts, finds ``count`` such GPUs.

    True values are kept where :data:`FOLDER_VARIABLE` is set beside it.
    """
    return {
        **environment_of(device, count=count),
        "LD_PRELOAD": _first(str(stand_ins.preloaded), before.get("LD_PRELOAD"), ":"),
        "LD_LIBRARY_PATH": _first(str(stand_ins.opened), before.get("LD_LIBRARY_PATH"), ":"),
        "PYTHONPATH": _first(str(INSIDE), before.get("PYTHONPATH"), os.pathsep),
        "TRITON_LIBCUDA_PATH": str(stand_ins.opened),  # what Triton links its launchers against
    }


def _first(one: str, others: str | None, between: str) -> str:
    return between.join(filter(None, (one, others)))
