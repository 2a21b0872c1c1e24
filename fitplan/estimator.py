"""What a job needs: from a shipped footprint, from the user's cache, or from a trace."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fitplan.audit import ParameterGroup
from fitplan.errors import MissingDependency
from fitplan.footprint.footprint import Piece
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.size import Shape
from fitplan.footprint.store import StoredFootprint, find_cached, find_shipped, keep, why_not_shipped
from fitplan.making import Made, made
from fitplan.memory import MemoryEstimate
from fitplan.setup import Optim, TrainingSetup
from fitplan.trace.events import Category
from fitplan.tracer import Progress, installed_versions

TRACE = "trace"


@dataclass(frozen=True, kw_only=True)
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


def answer(job: TrainingJob, *, fresh: bool, progress: Progress, pressed: bool = False) -> Answer:
    """The job's needs; with ``fresh`` it is traced whatever is known already, with ``pressed`` unless it was traced.

    Of a trace of this very shape it is known what the allocator takes, and what it cannot give back
    (``AllocatorOverhead.kept_bytes``); a footprint tells the one roughly, and nothing of the other.

    Raises:
        As :func:`fitplan.tracer.trace_job`.

    """

    def suits(stored: StoredFootprint) -> bool:
        return stored.reaches(job.shape) and (not pressed or _was_pressed(stored, job))

    stored = None if fresh else find_stored(job, suits)
    if stored is None:
        try:
            stored = StoredFootprint(made(Made.POINT, job, progress), None, TRACE)
        except MissingDependency as error:
            why = "" if fresh or pressed else f"{why_not_shipped(job)}; "
            raise MissingDependency(f"{why}{error}") from error
        keep(job, stored.footprint)
    piece = stored.piece(job.shape)
    assert piece is not None, "what was found holds for the shape"
    return Answer(
        estimate=estimate_of(piece, job),
        parameters=piece.groups(job.shape),
        setup=stored.resolved(job.setup),
        source=stored.source,
        versions=stored.footprint.versions,
    )


def _was_pressed(stored: StoredFootprint, job: TrainingJob) -> bool:
    piece = stored.piece(job.shape)
    overhead = piece.overhead(job.shape, expandable=job.setup.expandable_segments) if piece else None
    return overhead is not None and overhead.kept_bytes is not None


def known_estimate(job: TrainingJob) -> MemoryEstimate | None:
    """What a job needs if that is known without a trace."""
    stored = find_stored(job, lambda s: s.reaches(job.shape))
    piece = stored.piece(job.shape) if stored else None
    return estimate_of(piece, job) if piece else None


def estimate_of(piece: Piece, job: TrainingJob, shape: Shape | None = None) -> MemoryEstimate:
    """What a job needs, or would need with another shape: with what the allocator adds, and what is in managed memory.

    Args:
        piece: of its footprint.
        job: the job.
        shape: its own if left out.

    """
    shape = shape or job.shape
    estimate = piece.estimate(shape, job.capability)
    return replace(
        estimate,
        allocator=piece.overhead(shape, expandable=job.setup.expandable_segments),
        paged_bytes=_paged_bytes(piece, estimate, job),
        gpus=job.setup.gpus,
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


def _paged_bytes(piece: Piece, estimate: MemoryEstimate, job: TrainingJob) -> int:
    optim = job.setup.optim
    if optim not in (Optim.PAGED_ADAMW_8BIT, Optim.PAGED_ADAMW_32BIT):
        return 0  # at once: a search evaluates thousands of setups
    trained = sum(group.parameters for group in piece.groups(job.shape) if group.trainable)

    def unpaged() -> int:
        twin = known_estimate(job.with_setup(job.setup.with_(optim=Optim.ADAMW_8BIT)))
        return _states(twin) if twin else 2 * trained

    return paged_states(optim, trained, _states(estimate), unpaged)


def _states(estimate: MemoryEstimate) -> int:
    return max(moment.breakdown.get(Category.OPTIMIZER_STATES, 0) for moment in estimate.moments)


def find_stored(job: TrainingJob, suits: Callable[[StoredFootprint], bool]) -> StoredFootprint | None:
    """The first footprint that suits, shipped ones before the user's."""
    found = find_shipped(job)
    if found is not None and suits(found):
        return found
    found = find_cached(job, installed_versions(job.setup))
    return found if found is not None and suits(found) else None


def footprint_of(job: TrainingJob, progress: Progress) -> StoredFootprint:
    """The formula of this setup for jobs of any shape; surveyed and kept if it is not known.

    Raises:
        ModelNotSupported: this model's step has no formula; single shapes can still be traced.
        As :func:`fitplan.tracer.trace_job`.

    """
    rank = job.shape.lora_r

    def reaches_further(stored: StoredFootprint) -> bool:
        regions = [piece.region for piece in stored.footprint.pieces]
        return any(not one.is_point and one.lora_r[0] <= rank <= one.lora_r[1] for one in regions)

    stored = find_stored(job, reaches_further)
    if stored is not None:
        return stored
    footprint = made(Made.FORMULA, job, progress)
    keep(job, footprint)
    return StoredFootprint(footprint, None, TRACE)
