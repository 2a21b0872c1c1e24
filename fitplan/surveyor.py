"""Makes footprints: of one shape by one trace, for jobs of any shape by a survey of a handful of traces."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from fitplan.errors import ModelNotSupported
from fitplan.footprint.footprint import Footprint, OptimizerFootprint, piece_at_point
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.overhead import replayed
from fitplan.footprint.size import PARTS, NoFormula, Numbers, Shape
from fitplan.memory import estimate_trace
from fitplan.setup import FUSED_TILE_TOKENS, SHARDED, Loss, Objective, Optim, TrainingSetup
from fitplan.tracer import Progress, installed_versions, needed_for, trace_job

if TYPE_CHECKING:
    from fitplan.footprint.survey import Survey
    from fitplan.trace.tracing import TracedRun

T5_BUCKETS = 32
"""Relative positions that are told apart where the config does not say (transformers ``configuration_t5.py``)."""


def traced(job: TrainingJob, progress: Progress) -> Footprint:
    """What one trace says of this very shape.

    Raises:
        As :func:`fitplan.tracer.trace_job`.

    """
    run = trace_job(job.model, job.setup, job.capability, progress)
    trace = run.trace
    sizes = [allocation.size for allocation in trace.allocations]
    pressed = (job.setup.expandable_segments,)
    overhead = replayed(sizes, trace.events, trace.steps, job.shape, trace.emptied, trace.streams, pressed=pressed)
    piece = piece_at_point(estimate_trace(trace), run.parameters, job.shape, job.capability, overhead)
    return Footprint((piece,), run.attention, run.task, installed_versions(job.setup))


def surveyed(job: TrainingJob, progress: Progress) -> Footprint:
    """The footprint of a setup with its optimizer, from a handful of traces; where there is no other, for its rank.

    Raises:
        ModelNotSupported: this model's step has no formula; single shapes can still be traced.
        As :func:`fitplan.tracer.trace_job`.

    """
    try:
        footprint, optimizer = _survey(job, progress)
    except NoFormula as error:
        raise ModelNotSupported(
            f"the memory of {job.model.name} has no formula with this setup ({error}); "
            "ask fitplan check for one batch size and length at a time"
        ) from error
    return replace(footprint, pieces=tuple(piece.with_optimizer(optimizer) for piece in footprint.pieces))


def _survey(job: TrainingJob, progress: Progress) -> tuple[Footprint, OptimizerFootprint]:
    versions, rank = installed_versions(job.setup), job.shape.lora_r
    if job.setup.objective is not Objective.SFT:
        raise NoFormula(f"{job.setup.objective} runs other rows than those of the batch")
    if job.setup.num_virtual_tokens:
        raise NoFormula("prompts make rows longer than seq_len says")
    try:
        return survey_of(job, progress).footprint(versions)
    except NoFormula:
        if not rank or job.setup.optim is Optim.ADAMW_TORCH_FUSED:
            raise
    optimizer = optimizer_of(job, (rank, rank), progress)
    usual = job.with_setup(job.setup.with_(optim=Optim.ADAMW_TORCH_FUSED))
    footprint, _ = survey_of(usual, progress).footprint(versions)
    return footprint.for_ranks(rank, rank), optimizer


def optimizer_of(job: TrainingJob, ranks: tuple[int, int], progress: Progress) -> OptimizerFootprint:
    """What the optimizer of a setup adds, for these ranks and all between.

    Raises:
        NoFormula: it has none for all of them, as where it treats small parameters in another way than large ones.
        MissingDependency: what a trace needs is not installed.

    """
    with needed_for("tracing a model"):
        from fitplan.footprint.survey import optimizer_footprint
    cheaper = job.setup.with_(gradient_checkpointing=False)

    @cache
    def trace_at(shape: Shape) -> "TracedRun":
        return trace_job(job.model, shaped(cheaper, shape), job.capability, progress, only_optimizer=True)

    return optimizer_footprint(trace_at, job.capability, ranks, gpus_of(job))


RANKS = (2, 521)


def ranks_of(job: TrainingJob) -> tuple[int, int]:
    """The ranks that a survey of the job is for.

    On several GPUs that is its own: what is sent holds adapters beside frozen weights, and into how many buckets DDP
    puts gradients depends on the rank.
    """
    rank = job.shape.lora_r
    return RANKS if rank and job.setup.gpus == 1 else (rank, rank)


def gpus_of(job: TrainingJob) -> tuple[int, ...]:
    """The numbers of GPUs that a survey of the job is for: those that divide what they cut up."""
    if job.setup.strategy not in SHARDED:
        return (min(job.setup.gpus, 2),)
    rank = job.shape.lora_r or PARTS
    return tuple(n for n in range(2, PARTS + 1) if PARTS % n == 0 and rank % n == 0)


def survey_of(job: TrainingJob, progress: Progress) -> "Survey":
    """The survey that finds the footprint of a setup.

    Raises:
        MissingDependency: what a survey needs is not installed.

    """
    with needed_for("tracing a model"):
        from fitplan.footprint.survey import LONGEST, Survey

    return Survey(
        lambda shape: trace_job(job.model, shaped(job.setup, shape), job.capability, progress),
        job.capability,
        ranks=ranks_of(job),
        gpus=gpus_of(job),
        accumulates=job.setup.strategy not in SHARDED,  # which keep gradients whole between micro-batches
        positions=job.model.positions or LONGEST,
        turning_points=job.model.windows,
        numbers=Numbers(
            loss_pieces=job.model.loss_pieces if job.setup.use_liger_kernel else 0,
            tile_tokens=FUSED_TILE_TOKENS if job.setup.loss is Loss.FUSED else 0,
            vocabulary=job.model.text.get("vocab_size") or 0,
            positions=job.model.rows_of_positions,
            types=job.model.text.get("type_vocab_size") or 0,
            buckets=job.model.text.get("relative_attention_num_buckets") or T5_BUCKETS,
        ),
    )


def shaped(setup: TrainingSetup, shape: Shape) -> TrainingSetup:
    """The setup with another shape."""
    rank = {"lora_r": shape.lora_r} if shape.lora_r else {}
    return setup.with_(
        batch_size=shape.batch_size,
        seq_len=shape.seq_len,
        gradient_accumulation_steps=shape.gradient_accumulation_steps,
        gpus=shape.gpus,
        **rank,
    )
