"""What is asked: a model, a GPU and settings as a person names them; and the job that they make."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from fitplan.allocator.settings import VARIABLES, from_environment
from fitplan.cuda import AMPERE
from fitplan.devices.device import DEFAULT_CAPABILITY, Device, device_of_size, find_device
from fitplan.errors import DeviceNotFound, InputError, SetupConflict
from fitplan.footprint.job import TrainingJob
from fitplan.models.resolve import ModelConfig, resolve_model
from fitplan.setup import Attention, Method, TrainingSetup, given, settings_for, with_defaults
from fitplan.units import parse_size


@dataclass(frozen=True)
class Question:
    """One model, one device and one setup, as they were named.

    Attributes:
        model: an alias, hub id, folder, file, ``PretrainedConfig``, or a config that was found before.
        gpu: a GPU's name, one of this machine, or a device that was found before.
        vram: an amount of memory instead of a known GPU.
        method: how the model is fine-tuned; ``None`` leaves it open.
        settings: the other fields of :class:`TrainingSetup` that were chosen.

    """

    model: Any
    gpu: str | int | Device | None = None
    vram: str | int | None = None
    method: Method | str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config.

        Raises:
            InputError: nothing is known under that name.

        """
        return resolve_model(self.model)

    @cached_property
    def device(self) -> Device | None:
        """The device, if one was named.

        Raises:
            InputError: as :func:`device_named`.

        """
        return device_named(self.gpu, self.vram)

    def chosen(self) -> dict[str, Any]:
        """The settings that were chosen, the method among them."""
        return {**given(dict(self.settings)), **given({"method": self.method})}

    def by_method(self) -> Iterator[tuple[Method, Self]]:
        """The question for the method that it names, else for each; model and device are looked up once.

        Raises:
            InputError: there is no such method, model or device.

        """
        device, config = self.device, self.config
        found = replace(self, model=config, gpu=device, vram=None)
        if self.method is not None:
            yield TrainingSetup.from_dict({"method": self.method}).method, found
            return
        for method in (Method.QLORA, Method.LORA, Method.FULL):
            settings = settings_for(method, dict(self.settings))
            yield method, replace(found, method=settings.pop("method"), settings=tuple(settings.items()))

    def job(self, capability: tuple[int, int] = DEFAULT_CAPABILITY) -> TrainingJob:
        """The job, on the device, or on any of ``capability`` where none was named.

        Raises:
            InputError: model, device or settings make no sense.

        """
        return self.job_on(self.device, self.config, capability)

    def job_on(
        self, device: Device | None, model: ModelConfig, capability: tuple[int, int] = DEFAULT_CAPABILITY
    ) -> TrainingJob:
        """As :meth:`job`, where model and device were looked up before."""
        match device.capability if device else capability:
            case (int(major), int(minor)):
                expandable, remarks = _environment(device)
                settings = {**given({"expandable_segments": expandable}), **self.chosen()}
                setup = _setup(settings, model, (major, minor))
                _check_gpu(setup, device)
                return TrainingJob(model=model, setup=setup, capability=(major, minor), device=device, remarks=remarks)
        raise InputError(f"capability must be two numbers such as (8, 0), not {capability!r}")

    def setup(self, model: ModelConfig, capability: tuple[int, int] = DEFAULT_CAPABILITY) -> TrainingSetup:
        """Every setting, for this model and a GPU of this compute capability, wherever that is.

        Raises:
            InputError: the settings make no sense together.

        """
        return _setup(self.chosen(), model, capability)


def device_named(gpu: str | int | Device | None, vram: str | int | None) -> Device | None:
    """The device that a person named, or an amount of memory; ``None`` if neither is given.

    Args:
        gpu: a GPU's name; ``"auto"``, an index (``0`` as well as ``"0"``) or a UUID for one of this machine.
        vram: an amount of memory: ``"24GiB"`` or bytes.

    Raises:
        InputError: both are given, or one makes no sense.
        NoUsableGpu: ``gpu`` means a GPU of this machine, and there is none that can be used.

    """
    if gpu is not None and vram is not None:
        raise SetupConflict("gpu", "vram", "gpu and vram both name a device; drop one of them")
    if vram is not None:
        return device_of_size(parse_size(vram))
    if gpu is None or isinstance(gpu, Device):
        return gpu
    gpu = str(gpu)
    try:
        return find_device(gpu)
    except DeviceNotFound:
        from fitplan.devices.detect import choose, detect, means_this_machine, to_device

        if not means_this_machine(gpu):
            raise
    return to_device(choose(detect(), gpu))


def _environment(device: Device | None) -> tuple[bool | None, tuple[str, ...]]:
    """What the environment tells the allocator on a GPU of this machine: expandable segments, and what is left out."""
    name = next((name for name in VARIABLES if name in os.environ), None)
    if device is None or not device.is_here or name is None:
        return None, ()
    settings, left_out = from_environment(os.environ[name])
    remark = f"{name} says {', '.join(left_out)}, which is left out of the answer"
    return settings.expandable_segments, (remark,) if left_out else ()


def _setup(settings: Mapping[str, Any], model: ModelConfig, capability: tuple[int, int]) -> TrainingSetup:
    if model.attn in set(Attention):
        settings = {"attn": model.attn, **settings}
    method = TrainingSetup.from_dict({"method": settings.get("method")}).method
    return TrainingSetup.from_dict(
        with_defaults(settings, method=method, positions=model.positions, capability=capability)
    )


def _check_gpu(setup: TrainingSetup, device: Device | None) -> None:
    """FlashAttention-2 supports Ampere GPUs and newer (its README, "NVIDIA CUDA Support")."""
    if device is not None and setup.attn is Attention.FLASH_ATTENTION_2 and device.capability < AMPERE:
        raise SetupConflict(
            "attn",
            "gpu",
            f"flash_attention_2 needs compute capability 8.0, and {device.name} has "
            f"{'.'.join(map(str, device.capability))}; choose attn sdpa",
        )
