"""What is asked: a model, a GPU and settings as a person names them; and the job that they make."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from fitplan.allocator.settings import VARIABLES, from_environment
from fitplan.configs.resolve import ModelConfig, adapter_file, resolve_model
from fitplan.cuda import AMPERE
from fitplan.devices.device import DEFAULT_CAPABILITY, Device, device_of_size, find_device
from fitplan.errors import DeviceNotFound, InputError, ModelNotFound, SetupConflict
from fitplan.footprint.job import TrainingJob
from fitplan.setup import (
    Attention,
    Method,
    TrainingSetup,
    as_bitsandbytes_says,
    given,
    settings_for,
    with_defaults,
)
from fitplan.units import parse_size

if TYPE_CHECKING:
    from fitplan.readers import Reading


@dataclass(frozen=True)
class Question:
    """One model, one device and one setup, as they were named.

    Attributes:
        model: an alias, hub id, folder, file, ``PretrainedConfig``, or a config that was found before; or a training
            file of another tool, or what was read in one, which name model and settings.
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
    remarks: tuple[str, ...] = ()

    @cached_property
    def reading(self) -> "Reading | None":
        """What the training file says, if one was named.

        Raises:
            InputError: it is none that is known, or damaged.

        """
        if not may_be_training_file(self.model):
            return None
        from fitplan.readers import Reading, read_training_file

        return self.model if isinstance(self.model, Reading) else read_training_file(self.model)

    @cached_property
    def opened(self) -> Self:
        """The question that a training file asks, with what was chosen beside it; any other as it is.

        Raises:
            InputError: as :attr:`reading`; or the file names no model that is known.

        """
        reading = self.reading
        if reading is None:
            return self._counted
        method = self.method or dict(self.settings).get("method") or reading.settings.get("method")
        said = dict(reading.settings)
        if method is not None:
            said = settings_for(TrainingSetup.from_dict({"method": method}).method, said)
        chosen = {**said, **given(dict(self.settings))}
        chosen.pop("method", None)
        return replace(
            self,
            model=_model_of(reading),
            method=method,
            settings=tuple(chosen.items()),
            remarks=self.remarks + reading.remarks,
        )._counted

    @property
    def _counted(self) -> Self:
        """The question with the number of GPUs, where it was named with them, among the settings."""
        count, gpu = counted(self.gpu)
        if count is None:
            return self
        settings = given(dict(self.settings))
        if settings.setdefault("gpus", count) != count:
            raise SetupConflict("gpu", "gpus", f"gpu {self.gpu} with gpus {settings['gpus']}: drop one of them")
        return replace(self, gpu=gpu, settings=tuple(settings.items()))

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config.

        Raises:
            InputError: nothing is known under that name.

        """
        return resolve_model(self.opened.model)

    @cached_property
    def device(self) -> Device | None:
        """The device, if one was named.

        Raises:
            InputError: as :func:`device_named`.

        """
        return device_named(self.gpu, self.vram)

    def chosen(self) -> dict[str, Any]:
        """The settings that were chosen, the method among them."""
        opened = self.opened
        return {**given(dict(opened.settings)), **given({"method": opened.method})}

    def by_method(self) -> Iterator[tuple[Method, Self]]:
        """The question for the method that it names, else for each; model and device are looked up once.

        Raises:
            InputError: there is no such method, model or device.

        """
        device, config = self.device, self.config
        found = replace(self.opened, model=config, gpu=device, vram=None)
        if found.method is not None:
            yield TrainingSetup.from_dict({"method": found.method}).method, found
            return
        for method in (Method.QLORA,) if config.bitsandbytes else (Method.QLORA, Method.LORA, Method.FULL):
            settings = settings_for(method, dict(found.settings))
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
                remarks = self.opened.remarks + remarks + tuple(_without_effect(self.chosen(), model))
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


def may_be_training_file(named: Any) -> bool:
    """Whether it is worth opening: most questions name a model, and are to be answered at once."""
    text = str(named) if isinstance(named, str | os.PathLike) else ""
    is_file = text.lower().endswith((".yaml", ".yml", ".json"))
    return is_file or type(named).__name__ == "Reading" or bool(text and adapter_file(text))


def _model_of(reading: "Reading") -> ModelConfig:
    """The model that a file names; of one that lies where the file was written, the shipped one of that name."""
    if reading.model is None:
        raise InputError(f"{reading.file} names no model; give the model, and the file beside it")
    if not isinstance(reading.model, str):
        return resolve_model(reading.model)
    try:
        return resolve_model(reading.model)
    except ModelNotFound as error:
        name = reading.model.rstrip("/").rpartition("/")[2]
        if "/" in reading.model and name and "." not in (name, reading.model):
            try:
                return resolve_model(name)
            except InputError:
                pass
        raise ModelNotFound(
            f"{reading.file} names the model {reading.model}: {error}; or give the model, and the file beside it"
        ) from error


def device_named(gpu: str | int | Device | None, vram: str | int | None) -> Device | None:
    """The device that a person named, or an amount of memory; ``None`` if neither is given.

    Args:
        gpu: a GPU's name, also with how many of them (``"8xH100"``); ``"auto"``, an index (``0`` as well as ``"0"``) or
            a UUID for one of this machine.
        vram: an amount of memory: ``"24GiB"`` or bytes.

    Raises:
        InputError: both are given, or one makes no sense.
        NoUsableGpu: ``gpu`` means a GPU of this machine, and there is none that can be used.

    """
    if gpu is not None and vram is not None:
        raise SetupConflict("gpu", "vram", "gpu and vram both name a device; drop one of them")
    _, gpu = counted(gpu)
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


_COUNTED = re.compile(r"\s*([0-9]{1,5})\s*[x×*]\s*(\S.*)", re.IGNORECASE)


def counted(gpu: Any) -> tuple[int | None, Any]:
    """How many GPUs were named, and which: ``"8xH100"``, ``"2 x RTX 4090"``; ``None`` where no number was."""
    match = _COUNTED.fullmatch(gpu) if isinstance(gpu, str) else None
    return (int(match[1]), match[2]) if match else (None, gpu)


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
    if stored := as_bitsandbytes_says(model.bitsandbytes):
        if method is Method.FULL:
            raise InputError(
                f"the weights of {model.name} are quantised ({stored['quant']}), which cannot be trained themselves; "
                "choose method qlora, or the model with its weights as they were before"
            )
        method = Method.QLORA
        settings = {**settings, "quant_storage": None, **stored, "method": method}
    return TrainingSetup.from_dict(
        with_defaults(settings, method=method, positions=model.positions, capability=capability)
    )


def _without_effect(settings: Mapping[str, Any], model: ModelConfig) -> Iterator[str]:
    """What was chosen of the quantisation, and is not so in a checkpoint that is quantised already.

    Source: transformers ``AutoHfQuantizer.merge_quantization_configs``, which keeps that of the checkpoint.
    """
    stored = as_bitsandbytes_says(model.bitsandbytes)
    for name, value in ({"quant_storage": "uint8"} | stored if stored else {}).items():
        chosen = settings.get(name, value)
        if str(chosen).lower() != str(value).lower():
            yield f"{name} {chosen} has no effect: the checkpoint is quantised already, with {value}"


def _check_gpu(setup: TrainingSetup, device: Device | None) -> None:
    """FlashAttention-2 supports Ampere GPUs and newer (its README, "NVIDIA CUDA Support")."""
    if device is not None and setup.attn is Attention.FLASH_ATTENTION_2 and device.capability < AMPERE:
        raise SetupConflict(
            "attn",
            "gpu",
            f"flash_attention_2 needs compute capability 8.0, and {device.name} has "
            f"{'.'.join(map(str, device.capability))}; choose attn sdpa",
        )
