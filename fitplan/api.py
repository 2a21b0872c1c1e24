"""Will this fine-tune fit? The way through the house, stage by stage."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from fitplan.advice import AdviceReport, Advisor, Proposal, advise_on, smallest_devices
from fitplan.allocator.given_back import jobs_that_gave_back
from fitplan.configs.catalog import CatalogEntry, catalog
from fitplan.devices.context import context_on
from fitplan.devices.device import DEFAULT_CAPABILITY, Device, known_devices
from fitplan.elsewhere import elsewhere
from fitplan.errors import (
    FitplanError,
    InputError,
    LibraryMoved,
    MissingDependency,
    ModelNotSupported,
    SetupConflict,
)
from fitplan.estimator import Answer, answer, footprint_of, known_estimate
from fitplan.explanation import Explanation, explain_peak
from fitplan.fitmap import FitMap, draw_map
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.store import SHIPPED
from fitplan.given import GivenSettings, OtherSettings
from fitplan.memory import MemoryEstimate
from fitplan.notes import notes_on
from fitplan.plan import CheckReport, Plan
from fitplan.question import Question, device_named
from fitplan.setup import Method, TrainingSetup, given
from fitplan.tracer import Progress, installed_versions
from fitplan.units import parse_size
from fitplan.validation.records import nearest, write_record
from fitplan.verdict import IN_DOUBT, Fit, Verdict, device_memory, judge

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
    **settings: Unpack[OtherSettings],
) -> CheckReport:
    """Predict the memory of fine-tuning ``model`` and judge it against a GPU.

    Args:
        model: alias, hub id, folder, ``config.json`` or ``PretrainedConfig``; or a training file of Axolotl,
            LLaMA-Factory, TRL, torchtune or transformers, or what :func:`read_training_file` has read in one.
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
    question = Question(model, gpu, vram, method, tuple(settings.items()))
    fixed = frozenset(given(settings)) | {"method"}
    plans: list[Plan] = []
    remarks: tuple[str, ...] = ()
    left_out: dict[Method, FitplanError] = {}
    for one, asked in question.by_method():
        try:
            job = asked.job()
            try:
                plans.append(_plan(job, trace, fixed, progress))
            except MissingDependency:
                if job.setup.eval_batch_size is None:
                    raise
                job = _without_evaluation(job)
                plans.append(_plan(job, trace, fixed, progress))
            remarks = job.remarks
        except FitplanError as error:
            left_out[one] = error
    if not plans:
        raise next(iter(left_out.values()))
    return CheckReport(
        model=question.config,
        gpu=question.device,
        plans=tuple(plans),
        installed=installed_versions(plans[0].setup),
        left_out={one: str(error) for one, error in left_out.items()},
        remarks=remarks,
        reading=question.reading,
    )


def _without_evaluation(job: TrainingJob) -> TrainingJob:
    """The job as far as it is known without a trace."""
    remark = f"not in the answer: evaluation in batches of {job.setup.eval_batch_size}, which is traced where torch is"
    return replace(job.with_setup(job.setup.with_(eval_batch_size=None)), remarks=(*job.remarks, remark))


def estimate(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    trace: bool = False,
    progress: Progress = lambda _: None,
    **settings: Unpack[GivenSettings],
) -> MemoryEstimate:
    """Predict the memory of fine-tuning ``model`` with one setup, on a GPU, or on any of that compute capability.

    Raises:
        As :func:`check`.

    """
    job = _question(model, gpu, None, settings).job(capability)
    return answer(job, fresh=trace, progress=progress).estimate


def explain(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    progress: Progress = lambda _: None,
    **settings: Unpack[GivenSettings],
) -> Explanation:
    """The formula of the peak of one setup, term by term, on a GPU, or on any of that compute capability.

    Raises:
        ModelNotSupported: the setup has no formula, or none that holds for this shape.
        As :func:`check`.

    """
    job = _question(model, gpu, vram, settings).job(capability)
    stored = footprint_of(job, progress)
    if not stored.reaches(job.shape):
        setup = job.setup
        raise ModelNotSupported(
            f"no formula holds for batch_size {setup.batch_size}, seq_len {setup.seq_len}"
            f"{f' and lora_r {setup.lora_r}' if setup.lora_r else ''}; fitplan check answers for single shapes"
        )
    found = explain_peak(job, stored)
    return replace(found, warnings=notes_on(job, found.versions))


def fit_map(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    progress: Progress = lambda _: None,
    **settings: Unpack[GivenSettings],
) -> FitMap:
    """The largest batch for each sequence length and the longest sequence for each batch that fit a device.

    Raises:
        InputError: neither ``gpu`` nor ``vram`` is given, or as :func:`check`.
        ModelNotSupported: the setup has no formula.

    """
    question = _question(model, gpu, vram, settings)
    if question.device is None:
        raise InputError("a map needs a device; give a gpu such as h100, or an amount of vram such as 24GiB")
    job = question.job()
    found = draw_map(job, footprint_of(job, progress), question.device)
    return replace(found, warnings=notes_on(job, found.versions))


MOST_TRACED = 16
"""Setups that are traced for one piece of advice on a model whose footprints are not known."""


def advise(
    model: Any,
    *,
    gpu: str | int | Device | None = None,
    vram: str | int | None = None,
    trace: bool = False,
    progress: Progress = lambda _: None,
    **settings: Unpack[GivenSettings],
) -> AdviceReport:
    """What to change so that a fine-tune fits a device, or makes better use of it.

    What is given in ``settings`` stays as it is; the rest may be changed. For a model with shipped footprints nothing
    is traced, and what has no footprint is not tried, unless ``trace`` is set.

    Raises:
        InputError: neither ``gpu`` nor ``vram`` is given, or as :func:`check`.

    """
    question = _question(model, gpu, vram, settings)
    device = question.device
    if device is None:
        raise InputError("advice needs a device; give a gpu such as h100, or an amount of vram such as 24GiB")
    job = question.job()
    asked = answer(job, fresh=False, progress=progress)
    left = MOST_TRACED if trace or asked.source != SHIPPED else 0

    def evaluate(changed: TrainingSetup) -> MemoryEstimate | None:
        nonlocal left
        further = job.with_setup(changed)
        known = asked.estimate if changed == asked.setup else known_estimate(further)
        if known is None and left:
            left -= 1
            others = () if changed.method is asked.setup.method else (LibraryMoved,)
            with suppress(MissingDependency, InputError, *others):  # a lever that is not for this model or installation
                known = answer(further, fresh=False, progress=progress).estimate
        return known

    return AdviceReport(
        model=job.model,
        gpu=device,
        advice=advise_on(
            asked.setup, frozenset(given(settings)), evaluate, device, known_devices(), settled=job.settled
        ),
        source=asked.source,
        versions=asked.versions,
        warnings=notes_on(job.with_setup(asked.setup), asked.versions),
    )


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
    settings = {name: value for name, value in rest.items() if name not in OPTIONS}
    question = _question(model, target.gpu, None, settings)
    config, setup = question.config, question.job().setup
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
    world: int | None = None,
    synthetic_rows: Sequence[int] | None = None,
    synthetic_columns: Sequence[str] | None = None,
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
        world: ranks that there are, of which the command starts the first few: all ranks are taken to do the same.
        synthetic_rows: tokens in rows of text that stand in for a data set that cannot be loaded.
        synthetic_columns: their columns, by default ``text``.
        watch: is told where each process is.
        output: what the program prints is written there; stderr by default.

    Raises:
        RehearsalImpossible: this machine, or the program's PyTorch, cannot play a GPU.
        InputError: there is no such program or GPU.

    """
    from fitplan.rehearsal import DEFAULT_GPU
    from fitplan.rehearsal.run import Asked
    from fitplan.rehearsal.run import rehearse as run

    device = device_named(gpu if gpu is not None or vram is not None else DEFAULT_GPU, vram)
    assert device is not None
    chosen = given({"count": ranks, "steps": steps, "timeout": timeout, "online": online, "world": world})
    for name, value in (("synthetic_rows", synthetic_rows), ("synthetic_columns", synthetic_columns)):
        chosen |= {name: tuple(value)} if value else {}
    return run(Asked(command=tuple(command), device=device, **chosen), watch=watch, output=output)


def gpus() -> tuple[Device, ...]:
    """Every GPU that is known by name; those of this machine are named ``"auto"``, ``"0"``, ... in a question."""
    return known_devices()


def models() -> tuple[CatalogEntry, ...]:
    """The models that fitplan ships with."""
    return catalog()


def keep(report: "ValidationReport") -> None:
    """Write a report into the user's folder of records; a full disk does not cost the result.

    Warns:
        UserWarning: it cannot be written.

    """
    try:
        write_record(report.to_dict())
    except InputError as error:
        warnings.warn(str(error), stacklevel=3)


def _question(
    model: Any, gpu: str | int | Device | None, vram: str | int | None, settings: Mapping[str, object]
) -> Question:
    """A question on one method, the default if ``settings`` name none."""
    return Question(model, gpu, vram, settings=tuple(settings.items()))


def _plan(job: TrainingJob, fresh: bool, fixed: frozenset[str], progress: Progress) -> Plan:
    found = answer(job, fresh=fresh, progress=progress)
    verdict = judge(found.estimate, job.device) if job.device else None
    undecided = None
    if job.device and verdict and verdict.fit in IN_DOUBT and verdict.memory.kept_bytes is None:
        try:
            found = answer(job, fresh=False, progress=progress, pressed=True)
            verdict = judge(found.estimate, job.device)
        except FitplanError as error:
            undecided = f"{_odds(verdict, job.setup)}a trace of this very job would decide it, but {error}"
    memory = verdict.memory if verdict else device_memory(found.estimate, None)
    return Plan(
        setup=found.setup,
        estimate=found.estimate,
        memory=memory,
        parameters=found.parameters,
        verdict=verdict,
        undecided=undecided,
        source=found.source,
        versions=found.versions,
        fix=_fix(job, found, fixed) if verdict and verdict.fit is not Fit.FITS else None,
        smallest_gpus=_enough(job, found.estimate) if verdict and verdict.fit is not Fit.FITS else (),
        elsewhere=elsewhere(job.with_setup(found.setup), memory),
        evidence=nearest(job.model.name, found.setup),
    )


def _odds(verdict: Verdict, setup: TrainingSetup) -> str:
    """How many others could give back as much of their cache, where that decides."""
    if verdict.fit is not Fit.ONLY_IF:
        return ""
    share = -verdict.slack_bytes / verdict.memory.cached_bytes
    could, replayed = jobs_that_gave_back(share, expandable_segments=setup.expandable_segments)
    return f"{could} of {replayed} replayed jobs could give back {share:.0%} of their cache or more; "


def _enough(job: TrainingJob, estimate: MemoryEstimate) -> tuple[Device, ...]:
    """The smallest GPUs that would do, where one is asked about."""
    assert job.device is not None, "what does not fit was judged on a device"
    return smallest_devices(estimate, job.device, known_devices()) if job.setup.gpus == 1 else ()


def _fix(job: TrainingJob, found: Answer, fixed: frozenset[str]) -> Proposal | None:
    """The smallest change that makes it fit, of what is known without a trace."""
    assert job.device is not None, "what does not fit was judged on a device"

    def evaluate(changed: TrainingSetup) -> MemoryEstimate | None:
        return found.estimate if changed == found.setup else known_estimate(job.with_setup(changed))

    return Advisor(found.setup, fixed | job.settled, evaluate, job.device).smallest_fix()
