"""What can be chosen: models, GPUs, and the values of a setting; each for a text that was typed."""

from collections.abc import Sequence

from fitplan.configs.catalog import catalog
from fitplan.cuda import AMPERE
from fitplan.devices.detect import Machine, Target, to_device
from fitplan.devices.device import Device, known_devices
from fitplan.errors import FitplanError, InputError
from fitplan.tui.knobs import Knob
from fitplan.tui.screens.picker import Choice
from fitplan.units import count, gib, parse_size


def models(text: str) -> Sequence[Choice]:
    """The shipped models that match; any other text may be a hub id or a path."""
    words = text.lower().split()
    found = [
        Choice(entry.name, entry.name, f"{count(entry.parameters):>9}  {entry.hub_ids[0] if entry.hub_ids else ''}")
        for entry in sorted(catalog(), key=lambda entry: not entry.name.startswith(text.lower()))
        if all(word in " ".join((entry.name, *entry.aliases, *entry.hub_ids)).lower() for word in words)
    ]
    is_place = "/" in text or text.startswith((".", "~")) or text.endswith(".json")
    return [*found, Choice(text, text, "a hub id or a path")] if is_place else found


def gpus(machine: Machine, text: str) -> Sequence[Choice]:
    """The GPUs of this machine, then those known by name; an amount of memory can be typed.

    The values are keyword arguments of :meth:`fitplan.tui.state.Question.on`, as pairs.
    """
    words = text.lower().split()
    targets: list[Target] = [*machine.gpus, *(one for gpu in machine.gpus for one in gpu.mig)]
    here = [choice for one in targets if (choice := _detected(one))]
    known = [
        Choice(("gpu", device.name), device.name, f"{gib(device.total_bytes):>10}")
        for device in sorted(known_devices(), key=lambda device: (device.total_bytes, device.name))
    ]
    found = [] if (size := _size(text)) is None else [Choice(("vram", text), text, f"{gib(size):>10}")]
    for heading, choices in (("on this machine", here), ("known by name", known)):
        matching = [choice for choice in choices if all(word in choice.label.lower() for word in words)]
        matching.sort(key=lambda choice: not choice.label.lower().startswith(text.lower()))
        found += [Choice(None, heading), *matching] if matching else []
    return found


def _detected(gpu: Target) -> Choice | None:
    try:
        device = to_device(gpu)
    except FitplanError:
        return None
    return Choice(("gpu", gpu.place), f"{gpu.place}: {device.name}", f"{gib(device.usable_bytes):>10} free")


def _size(text: str) -> int | None:
    """Bytes, where a size with its unit was typed: a bare number is the name of a GPU (4090)."""
    if not text or text[-1].isdigit():
        return None
    try:
        return parse_size(text)
    except InputError:
        return None


def values(knob: Knob, text: str) -> Sequence[Choice]:
    """The usual values of a setting; where any can be typed, what was typed."""
    if text and knob.is_number:
        try:
            return [Choice(knob.parse(text), text)]
        except InputError:
            return []
    found = [Choice(value, knob.shown(value)) for value in knob.choices]
    matching = [choice for choice in found if text.lower() in choice.label]
    return [Choice(knob.parse(text), text), *matching] if text and knob.is_open else matching


def nearby(device: Device) -> Sequence[Device]:
    """The known GPUs, one of each size, smallest first, with ``device`` in its place."""
    sizes = {device.usable_bytes: device}
    for known in known_devices():
        if known.capability >= AMPERE:
            sizes.setdefault(known.usable_bytes, known)
    return [sizes[size] for size in sorted(sizes)]
