"""Will this fine-tune fit? The way through the house, stage by stage."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fitplan.advice import AdviceReport, Advisor, advise_on
from fitplan.cuda import AMPERE
from fitplan.devices.context import context_on
from fitplan.devices.device import DEFAULT_CAPABILITY, Device, device_of_size, find_device, known_devices
from fitplan.errors import (
    DeviceNotFound,
    FitplanError,
    InputError,
    LibraryMoved,
    MissingDependency,
    ModelNotSupported,
    SetupConflict,
)
from fitplan.estimator import answer, footprint_of, known_estimate
from fitplan.explanation import Explanation, explain_peak
from fitplan.fitmap import FitMap, draw_map
from fitplan.footprint.recipe import shape_of
from fitplan.footprint.store import SHIPPED
from fitplan.memory import MemoryEstimate
from fitplan.models.resolve import ModelConfig, resolve_model
from fitplan.notes import notes_on
from fitplan.plan import CheckReport, Plan
from fitplan.setup import Attention, Method, TrainingSetup, given, settings_for, with_defaults
from fitplan.tracer import Progress, installed_versions
from fitplan.units import parse_size
from fitplan.validation.records import nearest, write_record
from fitplan.verdict import Fit, device_memory, judge

if TYPE_CHECKING:
    from fitplan.rehearsal.report import RehearsalReport
    from fitplan.validation.depths import DepthReport
    from fitplan.validation.limit import LimitReport
    from fitplan.validation.report import ValidationReport
    from fitplan.validation.runner import Watch


def check(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    method: Method | str | None = None,
    trace: bool = False,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> CheckReport:
    """Predict the memory of fine-tuning ``model`` and judge it against a GPU.

    Args:
        model: alias, hub id, folder, ``config.json`` or ``PretrainedConfig``.
        gpu: a GPU's name; ``"auto"``, an index or a UUID for one of this machine; or a :class:`Device`.
        vram: an amount of memory instead of a known GPU: ``"24GiB"`` or bytes.
        method: one of ``full``, ``lora``, ``qlora``; if left out all three, as far as there are answers.
        trace: trace the step even where its footprint is known.
        progress: is told what is being done.
        settings: fields of :class:`TrainingSetup`; what is ``None`` is left open.

    Raises:
        InputError: model, GPU or settings make no sense.
        MissingDependency: the answer needs packages that are not installed.
        LibraryMoved: an installed library is not as this version of fitplan knows it.

    """
    device = device_named(gpu, vram)
    config = resolve_model(model)
    fixed = frozenset(given(settings)) | {"method"}
    plans: list[Plan] = []
    left_out: dict[Method, FitplanError] = {}
    for one, chosen in _asked(method, _as_here(device, settings)):
        try:
            setup = _setup(config, device.capability if device else DEFAULT_CAPABILITY, chosen)
            _check_gpu(setup, device)
            plans.append(_plan(config, setup, device, trace, fixed, progress))
        except FitplanError as error:
            left_out[one] = error
    if not plans:
        raise next(iter(left_out.values()))
    told = {one: str(error) for one, error in left_out.items()}
    return CheckReport(config, device, tuple(plans), installed_versions(plans[0].setup), told)


def estimate(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    trace: bool = False,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> MemoryEstimate:
    """Predict the memory of fine-tuning ``model`` with one setup, on a GPU, or on any of that compute capability.

    Raises:
        As :func:`check`.

    """
    config = resolve_model(model)
    device, capability = _where(gpu, None, capability)
    setup = _setup(config, capability, _as_here(device, settings))
    _check_gpu(setup, device)
    return answer(config, setup, capability, fresh=trace, progress=progress).estimate


def explain(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> Explanation:
    """The formula of the peak of one setup, term by term, on a GPU, or on any of that compute capability.

    Raises:
        ModelNotSupported: the setup has no formula, or none that holds for this shape.
        As :func:`check`.

    """
    config = resolve_model(model)
    device, capability = _where(gpu, vram, capability)
    setup = _setup(config, capability, settings)
    _check_gpu(setup, device)
    stored = footprint_of(config, setup, capability, progress)
    if not stored.reaches(shape_of(setup)):
        raise ModelNotSupported(
            f"no formula holds for batch_size {setup.batch_size}, seq_len {setup.seq_len}"
            f"{f' and lora_r {setup.lora_r}' if setup.lora_r else ''}; fitplan check answers for single shapes"
        )
    found = explain_peak(config, stored.resolved(setup), stored, capability)
    return replace(found, warnings=notes_on(config, device, [setup], found.versions, installed_versions(setup)))


def fit_map(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> FitMap:
    """The largest batch for each sequence length and the longest sequence for each batch that fit a device.

    Raises:
        InputError: neither ``gpu`` nor ``vram`` is given, or as :func:`check`.
        ModelNotSupported: the setup has no formula.

    """
    device = device_named(gpu, vram)
    if device is None:
        raise InputError("a map needs a device; give a gpu such as h100, or an amount of vram such as 24GiB")
    config = resolve_model(model)
    setup = _setup(config, device.capability, settings)
    _check_gpu(setup, device)
    stored = footprint_of(config, setup, device.capability, progress)
    found = draw_map(config, stored.resolved(setup), shape_of(setup), stored, device)
    return replace(found, warnings=notes_on(config, device, [setup], found.versions, installed_versions(setup)))


MOST_TRACED = 16
"""Setups that are traced for one piece of advice on a model whose footprints are not known."""


def advise(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    trace: bool = False,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> AdviceReport:
    """What to change so that a fine-tune fits a device, or makes better use of it.

    What is given in ``settings`` stays as it is; the rest may be changed. For a model with shipped footprints nothing
    is traced, and what has no footprint is not tried, unless ``trace`` is set.

    Raises:
        InputError: neither ``gpu`` nor ``vram`` is given, or as :func:`check`.

    """
    device = device_named(gpu, vram)
    if device is None:
        raise InputError("advice needs a device; give a gpu such as h100, or an amount of vram such as 24GiB")
    config = resolve_model(model)
    setup = _setup(config, device.capability, _as_here(device, settings))
    _check_gpu(setup, device)
    asked = answer(config, setup, device.capability, fresh=False, progress=progress)
    left = MOST_TRACED if trace or asked.source != SHIPPED else 0

    def evaluate(changed: TrainingSetup) -> MemoryEstimate | None:
        nonlocal left
        known = asked.estimate if changed == asked.setup else known_estimate(config, changed, device.capability)
        if known is None and left:
            left -= 1
            others = () if changed.method is asked.setup.method else (LibraryMoved,)
            with suppress(MissingDependency, InputError, *others):  # a lever that is not for this model or installation
                known = answer(config, changed, device.capability, fresh=False, progress=progress).estimate
        return known

    advice = advise_on(asked.setup, frozenset(given(settings)), evaluate, device, known_devices())
    notes = notes_on(config, device, [asked.setup], asked.versions, installed_versions(asked.setup))
    return AdviceReport(config, device, advice, asked.source, asked.versions, notes)


def validate(
    model: Any,
    *,
    device: str = "cuda",
    rehearse: str | None = None,
    layers: Sequence[int] = (),
    find_limit: str | None = None,
    vram: str | int | None = None,
    record: bool = True,
    progress: Progress = lambda _: None,
    watch: "Watch" = lambda _: None,
    **rest: Any,
) -> "ValidationReport | DepthReport | LimitReport":
    """Run a job for real, in a process of its own, and hold what it took against what was predicted before.

    Args:
        model: as for :func:`check`.
        device: ``"cuda"`` for the first GPU that can be used, an index or a UUID, or ``"cpu"``.
        rehearse: name of a GPU that need not be there: the run is a rehearsal of it, on the real CUDA libraries.
        layers: shorten the model to one depth; of two depths the full model is extrapolated.
        find_limit: ``"batch"`` or ``"seq"``: look for the largest that runs.
        vram: memory that the run may take, its CUDA context included, where that is less than there is.
        record: keep the result in the user's folder of records.
        progress: is told what is being done.
        watch: is told what a run is expected to measure, then each of its phases as it ends; nothing of the runs of a
            search for a limit.
        rest: fields of :class:`fitplan.validation.runner.Options` and of :class:`TrainingSetup`.

    Raises:
        NoUsableGpu: there is no such GPU.
        ValidationFailed: the run did not come to its end.
        InputError: more is asked for than is free, or as :func:`check`.

    """
    from fitplan.validation.depths import shortened, validate_depths
    from fitplan.validation.limit import Axis
    from fitplan.validation.limit import find_limit as look_for_limit
    from fitplan.validation.runner import OPTIONS, Options, find_target, rehearsed_gpu, validate_job

    rest = given(rest)
    if rehearse is not None and device != "cuda":
        raise SetupConflict("rehearse", "device", "rehearse names a GPU that is not there; leave out device")
    target = find_target(device) if rehearse is None else rehearsed_gpu(rehearse)
    limit = None if vram is None else parse_size(vram)
    if limit is not None and target.gpu is not None:
        limit -= context_on(target.gpu).bytes  # which PyTorch's limit, of its allocator, does not count
    options = Options(limit_bytes=limit, **{name: value for name, value in rest.items() if name in OPTIONS})
    config = resolve_model(model)
    settings = {name: value for name, value in rest.items() if name not in OPTIONS}
    gpu = target.gpu
    setup = _setup(config, gpu.capability if gpu else DEFAULT_CAPABILITY, _as_here(gpu, settings))
    _check_gpu(setup, gpu)
    if len(layers) > (2 if find_limit is None else 1):
        raise InputError(f"layers are one depth{' or two' if find_limit is None else ''}, not {len(layers)}")
    if find_limit is not None:
        if find_limit not in list(Axis):
            raise InputError(f"find_limit is batch or seq, not {find_limit!r}")
        shorter = shortened(config, layers[0]) if layers else config
        return look_for_limit(shorter, setup, target, options, Axis(find_limit), progress)
    if len(layers) == 2:
        return validate_depths(config, setup, target, options, layers, progress, watch)
    report = validate_job(shortened(config, layers[0]) if layers else config, setup, target, options, progress, watch)
    if record:
        keep(report)
    return report


def rehearse(
    command: Sequence[str],
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    ranks: int | None = None,
    steps: int | None = None,
    timeout: float | None = None,
    online: bool | None = None,
    watch: "Callable[[Mapping[str, Any]], None]" = lambda _: None,
    output: Any = None,
) -> "RehearsalReport":
    """Run a training program, as it is, on a GPU that need not be there, and tell where its memory goes.

    Args:
        command: the program and its arguments, as in ``["python", "train.py"]``.
        gpu: the GPU's name; by default an H100.
        vram: an amount of memory instead of a known GPU.
        ranks: how many GPUs the program is shown; by default as many as the command names, else one.
        steps: optimizer steps after which it is ended (3); 0 lets it run to its end.
        timeout: seconds after which it is ended.
        online: let it ask the Hugging Face hub.
        watch: is told where each process is.
        output: what the program prints is written there; stderr by default.

    Raises:
        RehearsalImpossible: this machine, or the program's PyTorch, cannot play a GPU.
        InputError: there is no such program or GPU.

    """
    from fitplan.rehearsal.gpu import DEFAULT_GPU
    from fitplan.rehearsal.run import Asked
    from fitplan.rehearsal.run import rehearse as run

    device = device_named(gpu if gpu is not None or vram is not None else DEFAULT_GPU, vram)
    assert device is not None
    chosen = given({"count": ranks, "steps": steps, "timeout": timeout, "online": online})
    return run(Asked(command=tuple(command), device=device, **chosen), watch=watch, output=output)


def keep(report: "ValidationReport") -> None:
    """Write a report into the user's folder of records; a full disk does not cost the result.

    Warns:
        UserWarning: it cannot be written.

    """
    try:
        write_record(report.to_dict())
    except InputError as error:
        warnings.warn(str(error), stacklevel=3)


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


def _as_here(device: Device | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings; on a GPU of this machine with the allocator as the environment sets it."""
    if device is None or not device.is_here or settings.get("expandable_segments") is not None:
        return settings
    from fitplan.allocator.settings import VARIABLES, AllocatorSettings

    text = next((os.environ[name] for name in VARIABLES if name in os.environ), "")
    try:
        return {**settings, "expandable_segments": AllocatorSettings.parse(text).expandable_segments}
    except InputError:  # what is not modelled decides nothing here
        return settings


def _where(
    gpu: str | int | Device | None, vram: str | int | None, capability: tuple[int, int]
) -> tuple[Device | None, tuple[int, int]]:
    """The device that was named, if any, and its compute capability, else the one that was given.

    Raises:
        InputError: ``capability`` is not two numbers, or as :func:`device_named`.

    """
    device = device_named(gpu, vram)
    match device.capability if device else capability:
        case (int(major), int(minor)):
            return device, (major, minor)
    raise InputError(f"capability must be two numbers such as (8, 0), not {capability!r}")


def _setup(model: ModelConfig, capability: tuple[int, int], settings: dict[str, Any]) -> TrainingSetup:
    if model.attn in set(Attention):
        settings = {"attn": model.attn, **given(settings)}
    method = TrainingSetup.from_dict({"method": settings.get("method")}).method
    return TrainingSetup.from_dict(
        with_defaults(settings, method=method, positions=model.positions, capability=capability)
    )


def _asked(method: Method | str | None, settings: dict[str, Any]) -> list[tuple[Method, dict[str, Any]]]:
    """The methods that are asked about, each with its settings."""
    if method is not None:
        return [(TrainingSetup.from_dict({"method": method}).method, {**settings, "method": method})]
    return [(one, settings_for(one, settings)) for one in (Method.QLORA, Method.LORA, Method.FULL)]


def _check_gpu(setup: TrainingSetup, device: Device | None) -> None:
    """FlashAttention-2 supports Ampere GPUs and newer (its README, "NVIDIA CUDA Support")."""
    if device is not None and setup.attn is Attention.FLASH_ATTENTION_2 and device.capability < AMPERE:
        raise SetupConflict(
            "attn",
            "gpu",
            f"flash_attention_2 needs compute capability 8.0, and {device.name} has "
            f"{'.'.join(map(str, device.capability))}; choose attn sdpa",
        )


def _plan(
    config: ModelConfig,
    setup: TrainingSetup,
    device: Device | None,
    fresh: bool,
    fixed: frozenset[str],
    progress: Progress,
) -> Plan:
    capability = device.capability if device else DEFAULT_CAPABILITY
    found = answer(config, setup, capability, fresh=fresh, progress=progress)
    evidence = nearest(config.name, found.setup)
    if device is None:
        return Plan(
            found.setup, found.estimate, device_memory(found.estimate, None), found.parameters, None,
            found.source, found.versions, evidence=evidence,
        )  # fmt: skip
    verdict = judge(found.estimate, device)
    fix = None
    if verdict.fit is not Fit.FITS:

        def evaluate(changed: TrainingSetup) -> MemoryEstimate | None:
            return found.estimate if changed == found.setup else known_estimate(config, changed, capability)

        fix = Advisor(found.setup, fixed, evaluate, device).smallest_fix()
    return Plan(
        found.setup,
        found.estimate,
        verdict.memory,
        found.parameters,
        verdict,
        found.source,
        found.versions,
        fix,
        evidence,
    )
