"""The GPUs of this machine, as NVIDIA's driver describes them now."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from fitplan.devices.device import DEFAULT_CAPABILITY, Device, find_device
from fitplan.devices.nvml import (
    Code,
    Failure,
    Handle,
    Memory,
    Nvml,
    Process,
    ask,
    known,
    load,
    read_memory,
    read_processes,
)
from fitplan.errors import DeviceNotFound, NoUsableGpu

AUTO = "auto"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


class Reason(StrEnum):
    """Why no GPU of this machine can be seen."""

    NO_PACKAGE = "no_package"
    NO_DRIVER = "no_driver"
    VERSION_MISMATCH = "version_mismatch"
    NO_PERMISSION = "no_permission"
    NO_GPU = "no_gpu"
    OTHER = "other"


class State(StrEnum):
    """Whether a GPU can be used."""

    OK = "ok"
    LOST = "lost"
    NO_PERMISSION = "no_permission"
    IN_MIG_MODE = "in_mig_mode"
    ERROR = "error"


@dataclass(frozen=True)
class MigSlice:
    """A part of a GPU in MIG mode, with memory of its own.

    Attributes:
        gpu_index: NVML's index of the GPU.
        index: NVML's index of the slice in the GPU; indices may leave gaps.
        name: as the driver says: ``"NVIDIA A100-SXM4-40GB MIG 3g.20gb"``.
        uuid: ``"MIG-…"``.
        memory: None if the driver does not tell.
        capability: CUDA compute capability, that of the GPU.
        processes: other processes on the slice; None if the driver does not tell.
        error: why there is no memory.

    """

    gpu_index: int
    index: int
    name: str | None
    uuid: str | None
    memory: Memory | None
    capability: tuple[int, int] | None
    processes: tuple[Process, ...] | None
    error: str | None = None

    @property
    def place(self) -> str:
        """How it is named: ``"0:1"``."""
        return f"{self.gpu_index}:{self.index}"

    @property
    def profile(self) -> str | None:
        """Compute slices and memory: ``"3g.20gb"``."""
        return (self.name or "").partition(" MIG ")[2] or None

    @property
    def problem(self) -> str | None:
        """Why it cannot be used, as a sentence; None if it can."""
        return None if self.memory else f"the MIG slice {self.place} does not answer: {self.error}"


@dataclass(frozen=True)
class DetectedGpu:
    """A GPU of this machine. What the driver does not tell is None.

    Attributes:
        index: NVML's; CUDA may count otherwise.
        state: whether it can be used.
        error: what the driver says against it.
        name: as the driver says: ``"NVIDIA H100 80GB HBM3"``.
        uuid: ``"GPU-…"``.
        memory: total, free and reserved bytes.
        capability: CUDA compute capability.
        mig: the slices of a GPU in MIG mode.
        processes: other processes; of a GPU in MIG mode its slices know.
        display_active: whether a display hangs on it.
        ecc: whether error correction is on.

    """

    index: int
    state: State
    error: str | None = None
    name: str | None = None
    uuid: str | None = None
    memory: Memory | None = None
    capability: tuple[int, int] | None = None
    mig: tuple[MigSlice, ...] = ()
    processes: tuple[Process, ...] | None = None
    display_active: bool | None = None
    ecc: bool | None = None

    @property
    def place(self) -> str:
        """How it is named: ``"0"``."""
        return str(self.index)

    @property
    def problem(self) -> str | None:
        """Why it cannot be used, as a sentence; None if it can."""
        match self.state:
            case State.OK:
                return None
            case State.LOST:
                return f"GPU {self.index} is lost, the driver reaches it no more; restart the machine"
            case State.NO_PERMISSION:
                return f"GPU {self.index} is closed to this user; ask for access to its device file"
            case State.IN_MIG_MODE if self.mig:
                places = ", ".join(one.place for one in self.mig)
                return f"GPU {self.index} is split into MIG slices; name one of them: {places}"
            case State.IN_MIG_MODE:
                return f"GPU {self.index} is in MIG mode and has no slice; make one with nvidia-smi mig"
            case State.ERROR:
                return f"GPU {self.index} does not answer: {self.error}"


@dataclass(frozen=True)
class Machine:
    """What the driver of this machine says.

    Attributes:
        driver_version: ``"550.90.07"``.
        cuda_version: the newest CUDA that the driver runs: ``(12, 4)``.
        gpus: every GPU, the broken ones too, by index.
        reason: why there is none.
        error: what the driver says to that.

    """

    driver_version: str | None = None
    cuda_version: tuple[int, int] | None = None
    gpus: tuple[DetectedGpu, ...] = ()
    reason: Reason | None = None
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """Why there is no GPU, as a sentence; None if there is one."""
        match self.reason:
            case None:
                return None
            case Reason.NO_PACKAGE:
                return "GPUs cannot be looked for without the package nvidia-ml-py; pip install nvidia-ml-py"
            case Reason.NO_DRIVER:
                return f"no NVIDIA driver runs on this machine ({self.error}); install one, or name a GPU by its model"
            case Reason.VERSION_MISMATCH:
                return "the NVIDIA driver was updated and runs in its old version; restart the machine"
            case Reason.NO_PERMISSION:
                return "this user may not talk to the NVIDIA driver; ask for access to /dev/nvidiactl"
            case Reason.NO_GPU:
                return f"the NVIDIA driver {self.driver_version or ''} finds no GPU on this machine".replace("  ", " ")
            case Reason.OTHER:
                return f"the NVIDIA driver does not answer: {self.error}"


Target = DetectedGpu | MigSlice
"""What a job can run on."""


def detect(nvml: Nvml | None = None) -> Machine:
    """Ask the driver what GPUs there are. Makes no CUDA context, and raises nothing that a driver could cause.

    Args:
        nvml: stands in for ``pynvml``.

    """
    nvml = nvml or load()
    if nvml is None:
        return Machine(reason=Reason.NO_PACKAGE)
    opened = ask(nvml.nvmlInit)
    if isinstance(opened, Failure):
        return Machine(reason=_REASONS.get(opened.code, Reason.OTHER), error=opened.text)
    try:
        return _machine(nvml)
    finally:
        ask(nvml.nvmlShutdown)


_REASONS: dict[int | None, Reason] = {
    Code.LIBRARY_NOT_FOUND: Reason.NO_DRIVER,
    Code.DRIVER_NOT_LOADED: Reason.NO_DRIVER,
    Code.LIB_RM_VERSION_MISMATCH: Reason.VERSION_MISMATCH,
    Code.NO_PERMISSION: Reason.NO_PERMISSION,
}
_STATES: dict[int | None, State] = {Code.GPU_IS_LOST: State.LOST, Code.NO_PERMISSION: State.NO_PERMISSION}


def _machine(nvml: Nvml) -> Machine:
    driver = known(ask(nvml.nvmlSystemGetDriverVersion))
    number = known(ask(nvml.nvmlSystemGetCudaDriverVersion_v2))
    cuda = (number // 1000, number % 1000 // 10) if number else None
    count = ask(nvml.nvmlDeviceGetCount)
    if isinstance(count, Failure):
        return Machine(driver, cuda, (), _REASONS.get(count.code, Reason.OTHER), count.text)
    gpus = tuple(_gpu(nvml, index) for index in range(count))
    return Machine(driver, cuda, gpus, None if gpus else Reason.NO_GPU)


def _gpu(nvml: Nvml, index: int) -> DetectedGpu:
    handle = ask(lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if isinstance(handle, Failure):
        return DetectedGpu(index, _STATES.get(handle.code, State.ERROR), handle.text)
    told = read_memory(nvml, handle)
    mode = known(ask(lambda: nvml.nvmlDeviceGetMigMode(handle)))
    split = bool(mode and mode[0])
    state, error = State.IN_MIG_MODE if split else State.OK, None
    if isinstance(told, Failure) and not split:  # of a split GPU only the privileged learn the memory
        state, error = _STATES.get(told.code, State.ERROR), told.text
    capability = _capability(nvml, handle)
    return DetectedGpu(
        index=index,
        state=state,
        error=error,
        name=known(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        uuid=known(ask(lambda: nvml.nvmlDeviceGetUUID(handle))),
        memory=known(told),
        capability=capability,
        mig=_slices(nvml, index, handle, capability) if split else (),
        processes=None if split else read_processes(nvml, handle),
        display_active=_switch(ask(lambda: nvml.nvmlDeviceGetDisplayActive(handle))),
        ecc=_switch(ask(lambda: nvml.nvmlDeviceGetCurrentEccMode(handle))),
    )


def _slices(nvml: Nvml, gpu_index: int, gpu: Handle, capability: tuple[int, int] | None) -> tuple[MigSlice, ...]:
    most = known(ask(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(gpu))) or 0
    slices = (_slice(nvml, gpu_index, gpu, index, capability) for index in range(most))
    return tuple(one for one in slices if one is not None)


def _slice(nvml: Nvml, gpu_index: int, gpu: Handle, index: int, capability: tuple[int, int] | None) -> MigSlice | None:
    handle = ask(lambda: nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
    if isinstance(handle, Failure):
        return None
    told = read_memory(nvml, handle)
    return MigSlice(
        gpu_index=gpu_index,
        index=index,
        name=known(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        uuid=known(ask(lambda: nvml.nvmlDeviceGetUUID(handle))),
        memory=known(told),
        capability=capability,
        processes=read_processes(nvml, handle),
        error=told.text if isinstance(told, Failure) else None,
    )


def _capability(nvml: Nvml, handle: Handle) -> tuple[int, int] | None:
    answer = known(ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    return (answer[0], answer[1]) if answer else None


def _switch(answer: int | Failure) -> bool | None:
    return None if isinstance(answer, Failure) else bool(answer)


def to_device(gpu: Target) -> Device:
    """A GPU of this machine as a device to judge against: usable is what is free now.

    Raises:
        NoUsableGpu: the GPU cannot be used.

    """
    if gpu.problem is not None:
        raise NoUsableGpu(gpu.problem)
    assert gpu.memory is not None, "what can be used tells its memory"
    where = f"GPU {gpu.gpu_index} MIG slice {gpu.index}" if isinstance(gpu, MigSlice) else f"GPU {gpu.index}"
    return Device(
        name=re.sub(r"^(NVIDIA )?(GeForce )?", "", gpu.name or "") or f"GPU {gpu.place}",
        total_bytes=gpu.memory.total_bytes,
        usable_bytes=gpu.memory.free_bytes,
        capability=gpu.capability or _catalogued_capability(gpu.name or ""),
        source=f"NVML, {where}, now",
        is_here=True,
    )


def _catalogued_capability(name: str) -> tuple[int, int]:
    try:
        return find_device(name.partition(" MIG ")[0]).capability
    except DeviceNotFound:
        return DEFAULT_CAPABILITY


_PLACE = re.compile(r"[0-9]{1,3}(:[0-9]{1,3})?")
_UUID = re.compile(r"(gpu|mig)-[0-9a-f][0-9a-f-]*", flags=re.IGNORECASE)


def means_this_machine(which: str) -> bool:
    """Whether ``which`` is for :func:`choose`, not the name of a model: four digits are a model (``4090``)."""
    which = which.strip()
    return which.lower() == AUTO or any(form.fullmatch(which) for form in (_PLACE, _UUID))


def choose(machine: Machine, which: str = AUTO, environment: Mapping[str, str] = os.environ) -> Target:
    """The GPU or MIG slice that ``which`` names.

    ``"auto"`` is the one with the most free memory among those that CUDA would show (``CUDA_VISIBLE_DEVICES``); of
    equals the first. An index (``"1"``), a slice (``"1:0"``) or a UUID (or the beginning of one) names any, hidden
    ones too. Indices are NVML's own, as in nvidia-smi, whatever ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``
    make of them.

    Of MIG slices CUDA opens only one in a process, and then no whole GPU (NVIDIA's MIG user guide, "CUDA Device
    Enumeration"): to run on the slice chosen, put its UUID into ``CUDA_VISIBLE_DEVICES``.

    Raises:
        NoUsableGpu: there is none, or it cannot be used.

    """
    if machine.problem is not None:
        raise NoUsableGpu(machine.problem)
    which = which.strip()
    if which.lower() == AUTO:
        return _freest(machine, environment)
    found = _at(machine, which) if _PLACE.fullmatch(which) else _with_uuid(machine, which)
    if found.problem is not None:
        raise NoUsableGpu(found.problem)
    return found


def _freest(machine: Machine, environment: Mapping[str, str]) -> Target:
    usable = [one for one in _targets(machine.gpus) if one.problem is None]
    if not usable:
        problems = [one.problem for one in _targets(machine.gpus) if one.problem]
        raise NoUsableGpu("no GPU of this machine can be used: " + "; ".join(problems))
    visible = {one.place for one in _visible(machine, environment)}
    shown = [one for one in usable if one.place in visible]
    if not shown:
        setting = environment.get(VISIBLE)
        raise NoUsableGpu(f"{VISIBLE}={setting!r} shows no GPU that can be used; unset it, or name a GPU")
    return max(shown, key=lambda one: one.memory.free_bytes if one.memory else 0)


def _targets(gpus: Iterable[Target]) -> list[Target]:
    """What can be run on: the slices instead of a GPU that has some."""
    found: list[Target] = []
    for gpu in gpus:
        found += gpu.mig if isinstance(gpu, DetectedGpu) and gpu.mig else (gpu,)
    return found


def _visible(machine: Machine, environment: Mapping[str, str]) -> list[Target]:
    """What CUDA shows a new process: all, or what the list names up to its first invalid entry (CUDA C++ guide)."""
    setting = environment.get(VISIBLE)
    if setting is None:
        return _targets(machine.gpus)
    shown: list[Target] = []
    indices: set[str] = set()
    for entry in map(str.strip, setting.split(",")):
        numbered: list[Target] = [gpu for gpu in machine.gpus if entry == gpu.place]
        matches = numbered or _begin(machine, entry)
        if len(matches) != 1:
            break
        indices |= {one.place for one in numbered}
        shown += _targets(matches)
    _check_order(machine, indices, environment)
    return shown


def _check_order(machine: Machine, indices: set[str], environment: Mapping[str, str]) -> None:
    """CUDA counts the fastest GPU first and NVML by the bus: an index means the same only among equals."""
    models = {gpu.name for gpu in machine.gpus if gpu.name}
    ordered = len(models) < 2 or environment.get(ORDER) == "PCI_BUS_ID"
    if indices and not ordered and indices != {gpu.place for gpu in machine.gpus}:
        raise NoUsableGpu(
            f"{VISIBLE}={environment[VISIBLE]!r} counts in CUDA's order, which among different GPUs is not the "
            f"driver's; set {ORDER}=PCI_BUS_ID, or name a GPU"
        )


def _begin(machine: Machine, beginning: str) -> list[Target]:
    """GPUs and slices whose UUID begins so; the kind alone (``GPU-``) is no beginning."""
    if not _UUID.fullmatch(beginning):
        return []
    everything: list[Target] = [*machine.gpus, *chain.from_iterable(gpu.mig for gpu in machine.gpus)]
    return [one for one in everything if (one.uuid or "").lower().startswith(beginning.lower())]


def _at(machine: Machine, place: str) -> Target:
    index, _, part = place.partition(":")
    gpu = next((gpu for gpu in machine.gpus if gpu.index == int(index)), None)
    if gpu is None:
        have = ", ".join(gpu.place for gpu in machine.gpus)
        raise NoUsableGpu(f"this machine has no GPU {int(index)}; it has {have}")
    if not part:
        return gpu
    if not gpu.mig:
        raise NoUsableGpu(gpu.problem or f"GPU {gpu.index} has no MIG slices; name it as {gpu.index}")
    found = next((one for one in gpu.mig if one.index == int(part)), None)
    if found is None:
        have = ", ".join(one.place for one in gpu.mig)
        raise NoUsableGpu(f"GPU {gpu.index} has no MIG slice {int(part)}; it has {have}")
    return found


def _with_uuid(machine: Machine, uuid: str) -> Target:
    match _begin(machine, uuid):
        case [one]:
            return one
        case []:
            raise NoUsableGpu(f"no GPU of this machine is named {uuid!r}; give an index, a UUID or auto")
        case several:
            places = ", ".join(one.place for one in several)
            raise NoUsableGpu(f"{uuid!r} begins the UUIDs of several GPUs ({places}); give more of it")
