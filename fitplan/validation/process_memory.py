"""Device memory of this process, as the driver counts it: the CUDA context and all that PyTorch does not know of."""

import os
from contextlib import suppress
from typing import Any

from fitplan.devices.nvml import Failure, Handle, Nvml, ask, known, load, read_memory


class ProcessMemory:
    """Device memory of this process on the one GPU that it sees.

    Where the driver does not tell of this process, as in many containers (whose numbers are not the driver's), or says
    that it holds nothing, it is what the whole GPU holds beyond what it held when this was made, which must be before
    CUDA is used; others must be still in the meantime.
    """

    def __init__(self, nvml: Nvml | None = None, visible: str | None = None) -> None:
        self._nvml = nvml or load()
        self._handle: Handle | None = None
        if self._nvml is not None:
            self._handle = _open(self._nvml, visible or os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        self._before = self._used()

    def read(self) -> int | None:
        """Bytes, as of now; ``None`` where the driver does not tell."""
        own = self._own()
        if own:
            return own
        now = self._used()
        return None if now is None or self._before is None else max(0, now - self._before)

    def _own(self) -> int | None:
        nvml, handle = self._nvml, self._handle
        if nvml is None or handle is None:
            return None
        processes = known(ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
        return next((one.usedGpuMemory for one in processes or () if one.pid == os.getpid()), None)

    def _used(self) -> int | None:
        if self._nvml is None or self._handle is None:
            return None
        memory = read_memory(self._nvml, self._handle)
        return None if isinstance(memory, Failure) else memory.used_bytes


def _open(nvml: Nvml, visible: str) -> Handle | None:
    """The GPU or slice that the variable names, by UUID or index; no other is guessed."""
    first = visible.split(",")[0].strip()
    if isinstance(ask(nvml.nvmlInit), Failure):
        return None
    if first.isdigit() or not first:
        return known(ask(lambda: nvml.nvmlDeviceGetHandleByIndex(int(first or 0))))
    return known(ask(lambda: nvml.nvmlDeviceGetHandleByUUID(first)))


def driver_versions() -> dict[str, str]:
    """The driver, cuDNN, and the CUDA that PyTorch was built for; what cannot be had is left out."""
    found: dict[str, str] = {}
    with suppress(Exception):
        import torch

        found["cuda"] = str(torch.version.cuda)
        version: Any = torch.backends.cudnn.version
        found["cudnn"] = str(version())  # from some version on it computes attention
    nvml = load()
    if nvml is not None and not isinstance(ask(nvml.nvmlInit), Failure):
        driver = known(ask(nvml.nvmlSystemGetDriverVersion))
        found |= {"driver": driver} if driver else {}
    return found
