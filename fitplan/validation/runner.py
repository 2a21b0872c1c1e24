"""Validates one job: predicts, runs it in a process of its own, compares."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fitplan.devices.context import context_on
from fitplan.devices.detect import MigSlice, choose, detect, to_device
from fitplan.devices.device import Device
from fitplan.errors import InputError, NoUsableGpu
from fitplan.models.resolve import ModelConfig
from fitplan.setup import TrainingSetup
from fitplan.tracer import Progress, installed_versions, trace_job
from fitplan.units import gib
from fitplan.validation.comparison import (
    comparable,
    differences,
    first_difference,
    measured_births,
    pairs,
    predicted_births,
    predicted_phases,
    quantities,
)
from fitplan.validation.job import Job, Measurement, PhaseMemory, Runner
from fitplan.validation.process import measure
from fitplan.validation.report import ValidationReport

CPU = "cpu"
TOLERANCE = 2.0
"""Percent."""

TRACED_MICRO_BATCHES = 2
"""Of a step that accumulates more, the trace holds this many: runs are compared in their peaks only."""


@dataclass(frozen=True)
class Target:
    """Where a job is run.

    Attributes:
        place: ``"cpu"`` or ``"cuda:0"``, as the run names it.
        gpu: what is known of the GPU; ``None`` for the CPU.
        environment: variables that let the run see this GPU only.

    """

    place: str
    gpu: Device | None
    environment: Mapping[str, str]

    @property
    def has_meter(self) -> bool:
        """Whether the run is measured by PyTorch's allocator."""
        return self.gpu is not None


def find_target(device: str) -> Target:
    """The CPU, or a GPU of this machine: ``"cuda"`` or ``"auto"`` for the first that can be used, an index, a UUID.

    Raises:
        NoUsableGpu: there is no such GPU, or it cannot be used.

    """
    if device == CPU:
        return Target(CPU, None, {"CUDA_VISIBLE_DEVICES": ""})
    try:
        chosen = choose(detect(), "auto" if device == "cuda" else device)
    except NoUsableGpu as error:
        raise NoUsableGpu(f"{error}; device cpu with few layers validates a shortened model here") from error
    gpu = to_device(chosen)
    visible = chosen.uuid or str(chosen.gpu_index if isinstance(chosen, MigSlice) else chosen.index)
    return Target("cuda:0", gpu, {"CUDA_VISIBLE_DEVICES": visible})


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is done.

    Attributes:
        runner: fitplan's own step, or ``transformers.Trainer``.
        steps: optimizer steps, at least 3.
        limit_bytes: device memory that the run may take.
        weights: folder of a checkpoint.
        timeout: seconds after which the run is ended.
        tolerance: percent that the prediction may be off.
        force: run also where less is free than predicted.
        history: compare allocation by allocation.

    """

    runner: Runner = Runner.STEP
    steps: int = 3
    limit_bytes: int | None = None
    weights: str | None = None
    timeout: float = 600
    tolerance: float = TOLERANCE
    force: bool = False
    history: bool = True

    def __post_init__(self) -> None:
        if self.steps < 3:
            raise InputError(f"steps must be at least 3, not {self.steps}: later steps are compared with the second")
        if self.timeout <= 0:
            raise InputError(f"timeout must be more than 0 seconds, not {self.timeout:g}")
        if self.tolerance < 0:
            raise InputError(f"tolerance must not be negative, not {self.tolerance:g} %")


OPTIONS = frozenset(Options.__dataclass_fields__) - {"limit_bytes"}

Watch = Callable[[PhaseMemory], None]


def validate_job(
    model: ModelConfig,
    setup: TrainingSetup,
    target: Target,
    options: Options,
    progress: Progress,
    watch: Watch = lambda _: None,
) -> ValidationReport:
    """Predict a job, run it, and hold one against the other.

    Raises:
        InputError: less memory is free than the job is predicted to take, or as :func:`fitplan.tracer.trace_job`.
        ValidationFailed: the run did not come to its end.

    """
    run = trace_job(model, setup, target.gpu.capability if target.gpu else None, progress)
    trace, resolved = run.trace, setup.with_(attn=run.attention, task=run.task)
    ours = predicted_phases(trace, expandable=setup.expandable_segments)
    context = context_on(target.gpu).bytes if target.has_meter else 0
    _check_room(ours, target, context, options)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="fitplan-") as folder:
        events = os.path.join(folder, "events")  # noqa: PTH118  a string, for another process
        job = Job(
            model=model.settings,
            setup=resolved,
            device=target.place,
            runner=options.runner,
            steps=options.steps,
            limit_bytes=options.limit_bytes,
            weights=options.weights,
            events=events if options.history and options.runner is Runner.STEP else None,
        )
        measurement = _measured(job, target, options, progress, watch)
        single = setup.gradient_accumulation_steps == 1
        alike = setup.gradient_accumulation_steps <= TRACED_MICRO_BATCHES
        births = list(measured_births(events)) if job.events and alike else []
    known, births = (
        comparable(found, all_in_first=single) for found in (predicted_births(trace) if births else (), births)
    )
    return ValidationReport(
        model=model,
        setup=resolved,
        job=replace(job, events=None),
        measurement=measurement,
        quantities=tuple(quantities(ours, measurement, context)),
        phases=tuple(pairs(ours, measurement.phases, all_in_first=single)),
        differences=tuple(differences(known, births)),
        first_difference=first_difference(known, births),
        tolerance=options.tolerance,
        versions=installed_versions(),
        created=created,
    )


def _check_room(ours: tuple[PhaseMemory, ...], target: Target, context: int, options: Options) -> None:
    if target.gpu is None or options.force:
        return
    needed = max(phase.allocated_bytes or 0 for phase in ours) + context
    room = target.gpu.usable_bytes
    if needed > room:
        raise InputError(
            f"the run is predicted to take {gib(needed)}, and {gib(room)} are free on {target.gpu.name}; "
            "choose a smaller job, or force it to see how far it gets"
        )


def _measured(job: Job, target: Target, options: Options, progress: Progress, watch: Watch) -> Measurement:
    def told(phase: PhaseMemory) -> None:
        progress(f"step {phase.step + 1}, {phase.phase}: {gib(phase.allocated_bytes or phase.requested_bytes)}")
        watch(phase)

    progress("starting the run")
    environment = dict(target.environment)
    if job.setup.expandable_segments:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return measure(job, timeout=options.timeout, watch=told, environment=environment)
