"""What a job needs: from a shipped footprint, from the user's cache, or from a trace."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from fitplan.audit import ParameterGroup
from fitplan.errors import MissingDependency, ModelNotSupported
from fitplan.footprint.footprint import Footprint, OptimizerFootprint, Piece, piece_at_point
from fitplan.footprint.overhead import replayed
from fitplan.footprint.recipe import shape_of
from fitplan.footprint.size import NoFormula, Shape
from fitplan.footprint.store import StoredFootprint, find_cached, find_shipped, keep, why_not_shipped
from fitplan.memory import MemoryEstimate, estimate_trace
from fitplan.models.resolve import ModelConfig
from fitplan.setup import Optim, TrainingSetup
from fitplan.trace.events import Category
from fitplan.tracer import Progress, installed_versions, needed_for, trace_job

if TYPE_CHECKING:
    from fitplan.footprint.survey import Survey
    from fitplan.trace.tracing import TracedRun

TRACE = "trace"


@dataclass(frozen=True)
class Answer:
    """What is known about one job.

    Attributes:
        estimate: what it needs.
        parameters: the model's parameters by how they are stored.
        setup: the setup with the attention and the task that the model chose.
        source: ``"shipped"``, ``"cache"`` or ``"trace"``.
        versions: the libraries that were traced.

    """

    estimate: MemoryEstimate
    parameters: tuple[ParameterGroup, ...]
    setup: TrainingSetup
    source: str
    versions: dict[str, str]


def answer(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], *, fresh: bool, progress: Progress
) -> Answer:
    """The job's needs; with ``fresh`` it is traced whatever is known already.

    Raises:
        As :func:`fitplan.tracer.trace_job`.

    """
    shape = shape_of(setup)
    stored = None if fresh else find_stored(model, setup, capability, lambda s: s.reaches(shape))
    if stored is None:
        try:
            return _traced(model, setup, capability, progress)
        except MissingDependency as error:
            why = "" if fresh else f"{why_not_shipped(model, setup, capability)}; "
            raise MissingDependency(f"{why}{error}") from error
    piece = stored.piece(shape)
    assert piece is not None, "what was found holds for the shape"
    return Answer(
        estimate_of(piece, model, setup, shape, capability),
        piece.groups(shape),
        stored.resolved(setup),
        stored.source,
        stored.footprint.versions,
    )


def known_estimate(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int]) -> MemoryEstimate | None:
    """What a job needs if that is known without a trace."""
    shape = shape_of(setup)
    stored = find_stored(model, setup, capability, lambda s: s.reaches(shape))
    piece = stored.piece(shape) if stored else None
    return estimate_of(piece, model, setup, shape, capability) if piece else None


def estimate_of(
    piece: Piece, model: ModelConfig, setup: TrainingSetup, shape: Shape, capability: tuple[int, int]
) -> MemoryEstimate:
    """What a job of this shape needs, with what the caching allocator adds, and what is in managed memory."""
    estimate = piece.estimate(shape, capability)
    return replace(
        estimate,
        allocator=piece.overhead(shape, expandable=setup.expandable_segments),
        paged_bytes=_paged_bytes(piece, estimate, model, setup, capability),
    )


def paged_states(optim: Optim, trained: int, held: int, unpaged: Callable[[], int]) -> int:
    """States that a paged optimizer keeps in managed memory: those that the same optimizer would allocate otherwise.

    AdamW has two states, in 32 bits a number or in 8; of 8-bit states some stay in 32, which only the optimizer that
    does not page tells (bitsandbytes ``optim/optimizer.py``, ``get_state_buffer``).

    Args:
        optim: the optimizer.
        trained: numbers that are trained.
        held: bytes of states that it allocates all the same.
        unpaged: bytes of states of its twin that does not page.

    """
    if optim is Optim.PAGED_ADAMW_32BIT:
        return max(0, 2 * 4 * trained - held)
    return max(0, unpaged() - held) if optim is Optim.PAGED_ADAMW_8BIT else 0


def _paged_bytes(
    piece: Piece, estimate: MemoryEstimate, model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int]
) -> int:
    if setup.optim not in (Optim.PAGED_ADAMW_8BIT, Optim.PAGED_ADAMW_32BIT):
        return 0  # at once: a search evaluates thousands of setups
    trained = sum(group.parameters for group in piece.groups(shape_of(setup)) if group.trainable)

    def unpaged() -> int:
        twin = known_estimate(model, setup.with_(optim=Optim.ADAMW_8BIT), capability)
        return _states(twin) if twin else 2 * trained

    return paged_states(setup.optim, trained, _states(estimate), unpaged)


def _states(estimate: MemoryEstimate) -> int:
    return max(moment.breakdown.get(Category.OPTIMIZER_STATES, 0) for moment in estimate.moments)


def find_stored(
    model: ModelConfig,
    setup: TrainingSetup,
    capability: tuple[int, int],
    suits: Callable[[StoredFootprint], bool],
) -> StoredFootprint | None:
    """The first footprint that suits, shipped ones before the user's."""
    found = find_shipped(model, setup, capability)
    if found is not None and suits(found):
        return found
    found = find_cached(model, setup, capability, installed_versions(setup))
    return found if found is not None and suits(found) else None


def _traced(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress) -> Answer:
    """A trace of this very shape, which is kept for the next time."""
    run = trace_job(model, setup, capability, progress)
    shape, versions = shape_of(setup), installed_versions(setup)
    piece = piece_at_point(
        estimate_trace(run.trace),
        run.parameters,
        shape,
        capability,
        replayed([a.size for a in run.trace.allocations], run.trace.events, shape, run.trace.emptied),
    )
    keep(model, setup, capability, Footprint((piece,), run.attention, run.task, versions))
    resolved = setup.with_(attn=run.attention, task=run.task)
    return Answer(estimate_of(piece, model, setup, shape, capability), run.parameters, resolved, TRACE, versions)


def footprint_of(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress
) -> StoredFootprint:
    """The formula of this setup for jobs of any shape; surveyed and kept if it is not known.

    Raises:
        ModelNotSupported: this model's step has no formula; single shapes can still be traced.
        As :func:`fitplan.tracer.trace_job`.

    """
    rank = shape_of(setup).lora_r

    def reaches_further(stored: StoredFootprint) -> bool:
        regions = [piece.region for piece in stored.footprint.pieces]
        return any(not one.is_point and one.lora_r[0] <= rank <= one.lora_r[1] for one in regions)

    stored = find_stored(model, setup, capability, reaches_further)
    if stored is not None:
        return stored
    footprint = surveyed(model, setup, capability, progress)
    keep(model, setup, capability, footprint)
    return StoredFootprint(footprint, None, TRACE)


def surveyed(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress) -> Footprint:
    """The footprint of a setup with its optimizer, from a handful of traces; where there is no other, for its rank."""
    try:
        footprint, optimizer = _survey(model, setup, capability, progress)
    except NoFormula as error:
        raise ModelNotSupported(
            f"the memory of {model.name} has no formula with this setup ({error}); "
            "ask fitplan check for one batch size and length at a time"
        ) from error
    return replace(footprint, pieces=tuple(piece.with_optimizer(optimizer) for piece in footprint.pieces))


def _survey(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress
) -> tuple[Footprint, OptimizerFootprint]:
    versions, rank = installed_versions(setup), shape_of(setup).lora_r
    if setup.num_virtual_tokens:
        raise NoFormula("prompts make rows longer than seq_len says")
    try:
        return survey_of(model, setup, capability, progress).footprint(versions)
    except NoFormula:
        if not rank or setup.optim is Optim.ADAMW_TORCH_FUSED:
            raise
    optimizer = optimizer_of(model, setup, capability, (rank, rank), progress)
    usual = setup.with_(optim=Optim.ADAMW_TORCH_FUSED)
    footprint, _ = survey_of(model, usual, capability, progress).footprint(versions)
    return footprint.for_ranks(rank, rank), optimizer


def optimizer_of(
    model: ModelConfig,
    setup: TrainingSetup,
    capability: tuple[int, int],
    ranks: tuple[int, int],
    progress: Progress,
) -> OptimizerFootprint:
    """What the optimizer of a setup adds, for these ranks and all between.

    Raises:
        NoFormula: it has none for all of them, as where it treats small parameters in another way than large ones.
        MissingDependency: what a trace needs is not installed.

    """
    with needed_for("tracing a model"):
        from fitplan.footprint.survey import optimizer_footprint
    cheaper = setup.with_(gradient_checkpointing=False)

    @cache
    def trace_at(shape: Shape) -> "TracedRun":
        return trace_job(model, shaped(cheaper, shape), capability, progress, only_optimizer=True)

    return optimizer_footprint(trace_at, capability, ranks)


def survey_of(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress) -> "Survey":
    """The survey that finds the footprint of a setup.

    Raises:
        MissingDependency: what a survey needs is not installed.

    """
    with needed_for("tracing a model"):
        from fitplan.footprint.survey import LONGEST, Survey

    return Survey(
        lambda shape: trace_job(model, shaped(setup, shape), capability, progress),
        capability,
        with_rank=shape_of(setup).lora_r > 0,
        positions=model.positions or LONGEST,
        turning_points=model.windows,
        loss_pieces=model.loss_pieces if setup.use_liger_kernel else 0,
    )


def shaped(setup: TrainingSetup, shape: Shape) -> TrainingSetup:
    """The setup with another shape."""
    rank = {"lora_r": shape.lora_r} if shape.lora_r else {}
    return setup.with_(
        batch_size=shape.batch_size,
        seq_len=shape.seq_len,
        gradient_accumulation_steps=shape.gradient_accumulation_steps,
        **rank,
    )
