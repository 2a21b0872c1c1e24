"""What is made of the driver's answers, machine by machine: ``tests/machines/`` holds what NVML says there."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fitplan.devices import nvml as seam
from fitplan.devices.detect import (
    DetectedGpu,
    Machine,
    MigSlice,
    Reason,
    State,
    choose,
    detect,
    means_this_machine,
    to_device,
)
from fitplan.devices.device import DEFAULT_CAPABILITY, Device, known_devices
from fitplan.devices.nvml import Memory, Process
from fitplan.errors import DeviceNotFound
from fitplan.report.gpus import gpus_document, print_gpus
from fitplan.units import MIB

FOLDER = Path(__file__).parent / "machines"
MACHINES = sorted(path.stem for path in FOLDER.glob("*.json"))
CODES = {
    "NVML_ERROR_UNINITIALIZED": 1,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_DRIVER_NOT_LOADED": 9,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_GPU_IS_LOST": 15,
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
    "NVML_ERROR_UNKNOWN": 999,
}
FUNCTIONS = {name for name in vars(seam.Nvml) if name.startswith("nvml")}
MEMORY_V2 = 0x02000028


class NVMLError(Exception):
    """As that of pynvml: the code is ``value``."""

    def __init__(self, name: str) -> None:
        super().__init__(name.removeprefix("NVML_ERROR_").replace("_", " ").capitalize())
        self.value = CODES[name]


class Misuse(BaseException):
    """A call that would crash a real driver, or that no recording knows. No ``except Exception`` hides it."""


class Recorded:
    """Stands in for ``pynvml``; a GPU's handle is its part of the recording."""

    nvmlMemory_v2 = MEMORY_V2  # noqa: N815
    __spec__ = None  # import asks for it

    def __init__(self, recording: dict[str, Any]) -> None:
        self.recording = recording
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise Misuse(f"{name} is not part of the seam")
        return lambda *arguments: self._answer(name, *arguments)

    def _answer(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if name == "nvmlInit":
            return _told(self.recording.get(name))
        if name == "nvmlShutdown":
            return None
        if self.calls.count("nvmlInit") != self.calls.count("nvmlShutdown") + 1:
            raise Misuse(f"{name} outside of nvmlInit and nvmlShutdown")
        if name == "nvmlDeviceGetCount":
            return _told(self.recording.get(name, len(self.recording["devices"])))
        if name == "nvmlDeviceGetHandleByIndex":
            device = self.recording["devices"][arguments[0]]
            return _told(device.get(name, device))
        if name == "nvmlSystemGetProcessName":
            return _told(self.recording[name].get(str(arguments[0]), {"error": "NVML_ERROR_NOT_FOUND"}))
        if name.startswith("nvmlSystem"):
            return _told(self.recording.get(name, {"error": "NVML_ERROR_NOT_SUPPORTED"}))
        handle, *rest = arguments
        if not isinstance(handle, dict) or "nvmlDeviceGetHandleByIndex" in handle:
            raise Misuse(f"{name} of a GPU that gave no handle")
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            return _told(handle["mig"][rest[0]] or {"error": "NVML_ERROR_NOT_FOUND"})
        if name == "nvmlDeviceGetMemoryInfo" and rest:
            assert rest == [MEMORY_V2]
            name += "_v2"
        return _told(handle.get(name, {"error": "NVML_ERROR_NOT_SUPPORTED"}))


def _told(answer: Any) -> Any:
    match answer:
        case {"error": name}:
            raise NVMLError(name)
        case {"raises": name}:
            raise type(name, (Exception,), {})
        case {"total": _}:
            return SimpleNamespace(**answer)
        case [{"pid": _}, *_]:
            return [SimpleNamespace(**one) for one in answer]
    return answer


def recording(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def no_process_of_a_recorded_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process is not told: the test's must have no number that a recorded one has."""
    monkeypatch.setattr("os.getpid", lambda: 2**22 + 1)  # beyond what Linux gives


def machine(name: str) -> Machine:
    return detect(Recorded(recording(name)))


def changed(name: str, change: Callable[[Any], object]) -> Machine:
    """The machine of that name, with something changed in what NVML says."""
    document = recording(name)
    change(document)
    return detect(Recorded(document))


def error(name: str) -> dict[str, str]:
    return {"error": f"NVML_ERROR_{name}"}


# What a machine says -------------------------------------------------------------------------------------------------


def test_an_h100_is_read_in_full() -> None:
    gpu = DetectedGpu(
        index=0,
        state=State.OK,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-7c3cadbd-5a1d-4c3b-9e2f-012345678900",
        memory=Memory(total_bytes=85_520_809_984, free_bytes=85_045_018_624, reserved_bytes=475_201_536),
        capability=(9, 0),
        processes=(),
        display_active=False,
        ecc=True,
    )
    assert machine("one_h100") == Machine("565.57.01", (12, 7), (gpu,))
    assert gpu.memory is not None
    assert gpu.memory.used_bytes == 589_824


@pytest.mark.parametrize(
    ("name", "driver", "cuda", "memory"),
    [
        ("one_h100", "565.57.01", (12, 7), [(85_520_809_984, 85_045_018_624, 475_201_536)]),
        (
            "eight_h100", "550.90.07", (12, 4),
            [
                (85_520_809_984, 6600 * MIB, 351_797_248),
                (85_520_809_984, 76_579_078_144, 351_797_248),
                *[(85_520_809_984, 81222 * MIB, 351_797_248)] * 5,
                (85_520_809_984, 84_632_141_824, 351_797_248),
            ],
        ),
        ("a100_mig", "535.129.03", (12, 2), [None]),
        ("wsl2", "591.44", (13, 1), [(17_171_480_576, 1693 * MIB, 323 * MIB)]),
        ("lost_gpu", "470.199.02", (11, 4), [None, (25_446_842_368, 25_443_696_640, None)]),
        ("desktop_4090", "545.29.06", (12, 3), [(25_757_220_864, 24_746_065_920, 371_916_800)]),
        ("no_driver", None, None, []),
        ("no_permission", None, None, []),
    ],
)  # fmt: skip
def test_versions_and_bytes(
    name: str, driver: str | None, cuda: tuple[int, int] | None, memory: list[tuple[int, int, int | None] | None]
) -> None:
    found = machine(name)
    assert (found.driver_version, found.cuda_version) == (driver, cuda)
    assert [gpu.memory and tuple(vars(gpu.memory).values()) for gpu in found.gpus] == memory
    assert [gpu.index for gpu in found.gpus] == list(range(len(memory)))


def test_every_machine_is_looked_at() -> None:
    assert MACHINES == [
        "a100_mig", "desktop_4090", "eight_h100", "lost_gpu", "no_driver", "no_permission", "one_h100", "wsl2",
    ]  # fmt: skip


def test_a_desktop_card_has_a_display_and_each_process_once() -> None:
    (gpu,) = machine("desktop_4090").gpus
    assert (gpu.state, gpu.display_active, gpu.ecc, gpu.mig) == (State.OK, True, False, ())
    assert gpu.processes == (
        Process(12636, "chrome", 60 * MIB),  # computes and draws
        Process(1180, "Xorg", 290 * MIB),
        Process(1424, "gnome-shell", 110 * MIB),
        Process(3132, "code", 64 * MIB),
    )
    assert gpu.memory is not None
    assert gpu.memory.used_bytes == 639_238_144


@pytest.mark.parametrize(("compute", "graphics"), [(60 * MIB, None), (None, 60 * MIB), (60 * MIB, 60 * MIB)])
def test_one_of_two_lists_is_enough_to_know_a_process(compute: int | None, graphics: int | None) -> None:
    def tell(document: Any) -> None:
        (gpu,) = document["devices"]
        gpu["nvmlDeviceGetComputeRunningProcesses"] = [{"pid": 12636, "usedGpuMemory": compute}]
        gpu["nvmlDeviceGetGraphicsRunningProcesses"] = [{"pid": 12636, "usedGpuMemory": graphics}]

    (gpu,) = changed("desktop_4090", tell).gpus
    assert gpu.processes == (Process(12636, "chrome", 60 * MIB),)


def test_this_process_is_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 12636)
    (gpu,) = machine("desktop_4090").gpus
    assert gpu.processes is not None
    assert [process.pid for process in gpu.processes] == [1180, 1424, 3132]


def test_under_wsl_a_process_holds_an_unknown_amount() -> None:
    (gpu,) = machine("wsl2").gpus
    assert gpu.processes == (Process(79, None, None), Process(23, "Xwayland", None))
    assert (gpu.state, gpu.display_active, gpu.ecc) == (State.OK, True, None)
    assert gpu.memory is not None
    assert gpu.memory.used_bytes == 14360 * MIB


def test_a_split_gpu_is_its_slices() -> None:
    (gpu,) = machine("a100_mig").gpus
    assert (gpu.state, gpu.error, gpu.memory, gpu.processes) == (State.IN_MIG_MODE, None, None, None)
    name = "NVIDIA A100-SXM4-40GB MIG "
    busy = (Process(2281505, "cuda_profile_workload", 270 * MIB),)
    assert gpu.mig == (
        MigSlice(
            0, 0, name + "3g.20gb", "MIG-e07a497d-6bb1-5a42-b670-1c33bf55ab00",
            Memory(19968 * MIB, 19651 * MIB, 0), (8, 0), busy,
        ),
        MigSlice(
            0, 1, name + "2g.10gb", "MIG-90155500-6bb1-5a42-b670-1c33bf55ab01",
            Memory(9728 * MIB, 9703 * MIB, 0), (8, 0), (),
        ),
        MigSlice(
            0, 3, name + "1g.5gb", "MIG-90155511-6bb1-5a42-b670-1c33bf55ab03",
            Memory(4864 * MIB, 5_087_166_464, 0), (8, 0), (),
        ),
    )  # fmt: skip
    assert [(one.place, one.profile) for one in gpu.mig] == [("0:0", "3g.20gb"), ("0:1", "2g.10gb"), ("0:3", "1g.5gb")]


def test_what_root_sees_of_a_split_gpu_is_not_counted_twice() -> None:
    """The privileged learn the whole GPU's memory, and the processes of all slices (nvml.h)."""

    def allow(document: Any) -> None:
        gpu = document["devices"][0]
        gpu["nvmlDeviceGetMemoryInfo_v2"] = {
            "total": 40960 * MIB,
            "reserved": 0,
            "free": 40000 * MIB,
            "used": 960 * MIB,
        }
        gpu["nvmlDeviceGetComputeRunningProcesses"] = gpu["mig"][0]["nvmlDeviceGetComputeRunningProcesses"]

    found = changed("a100_mig", allow)
    (gpu,) = found.gpus
    assert (gpu.state, gpu.memory, gpu.processes) == (State.IN_MIG_MODE, Memory(40960 * MIB, 40000 * MIB, 0), None)
    assert gpu.mig == machine("a100_mig").gpus[0].mig
    assert choose(found, environment={}).place == "0:0"


def test_a_slice_that_does_not_answer_leaves_the_others() -> None:
    def silence(document: Any) -> None:
        for version in ("", "_v2"):
            document["devices"][0]["mig"][0]["nvmlDeviceGetMemoryInfo" + version] = error("UNKNOWN")

    found = changed("a100_mig", silence)
    first, *others = found.gpus[0].mig
    assert (first.memory, first.error) == (None, "Unknown")
    assert first.problem == "the MIG slice 0:0 does not answer: Unknown"
    assert [one.problem for one in others] == [None, None]
    assert choose(found, environment={}).place == "0:1"


def test_a_lost_gpu_hides_no_other() -> None:
    lost, good = machine("lost_gpu").gpus
    assert lost == DetectedGpu(0, State.LOST, "Gpu is lost")
    assert (good.index, good.state, good.name, good.capability) == (1, State.OK, "NVIDIA GeForce RTX 3090", (8, 6))


def test_an_old_driver_tells_neither_reserve_nor_processes() -> None:
    gpu = machine("lost_gpu").gpus[1]
    assert gpu.memory == Memory(24268 * MIB, 24265 * MIB, None)
    assert gpu.memory.used_bytes == 3 * MIB
    assert gpu.processes is None
    assert (gpu.display_active, gpu.ecc) == (False, None)


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("GPU_IS_LOST", State.LOST, "GPU 2 is lost"),
        ("NO_PERMISSION", State.NO_PERMISSION, "GPU 2 is closed to this user"),
        ("UNKNOWN", State.ERROR, "GPU 2 does not answer: Unknown"),
        ("NOT_SUPPORTED", State.ERROR, "GPU 2 does not answer: Not supported"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_refusal_is_a_state(name: str, state: State, words: str, late: bool) -> None:
    """Whether the handle is refused, or whatever is asked with it."""

    def refuse(document: Any) -> None:
        gpu = document["devices"][2]
        for key in list(gpu) if late else ["nvmlDeviceGetHandleByIndex"]:
            gpu[key] = error(name)

    found = changed("eight_h100", refuse)
    gpu = found.gpus[2]
    assert gpu == DetectedGpu(2, state, name.replace("_", " ").capitalize())
    assert gpu.problem is not None
    assert gpu.problem.startswith(words)
    assert [one.state for one in found.gpus if one is not gpu] == [State.OK] * 7
    assert choose(found, environment={}).place == "3"
    with pytest.raises(DeviceNotFound, match=words):
        choose(found, "2")


@pytest.mark.parametrize("key", ["nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetCudaComputeCapability"])
def test_what_is_not_told_is_none(key: str) -> None:
    whole = machine("one_h100").gpus[0]
    (gpu,) = changed("one_h100", lambda document: document["devices"][0].pop(key)).gpus
    field = {"nvmlDeviceGetName": "name", "nvmlDeviceGetUUID": "uuid"}.get(key, "capability")
    assert vars(gpu) == {**vars(whole), field: None}


def test_a_process_name_that_cannot_be_decoded_is_none() -> None:
    found = changed("desktop_4090", lambda d: d["nvmlSystemGetProcessName"].update({"1180": {"raises": "Unicode"}}))
    assert found.gpus[0].processes is not None
    assert [one.name for one in found.gpus[0].processes] == ["chrome", None, "gnome-shell", "code"]


# No GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ("LIBRARY_NOT_FOUND", Reason.NO_DRIVER, "no NVIDIA driver runs on this machine"),
        ("DRIVER_NOT_LOADED", Reason.NO_DRIVER, "no NVIDIA driver runs on this machine"),
        ("LIB_RM_VERSION_MISMATCH", Reason.VERSION_MISMATCH, "restart the machine"),
        ("NO_PERMISSION", Reason.NO_PERMISSION, "this user may not talk to the NVIDIA driver"),
        ("UNKNOWN", Reason.OTHER, "does not answer: Unknown"),
    ],
)
@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_why_there_is_none(function: str, answer: str, reason: Reason, words: str) -> None:
    found = changed("one_h100", lambda document: document.update({function: error(answer)}))
    assert (found.gpus, found.reason) == ((), reason)
    assert found.error == answer.replace("_", " ").capitalize()
    assert found.problem is not None
    assert words in found.problem
    with pytest.raises(DeviceNotFound, match=words):
        choose(found)


@pytest.mark.parametrize(("name", "reason"), [("no_driver", "no_driver"), ("no_permission", "no_permission")])
def test_machines_without_a_driver(name: str, reason: str) -> None:
    assert machine(name) == Machine(reason=Reason(reason), error=machine(name).error)


def test_a_driver_without_a_gpu() -> None:
    found = changed("one_h100", lambda document: document.update(devices=[]))
    assert found == Machine("565.57.01", (12, 7), (), Reason.NO_GPU)
    assert found.problem == "the NVIDIA driver 565.57.01 finds no GPU on this machine"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = detect()
    assert found == Machine(reason=Reason.NO_PACKAGE)
    assert found.problem is not None
    assert "pip install nvidia-ml-py" in found.problem


# The seam ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_opened_is_closed(name: str) -> None:
    driver = Recorded(recording(name))
    found = detect(driver)
    assert driver.calls[0] == "nvmlInit"
    assert driver.calls.count("nvmlInit") == 1
    assert driver.calls.count("nvmlShutdown") == (0 if found.reason else 1)
    assert driver.calls[-1] == ("nvmlInit" if found.reason else "nvmlShutdown")


def test_an_interrupt_closes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Recorded(recording("one_h100"))
    monkeypatch.setattr(driver, "nvmlDeviceGetCount", _interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        detect(driver)
    assert driver.calls[-1] == "nvmlShutdown"


def _interrupt() -> int:
    raise KeyboardInterrupt


def test_a_failing_shutdown_is_no_matter() -> None:
    driver = Recorded(recording("one_h100"))
    driver.nvmlShutdown = lambda: _told(error("UNKNOWN"))  # type: ignore[attr-defined]
    assert detect(driver) == machine("one_h100")


def test_an_installed_pynvml_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Recorded(recording("one_h100")))
    assert detect() == machine("one_h100")


def test_nothing_is_imported_before_it_is_asked() -> None:
    program = "import sys, fitplan.devices.detect, fitplan.report.gpus; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_the_real_bindings_are_as_the_recorded_ones() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert len(FUNCTIONS) > 15
    assert [name for name in FUNCTIONS if not callable(getattr(pynvml, name, None))] == []
    assert pynvml.nvmlMemory_v2 == MEMORY_V2
    assert {name: getattr(pynvml, name) for name in CODES} == CODES
    assert {f"NVML_ERROR_{code.name}": code.value for code in seam.Code}.items() <= CODES.items()
    assert pynvml.NVMLError(15).value == 15


class _Library:
    """Stands in for ``libnvidia-ml.so.1`` below the real bindings: one RTX 4090, which knows little else."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.shutdowns = 0

    def nvmlInitWithFlags(self, _flags: Any) -> int:
        return self.init

    def nvmlShutdown(self) -> int:
        self.shutdowns += 1
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:
        version._obj.value = 12030
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, _index: Any, _handle: Any) -> int:
        return 0

    def nvmlDeviceGetName(self, _handle: Any, name: Any, _length: Any) -> int:
        name.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def nvmlDeviceGetMemoryInfo_v2(self, _handle: Any, memory: Any) -> int:
        assert memory._obj.version == MEMORY_V2
        memory._obj.total, memory._obj.reserved, memory._obj.free, memory._obj.used = 1000, 100, 600, 300
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, _handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 8, 9
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, _handle: Any, count: Any, processes: Any) -> int:
        if processes is None:
            count._obj.value = 1
            return 7  # NVML_ERROR_INSUFFICIENT_SIZE: ask again with room for one
        count._obj.value = 1
        processes[0].pid, processes[0].usedGpuMemory = 42, 2**64 - 1
        return 0


@pytest.mark.parametrize("init", [0, 18])
def test_through_the_real_bindings(init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")
    library = _Library(init)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    found = detect()
    if init:
        assert (found.reason, library.shutdowns) == (Reason.VERSION_MISMATCH, 0)
        return
    gpu = DetectedGpu(
        0,
        State.OK,
        None,
        "NVIDIA GeForce RTX 4090",
        None,
        Memory(1000, 600, 100),
        (8, 9),
        (),
        (Process(42, None, None),),
    )
    assert found == Machine(None, (12, 3), (gpu,))
    assert library.shutdowns == 1


# As a device ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "which", "device"),
    [
        ("one_h100", "0", Device("H100 80GB HBM3", 85_520_809_984, 85_045_018_624, (9, 0), "NVML, GPU 0, now")),
        ("eight_h100", "0", Device("H100 80GB HBM3", 85_520_809_984, 6600 * MIB, (9, 0), "NVML, GPU 0, now")),
        ("eight_h100", "7", Device("H100 80GB HBM3", 85_520_809_984, 84_632_141_824, (9, 0), "NVML, GPU 7, now")),
        (
            "a100_mig", "0:1",
            Device("A100-SXM4-40GB MIG 2g.10gb", 9728 * MIB, 9703 * MIB, (8, 0), "NVML, GPU 0 MIG slice 1, now"),
        ),
        ("wsl2", "0", Device("RTX 4070 Ti SUPER", 17_171_480_576, 1693 * MIB, (8, 9), "NVML, GPU 0, now")),
        ("lost_gpu", "1", Device("RTX 3090", 25_446_842_368, 25_443_696_640, (8, 6), "NVML, GPU 1, now")),
        ("desktop_4090", "0", Device("RTX 4090", 25_757_220_864, 24_746_065_920, (8, 9), "NVML, GPU 0, now")),
    ],
)  # fmt: skip
def test_a_gpu_becomes_a_device(name: str, which: str, device: Device) -> None:
    assert to_device(choose(machine(name), which)) == replace(device, is_here=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", ("RTX 4060 Ti", (8, 9))),
        ("NVIDIA A100-PCIE-40GB", ("A100-PCIE-40GB", (8, 0))),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", ("H100 80GB HBM3 MIG 3g.40gb", (9, 0))),
        ("Tesla T4", ("Tesla T4", (7, 5))),
        ("NVIDIA RTX 9999", ("RTX 9999", DEFAULT_CAPABILITY)),
        (None, ("GPU 3", DEFAULT_CAPABILITY)),
    ],
)
def test_a_capability_that_is_not_told_is_looked_up(name: str | None, expected: tuple[str, tuple[int, int]]) -> None:
    gpu = DetectedGpu(3, State.OK, name=name, memory=Memory(7, 5, 0))
    device = to_device(gpu)
    assert (device.name, device.capability) == expected
    assert (device.total_bytes, device.usable_bytes, device.source) == (7, 5, "NVML, GPU 3, now")
    assert to_device(replace(gpu, capability=(12, 1))).capability == (12, 1)


def test_a_known_gpu_has_one_name() -> None:
    for device in known_devices():
        for brand in ("", "NVIDIA ", "NVIDIA GeForce "):
            gpu = DetectedGpu(0, State.OK, name=brand + device.name, memory=Memory(7, 5, 0))
            assert to_device(gpu) == Device(device.name, 7, 5, device.capability, "NVML, GPU 0, now", is_here=True)


def test_a_gpu_that_cannot_be_used_is_no_device() -> None:
    with pytest.raises(DeviceNotFound, match="GPU 0 is lost"):
        to_device(machine("lost_gpu").gpus[0])
    with pytest.raises(DeviceNotFound, match="name one of them: 0:0, 0:1, 0:3"):
        to_device(machine("a100_mig").gpus[0])


# The choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "which", "visible", "place"),
    [
        ("one_h100", "auto", None, "0"),
        ("one_h100", " AUTO ", "0", "0"),
        ("eight_h100", "auto", None, "2"),
        ("eight_h100", "auto", "6,5,3", "3"),
        ("eight_h100", "auto", " 0 , 1 ", "1"),
        ("eight_h100", "auto", "0,1,-1,2", "1"),
        ("eight_h100", "auto", "0,8,2", "0"),
        ("eight_h100", "auto", "0,none,2", "0"),
        ("eight_h100", "auto", "GPU-80000000-5a1d-4c3b-9e2f-012345678907,1", "7"),
        ("eight_h100", "auto", "gpu-8", "7"),
        ("eight_h100", "auto", "0,GPU-,2", "0"),
        ("eight_h100", "0", "5", "0"),
        ("eight_h100", "7", "", "7"),
        ("eight_h100", "GPU-50000000-5a1d-4c3b-9e2f-012345678904", "0", "4"),
        ("eight_h100", "gpu-5", None, "4"),
        ("a100_mig", "auto", None, "0:0"),
        ("a100_mig", "auto", "0", "0:0"),
        ("a100_mig", "auto", "GPU-fcf41002", "0:0"),
        ("a100_mig", "auto", "MIG-90155500-6bb1-5a42-b670-1c33bf55ab01", "0:1"),
        ("a100_mig", "auto", "MIG-90155511,MIG-90155500", "0:1"),
        ("a100_mig", "0:3", None, "0:3"),
        ("a100_mig", "MIG-90155511", "", "0:3"),
        ("wsl2", "auto", None, "0"),
        ("lost_gpu", "auto", None, "1"),
        ("lost_gpu", "auto", "1", "1"),
        ("desktop_4090", "0", None, "0"),
    ],
)
def test_what_is_chosen(name: str, which: str, visible: str | None, place: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose(machine(name), which, environment).place == place


@pytest.mark.parametrize(
    ("name", "which", "visible", "words"),
    [
        ("eight_h100", "auto", "", "CUDA_VISIBLE_DEVICES='' shows no GPU that can be used; unset it, or name a GPU"),
        ("eight_h100", "auto", "-1", "CUDA_VISIBLE_DEVICES='-1' shows no GPU"),
        ("eight_h100", "auto", "NoDevFiles", "CUDA_VISIBLE_DEVICES='NoDevFiles' shows no GPU"),
        ("a100_mig", "auto", "MIG-901555", "shows no GPU"),
        ("lost_gpu", "auto", "0", "CUDA_VISIBLE_DEVICES='0' shows no GPU"),
        ("eight_h100", "8", None, "this machine has no GPU 8; it has 0, 1, 2, 3, 4, 5, 6, 7"),
        ("eight_h100", "0:0", None, "GPU 0 has no MIG slices; name it as 0"),
        ("lost_gpu", "0", None, "GPU 0 is lost"),
        ("lost_gpu", "0:0", None, "GPU 0 is lost"),
        ("a100_mig", "0", None, "GPU 0 is split into MIG slices; name one of them: 0:0, 0:1, 0:3"),
        ("a100_mig", "0:2", None, "GPU 0 has no MIG slice 2; it has 0:0, 0:1, 0:3"),
        ("a100_mig", "MIG-901555", None, "'MIG-901555' begins the UUIDs of several GPUs (0:1, 0:3)"),
        ("eight_h100", "GPU-", None, "no GPU of this machine is named 'GPU-'"),
        ("eight_h100", "GPU-abcdef", None, "no GPU of this machine is named 'GPU-abcdef'"),
        ("eight_h100", "", None, "no GPU of this machine is named ''"),
        ("eight_h100", "9" * 5000, None, "no GPU of this machine is named"),
        ("no_driver", "auto", None, "no NVIDIA driver runs on this machine (Library not found)"),
        ("no_permission", "0", None, "this user may not talk to the NVIDIA driver"),
    ],
)
def test_what_cannot_be_chosen(name: str, which: str, visible: str | None, words: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(DeviceNotFound) as refused:
        choose(machine(name), which, environment)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_where_no_gpu_can_be_used_each_says_why() -> None:
    found = changed("lost_gpu", lambda d: d["devices"][1].update(nvmlDeviceGetHandleByIndex=error("NO_PERMISSION")))
    with pytest.raises(DeviceNotFound) as refused:
        choose(found, environment={})
    assert str(refused.value).startswith("no GPU of this machine can be used: GPU 0 is lost")
    assert "; GPU 1 is closed to this user" in str(refused.value)


def test_a_split_gpu_without_slices() -> None:
    found = changed("a100_mig", lambda document: document["devices"][0].update(mig=[None] * 7))
    for which in ("auto", "0", "0:0"):
        with pytest.raises(DeviceNotFound, match="GPU 0 is in MIG mode and has no slice"):
            choose(found, which, {})


@pytest.mark.parametrize(
    ("visible", "order", "place"),
    [
        (None, None, "1"),
        ("0", "PCI_BUS_ID", "0"),
        ("1", "PCI_BUS_ID", "1"),
        ("1,0", None, "1"),
        ("GPU-00004090", None, "0"),
        ("0", None, None),
        ("0", "FASTEST_FIRST", None),
        ("1,-1,0", None, None),
    ],
)
def test_an_index_of_cuda_is_not_taken_for_one_of_the_driver(
    visible: str | None, order: str | None, place: str | None
) -> None:
    """Among different GPUs CUDA counts the fastest first, unless told to count as the driver does."""
    h100 = recording("one_h100")["devices"][0]
    mixed = changed("desktop_4090", lambda document: document["devices"].append(copy.deepcopy(h100)))
    settings = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    environment = {name: value for name, value in settings.items() if value is not None}
    if place is not None:
        assert choose(mixed, environment=environment).place == place
        return
    with pytest.raises(DeviceNotFound, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name a GPU"):
        choose(mixed, environment=environment)
    assert choose(mixed, "0", environment).place == "0"


def test_auto_reads_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert choose(machine("eight_h100")).place == "5"


@pytest.mark.parametrize("which", ["auto", "Auto", "0", " 12 ", "0:3", "GPU-7c3c", "mig-e07a497d-6bb1"])
def test_names_of_this_machine(which: str) -> None:
    assert means_this_machine(which)


@pytest.mark.parametrize("which", ["4090", "h100", "RTX 4090", "a100-80gb", "", "GPU-", "MIG", "1:", "-1", "24GiB"])
def test_names_of_models(which: str) -> None:
    assert not means_this_machine(which)


def test_no_known_gpu_is_taken_for_an_index() -> None:
    assert [device.name for device in known_devices() if means_this_machine(device.name)] == []


# The report ----------------------------------------------------------------------------------------------------------


def printed(found: Machine, known: tuple[Device, ...] = ()) -> list[str]:
    stream = StringIO()
    print_gpus(found, known, Console(file=stream, width=120, highlight=False))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_each_gpu_has_a_line_and_none_is_summed() -> None:
    lines = printed(machine("eight_h100"))
    assert lines[:7] == [
        "driver 550.90.07, CUDA up to 12.4",
        "GPU name total free used reserved",
        "0 NVIDIA H100 80GB HBM3 79.65 GiB 6.45 GiB 72.87 GiB 335.5 MiB ECC on",
        "python3 (pid 40213) 72.86 GiB",
        "1 NVIDIA H100 80GB HBM3 79.65 GiB 71.32 GiB 8.00 GiB 335.5 MiB ECC on",
        "python3 (pid 51877) 4.00 GiB",
        "python3 (pid 51901) 3.99 GiB",
    ]
    assert lines[7:13] == [
        *(f"{index} NVIDIA H100 80GB HBM3 79.65 GiB 79.32 GiB 1.5 MiB 335.5 MiB ECC on" for index in range(2, 7)),
        "7 NVIDIA H100 80GB HBM3 79.65 GiB 78.82 GiB 512.0 MiB 335.5 MiB ECC on",
    ]
    assert lines[13] == "? (pid 60001) 508.0 MiB"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "a100_mig",
            [
                "0 NVIDIA A100-SXM4-40GB ? ? ? ? in MIG mode, ECC on",
                "0:0 MIG 3g.20gb 19.50 GiB 19.19 GiB 317.0 MiB 0.0 MiB",
                "cuda_profile_workload (pid 2281505) 270.0 MiB",
                "0:1 MIG 2g.10gb 9.50 GiB 9.48 GiB 25.0 MiB 0.0 MiB",
                "0:3 MIG 1g.5gb 4.75 GiB 4.74 GiB 12.5 MiB 0.0 MiB",
            ],
        ),
        (
            "wsl2",
            [
                "0 NVIDIA GeForce RTX 4070 Ti SUPER 15.99 GiB 1.65 GiB 14.02 GiB 323.0 MiB display",
                "? (pid 79) ?",
                "Xwayland (pid 23) ?",
            ],
        ),
        (
            "lost_gpu",
            [
                "0 ? ? ? ? ? lost",
                "1 NVIDIA GeForce RTX 3090 23.70 GiB 23.70 GiB 3.0 MiB ? processes not told",
            ],
        ),
        (
            "desktop_4090",
            [
                "0 NVIDIA GeForce RTX 4090 23.99 GiB 23.05 GiB 609.6 MiB 354.7 MiB display, ECC off",
                "chrome (pid 12636) 60.0 MiB",
                "Xorg (pid 1180) 290.0 MiB",
                "gnome-shell (pid 1424) 110.0 MiB",
                "code (pid 3132) 64.0 MiB",
            ],
        ),
    ],
)
def test_the_table(name: str, expected: list[str]) -> None:
    assert printed(machine(name))[2 : 2 + len(expected)] == expected


@pytest.mark.parametrize("name", ["no_driver", "no_permission"])
def test_where_nothing_is_one_sentence_says_why(name: str) -> None:
    found = machine(name)
    assert printed(found)[:2] == [found.problem, ""]


def test_the_known_gpus_are_listed() -> None:
    text = "\n".join(printed(machine("no_driver"), known_devices()))
    assert "known by name" in text
    assert "79.65 GiB H100 80GB HBM3, H100 PCIe" in text
    assert [device.name for device in known_devices() if device.name not in " ".join(text.split())] == []


def test_a_process_cannot_write_to_the_terminal() -> None:
    def rename(document: Any) -> None:
        document["nvmlSystemGetProcessName"]["1180"] = "\x1b[31m[bold]evil\nline"

    lines = printed(changed("desktop_4090", rename))
    assert "?[31m[bold]evil?line (pid 1180) 290.0 MiB" in lines


@pytest.mark.parametrize("name", MACHINES)
def test_the_document_says_what_was_found(name: str) -> None:
    found = machine(name)
    document = json.loads(json.dumps(gpus_document(found, known_devices())))
    assert list(document) == ["schema", "driver_version", "cuda_version", "reason", "message", "gpus", "known"]
    assert document["schema"] == "fitplan.gpus/1"
    assert document["driver_version"] == found.driver_version
    assert document["reason"] == (found.reason.value if found.reason else None)
    assert document["message"] == found.problem
    assert [(gpu["index"], gpu["state"], gpu["name"]) for gpu in document["gpus"]] == [
        (gpu.index, gpu.state.value, gpu.name) for gpu in found.gpus
    ]
    slices = [one for gpu in document["gpus"] for one in gpu["mig"]]
    for one in [*document["gpus"], *slices]:
        if one["total_bytes"] is not None:
            parts = (one["free_bytes"], one["used_bytes"], one["reserved_bytes"] or 0)
            assert one["total_bytes"] == sum(parts) > max(parts) > 0
    assert len(document["known"]) == len(known_devices())


def test_the_document_of_a_slice_and_of_a_process() -> None:
    (gpu,) = gpus_document(machine("a100_mig"), ())["gpus"]
    assert gpu["mig"][0] == {
        "index": 0,
        "name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "uuid": "MIG-e07a497d-6bb1-5a42-b670-1c33bf55ab00",
        "total_bytes": 19968 * MIB,
        "free_bytes": 19651 * MIB,
        "used_bytes": 317 * MIB,
        "reserved_bytes": 0,
        "compute_capability": "8.0",
        "processes": [{"pid": 2281505, "name": "cuda_profile_workload", "bytes": 270 * MIB}],
        "message": None,
        "profile": "3g.20gb",
    }
    assert (gpu["total_bytes"], gpu["processes"], gpu["ecc"], gpu["display_active"]) == (None, None, True, False)
    assert gpu["message"].startswith("GPU 0 is split into MIG slices")


def test_the_document_of_a_known_gpu() -> None:
    device = Device("X1", 7, 5, (8, 6), "somewhere")
    document = gpus_document(machine("one_h100"), (device,))
    assert document["known"] == [{"name": "X1", "total_bytes": 7, "usable_bytes": 5, "compute_capability": "8.6"}]
    assert (document["cuda_version"], document["gpus"][0]["compute_capability"]) == ("12.7", "9.0")
