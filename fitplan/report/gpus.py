"""The GPUs of this machine and those known by name: for a terminal, and as the document ``fitplan.gpus/1``."""

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitplan.devices.detect import DetectedGpu, Machine, MigSlice, State, Target
from fitplan.devices.device import Device
from fitplan.devices.nvml import Process
from fitplan.report.tables import print_table
from fitplan.units import gib

_STATES = {
    State.OK: ("", ""),
    State.LOST: ("lost", "bold red"),
    State.NO_PERMISSION: ("no permission", "bold red"),
    State.IN_MIG_MODE: ("in MIG mode", "yellow"),
    State.ERROR: ("does not answer", "bold red"),
}
_UNTOLD = "?"


def print_gpus(machine: Machine, known: tuple[Device, ...], console: Console) -> None:
    """Print each GPU of this machine on a line of its own, its slices and processes below it; then the known GPUs."""
    if machine.problem is not None:
        console.print(_line(machine.problem))
    else:
        console.print(_line(_versions(machine), style="dim"))
        print_table(_here(machine), console)
    console.print()
    console.print(Text("known by name", style="bold"))
    print_table(_by_size(known), console)


def _versions(machine: Machine) -> str:
    words = [f"driver {machine.driver_version or _UNTOLD}"]
    if machine.cuda_version is not None:
        words.append("CUDA up to {}.{}".format(*machine.cuda_version))
    return ", ".join(words)


def _here(machine: Machine) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU", no_wrap=True)
    table.add_column("name")
    for heading in ("total", "free", "used", "reserved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for gpu in machine.gpus:
        _add(table, gpu, gpu.name or _UNTOLD, _remarks(gpu))
        for one in gpu.mig:
            _add(table, one, f"MIG {one.profile or _UNTOLD}", Text(one.error or "", style="bold red"))
    return table


def _add(table: Table, gpu: Target, name: str, remarks: Text) -> None:
    memory = gpu.memory
    sizes = (memory.total_bytes, memory.free_bytes, memory.used_bytes, memory.reserved_bytes) if memory else (None,) * 4
    table.add_row(Text(gpu.place), _line(name), *map(_size, sizes), remarks)
    for process in gpu.processes or ():
        words = f"  {process.name or _UNTOLD} (pid {process.pid})"
        table.add_row("", _line(words, style="dim"), "", "", Text(_size(process.bytes), style="dim"))


def _remarks(gpu: DetectedGpu) -> Text:
    word, style = _STATES[gpu.state]
    text = Text(word, style=style)
    if gpu.state is State.ERROR and gpu.error:
        text.append(f": {gpu.error}")
    notes = []
    if gpu.display_active:
        notes.append("display")
    if gpu.ecc is not None:
        notes.append("ECC on" if gpu.ecc else "ECC off")
    if gpu.state is State.OK and gpu.processes is None:
        notes.append("processes not told")
    for note in notes:
        text.append(f"{', ' if text else ''}{note}", style="dim")
    return text


def _by_size(known: tuple[Device, ...]) -> Table:
    """One line for each size of memory, smallest first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column()
    ordered = sorted(known, key=lambda device: (device.total_bytes, device.name))
    for size, devices in groupby(ordered, key=lambda device: gib(device.total_bytes)):
        table.add_row(size, ", ".join(device.name for device in devices))
    return table


def _size(size: int | None) -> str:
    return _UNTOLD if size is None else gib(size)


def _line(text: str, style: str = "") -> Text:
    """Text that others wrote, as one line: no line breaks, no terminal escapes."""
    return Text("".join(c if c.isprintable() else "?" for c in text), style=style)


def gpus_document(machine: Machine, known: tuple[Device, ...]) -> dict[str, Any]:
    """The document ``fitplan.gpus/1``; sizes in bytes, null for what the driver does not tell."""
    return {
        "schema": "fitplan.gpus/1",
        "driver_version": machine.driver_version,
        "cuda_version": _dotted(machine.cuda_version),
        "reason": machine.reason,
        "message": machine.problem,
        "gpus": [_gpu_document(gpu) for gpu in machine.gpus],
        "known": [
            {
                "name": device.name,
                "total_bytes": device.total_bytes,
                "usable_bytes": device.usable_bytes,
                "compute_capability": _dotted(device.capability),
            }
            for device in known
        ],
    }


def _gpu_document(gpu: DetectedGpu) -> dict[str, Any]:
    return {
        **_target_document(gpu),
        "state": gpu.state,
        "display_active": gpu.display_active,
        "ecc": gpu.ecc,
        "mig": [{**_target_document(one), "profile": one.profile} for one in gpu.mig],
    }


def _target_document(gpu: DetectedGpu | MigSlice) -> dict[str, Any]:
    memory = gpu.memory
    return {
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "total_bytes": memory.total_bytes if memory else None,
        "free_bytes": memory.free_bytes if memory else None,
        "used_bytes": memory.used_bytes if memory else None,
        "reserved_bytes": memory.reserved_bytes if memory else None,
        "compute_capability": _dotted(gpu.capability),
        "processes": None if gpu.processes is None else [_process_document(one) for one in gpu.processes],
        "message": gpu.problem,
    }


def _process_document(process: Process) -> dict[str, Any]:
    return {"pid": process.pid, "name": process.name, "bytes": process.bytes}


def _dotted(version: tuple[int, int] | None) -> str | None:
    return f"{version[0]}.{version[1]}" if version else None
