"""Validates one job: predicts, runs it in a process of its own, compares."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fitplan.allocator.replay import replay
from fitplan.allocator.settings import VARIABLES, AllocatorSettings
from fitplan.configs.resolve import ModelConfig
from fitplan.devices.context import context_on
from fitplan.devices.detect import MigSlice, choose, detect, means_this_machine, to_device
from fitplan.devices.device import Device, find_device
from fitplan.errors import InputError, NoUsableGpu
from fitplan.process import Child
from fitplan.rehearsal.build import stand_ins_for, torch_of
from fitplan.rehearsal.launch import FOLDER_VARIABLE, environment
from fitplan.setup import TrainingSetup
from fitplan.trace.events import MICRO_BATCHES, Trace
from fitplan.tracer import Progress, installed_versions, trace_job
from fitplan.units import gib
from fitplan.validation.comparison import (
    as_trainer_tells,
    comparable,
    differences,
    expected,
    first_difference,
    measured_births,
    pairs,
    predicted_births,
    predicted_phases,
    quantities,
)
from fitplan.validation.job import Expectation, Job, Measurement, PhaseMemory, Runner
from fitplan.validation.process import RUNS_JOBS, child_for_run, measure
from fitplan.validation.report import ValidationReport
from fitplan.whole import scratch_folder

CPU, CUDA = "cpu", "cuda"
TOLERANCE = 2.0
"""Percent."""

MOST_SECONDS = 10**6
"""A run may take: more than a week."""


@dataclass(frozen=True)
class Target:
    """Where a job is run.

    Attributes:
        place: ``"cpu"`` or ``"cuda:0"``, as the run names it.
        gpu: what is known of the GPU; ``None`` for the CPU.
        environment: variables that let the run see this GPU only.
        rehearsed: whether the GPU is one that is not there.

    """

    place: str
    gpu: Device | None
    environment: Mapping[str, str]
    rehearsed: bool = False


def find_target(device: str) -> Target:
    """The CPU, or a GPU of this machine: ``"cuda"`` or ``"auto"`` for the first that can be used, an index, a UUID.

    Raises:
        NoUsableGpu: there is no such GPU, or it cannot be used.
        InputError: it is the name of neither.

    """
    if device == CPU:
        return Target(CPU, None, {"CUDA_VISIBLE_DEVICES": ""})
    if device != CUDA and not means_this_machine(device):
        raise InputError(f"device is cuda, cpu, or the index or UUID of a GPU of this machine, not {device!r}")
    try:
        return find_gpu(device)
    except NoUsableGpu as error:
        raise NoUsableGpu(f"{error}; device cpu with few layers validates a shortened model here") from error


def find_gpu(device: str) -> Target:
    """A GPU of this machine, named as for :func:`find_target`.

    Raises:
        NoUsableGpu: there is no such GPU, or it cannot be used.

    """
    chosen = choose(detect(), "auto" if device == CUDA else device)
    gpu = to_device(chosen)
    visible = chosen.uuid or str(chosen.gpu_index if isinstance(chosen, MigSlice) else chosen.index)
    return Target("cuda:0", gpu, {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})


def rehearsed_gpu(name: str) -> Target:
    """A GPU that is not there, played to the libraries of this Python.

    Raises:
        DeviceNotFound: no GPU is known under that name.
        RehearsalImpossible: this machine or this PyTorch cannot do it.

    """
    gpu = find_device(name)
    stand_ins = stand_ins_for(torch_of(sys.executable))
    return Target("cuda:0", gpu, {"CUDA_VISIBLE_DEVICES": "0", **environment(stand_ins, gpu)}, rehearsed=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is done.

    Attributes:
        runner: fitplan's own step, or ``transformers.Trainer``.
        steps: optimizer steps, at least 3.
        limit_bytes: memory that the run's allocator may take.
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
        if not 0 < self.timeout <= MOST_SECONDS:
            raise InputError(f"timeout must be more than 0 and at most {MOST_SECONDS} seconds, not {self.timeout:g}")
        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"tolerance must be 0 % or more, not {self.tolerance:g} %")
        if self.limit_bytes is not None and self.limit_bytes <= 0:
            raise InputError("vram must be more than the CUDA context takes on a GPU, and more than nothing elsewhere")
        if self.weights is not None and not any(Path(self.weights).glob("*.safetensors")):
            raise InputError(f"{self.weights} holds no .safetensors file; give the folder of a checkpoint")


OPTIONS = frozenset(Options.__dataclass_fields__) - {"limit_bytes"}

Watch = Callable[[Expectation | PhaseMemory], None]
"""Is told what a run is expected to measure, then each of its phases as it ends."""


@dataclass(frozen=True)
class Forecast:
    """What is said of a job before it is run.

    Attributes:
        model: the model.
        setup: every setting, as it will run.
        trace: the traced step.
        phases: what each phase is expected to measure.
        context_bytes: of the CUDA context.
        runs_on_paper: whether the job gets through the memory that it may take.

    """

    model: ModelConfig
    setup: TrainingSetup
    trace: Trace
    phases: tuple[PhaseMemory, ...]
    context_bytes: int
    runs_on_paper: bool

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that the caching allocator takes from the driver."""
        return max(phase.reserved_bytes or 0 for phase in self.phases)


def forecast(
    model: ModelConfig, setup: TrainingSetup, target: Target, limit_bytes: int | None, progress: Progress
) -> Forecast:
    """Trace a job, and replay the trace.

    Raises:
        InputError: as :func:`fitplan.tracer.trace_job`.

    """
    run = trace_job(
        model,
        setup,
        target.gpu.capability if target.gpu else None,
        progress,
        exactly=True,
        multiprocessors=target.gpu.multiprocessors if target.gpu else None,
    )
    resolved = setup.with_(attn=run.attention, task=run.task)
    phases = predicted_phases(run.trace, expandable=setup.expandable_segments)
    if target.gpu is None:
        runs = limit_bytes is None or max(phase.requested_bytes for phase in phases) <= limit_bytes
        return Forecast(model, resolved, run.trace, phases, 0, runs)
    context = context_on(target.gpu).bytes
    free = target.gpu.usable_bytes - context
    room = free if limit_bytes is None else min(limit_bytes, free)
    settings = AllocatorSettings(expandable_segments=setup.expandable_segments)
    replayed = replay(run.trace, settings, room)
    return Forecast(model, resolved, run.trace, phases, context, replayed.out_of_memory is None)


class RunProcess:
    """The process of a run, and the folder for what it leaves behind.

    It may be started before the job is asked of it (:meth:`start`): it imports what it needs in the meantime, which
    takes longer than many a job, and does not touch the GPU.

    Attributes:
        child: the process.
        folder: where that folder is.

    """

    def __init__(self, target: Target, *, expandable: bool) -> None:
        self._stack = ExitStack()
        self.folder = str(self._stack.enter_context(scratch_folder()))
        self.child = child_for_run(
            RUNS_JOBS,
            {
                **target.environment,
                FOLDER_VARIABLE: self.folder,
                **dict.fromkeys(VARIABLES, f"expandable_segments:{expandable}"),
                **dict.fromkeys(FOLDER_VARIABLES, self.folder),
            },
        )

    def start(self) -> Self:
        """Start the process."""
        self.child.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, and remove the folder."""
        self.child.__exit__()
        self._stack.close()


FOLDER_VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""What the run leaves behind when it is killed goes with the folder."""


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
        InputError: less memory is free than the job is predicted to take, or as :func:`forecast`.
        ValidationFailed: the run did not come to its end.

    """
    said = forecast(model, setup, target, options.limit_bytes, progress)
    return validate_forecast(said, target, options, progress, watch)


def validate_forecast(
    said: Forecast,
    target: Target,
    options: Options,
    progress: Progress,
    watch: Watch = lambda _: None,
    process: RunProcess | None = None,
) -> ValidationReport:
    """Run a job that was predicted, and hold one against the other.

    ``process`` is the process to run it in, where one was started before for this setup; it is ended here.

    Raises:
        InputError: less memory is free than the job is predicted to take.
        ValidationFailed: the run did not come to its end.

    """
    _check_room(said, target, options)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    accumulation = said.setup.gradient_accumulation_steps
    shown = as_trainer_tells(said.phases) if options.runner is Runner.TRAINER else said.phases
    watch(_expectation(shown, target, all_in_first=accumulation == 1))
    all_traced = accumulation <= MICRO_BATCHES and not said.setup.use_liger_kernel
    with process or RunProcess(target, expandable=said.setup.expandable_segments) as running:
        events = os.path.join(running.folder, "events")  # noqa: PTH118  a string, for another process
        job = Job(
            model=said.model.settings,
            setup=said.setup,
            device=target.place,
            runner=options.runner,
            steps=options.steps,
            limit_bytes=options.limit_bytes,
            weights=options.weights,
            events=events if options.history and options.runner is Runner.STEP and all_traced else None,
            rehearsed=target.rehearsed,
        )
        measurement = _measured(job, running.child, options, progress, watch)
        births = list(measured_births(events)) if job.events else []
    known, births = (
        comparable(found, all_in_first=accumulation == 1, on_cpu=target.gpu is None, ended_in=measurement.out_of_memory)
        for found in (predicted_births(said.trace) if births else (), births)
    )
    return ValidationReport(
        model=said.model,
        setup=said.setup,
        job=replace(job, events=None),
        measurement=measurement,
        quantities=tuple(quantities(said.phases, measurement, said.context_bytes)),
        phases=tuple(pairs(shown, measurement.phases, all_in_first=accumulation == 1)),
        differences=tuple(differences(known, births)),
        first_difference=first_difference(known, births),
        runs_on_paper=said.runs_on_paper,
        tolerance=options.tolerance,
        versions=installed_versions(said.setup),
        created=created,
    )


def _expectation(shown: Iterable[PhaseMemory], target: Target, *, all_in_first: bool) -> Expectation:
    """Of what was predicted, what the run will tell: on the CPU nothing hands out blocks."""
    phases = expected(shown, all_in_first=all_in_first)
    if target.gpu is None:
        phases = tuple(replace(one, allocated_bytes=None, reserved_bytes=None) for one in phases)
    return Expectation(phases)


def _check_room(said: Forecast, target: Target, options: Options) -> None:
    if target.gpu is None or options.force:
        return
    needed = max(phase.allocated_bytes or 0 for phase in said.phases) + said.context_bytes
    room = target.gpu.usable_bytes
    if needed > room:
        raise InputError(
            f"the run is predicted to take {gib(needed)}, and {gib(room)} are free on {target.gpu.name}; "
            "choose a smaller job, or force it to see how far it gets"
        )


def _measured(job: Job, child: Child, options: Options, progress: Progress, watch: Watch) -> Measurement:
    def told(phase: PhaseMemory) -> None:
        progress(f"step {phase.step + 1}, {phase.phase}: {gib(phase.bytes)}")
        watch(phase)

    progress("starting the run")
    return measure(job, timeout=options.timeout, watch=told, child=child)
