"""Prediction and measurement side by side, and which allocations make the difference."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from fitplan.allocator.caching import CachingAllocator
from fitplan.allocator.replay import places_replayed
from fitplan.allocator.settings import AllocatorSettings
from fitplan.phase import Phase
from fitplan.trace.events import CUBLAS_CREATE, EMPTY_CACHE, Trace
from fitplan.validation.job import Measurement, OutOfMemory, PhaseMemory

LATER = 1
"""Steps after the first are alike: they are compared as one."""

SMALL = 512
"""Bytes; smaller blocks are left out of the list of differences: they are scalars, and cost a granule each."""

MOST_LISTED = 8

JUDGED = ("peak_allocated_bytes", "peak_requested_bytes")
"""What a tolerance is for: the first of these that was measured."""


def predicted_phases(trace: Trace, *, expandable: bool) -> tuple[PhaseMemory, ...]:
    """What each phase of a traced run is expected to measure, by a replay through the caching allocator.

    What is there when a phase begins counts, as where PyTorch's peak counters are set back.
    """
    allocator = CachingAllocator(AllocatorSettings(expandable_segments=expandable))
    blocks: dict[int, Any] = {}
    peaks: dict[tuple[Phase, int], list[int]] = {}
    now = (0, 0, 0)
    for place in places_replayed(trace.events, trace.steps, allocator):
        event, moment = trace.events[place], trace.moments[place]
        most = peaks.setdefault((moment.phase, moment.step), list(now))
        if event >= 0:
            if size := trace.allocations[event].size:
                blocks[event] = allocator.malloc(size, trace.allocations[event].stream)
            elif trace.allocations[event].op == EMPTY_CACHE:
                allocator.empty_cache()
        elif ~event in blocks:
            allocator.free(blocks.pop(~event))
        now = (allocator.requested, allocator.allocated, allocator.reserved)
        most[:] = map(max, most, now)
    return tuple(PhaseMemory(phase, step, *most) for (phase, step), most in peaks.items())


@dataclass(frozen=True)
class PhasePair:
    """One phase, predicted and measured; of the later steps the highest.

    Attributes:
        phase: as in :class:`fitplan.phase.Phase`.
        step: 0 for the first optimizer step, 1 for all later ones.
        predicted: by the trace.
        measured: by the run.

    """

    phase: str
    step: int
    predicted: PhaseMemory
    measured: PhaseMemory

    @property
    def sizes(self) -> tuple[int, int]:
        """Predicted and measured bytes of the same kind: allocated where that was measured, else requested."""
        predicted = self.predicted
        if self.measured.allocated_bytes is None:
            predicted = replace(predicted, allocated_bytes=None)
        return predicted.bytes, self.measured.bytes

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of :func:`to_dict`."""
        predicted, measured = (PhaseMemory(**document[name]) for name in ("predicted", "measured"))
        return cls(document["phase"], document["step"], predicted, measured)


@dataclass(frozen=True)
class Quantity:
    """One of the three quantities, over the whole run."""

    name: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Relative error of the prediction, in percent."""
        return 100 * (self.predicted - self.measured) / self.measured

    @property
    def title(self) -> str:
        """As it is called in a text: ``"peak allocated"``."""
        return self.name.removesuffix("_bytes").replace("_", " ")


def judged(quantities: Iterable[Quantity]) -> Quantity | None:
    """The quantity that a tolerance is for, if it was measured."""
    known = {quantity.name: quantity for quantity in quantities}
    return next((known[name] for name in JUDGED if name in known), None)


@dataclass(frozen=True)
class Difference:
    """Allocations of one size that occur more or less often than predicted, in one phase.

    Attributes:
        phase: as in :class:`fitplan.phase.Phase`.
        step: 0 for the first optimizer step, 1 for the second.
        bytes: the size of each, as requested.
        predicted: how many were predicted.
        measured: how many were measured.
        predicted_by: module and operator of the first that was predicted.
        measured_by: who asked for the first that was measured.

    """

    phase: str
    step: int
    bytes: int
    predicted: int
    measured: int
    predicted_by: str
    measured_by: str


def as_trainer_tells(predicted: Iterable[PhaseMemory]) -> tuple[PhaseMemory, ...]:
    """The phases that ``Trainer`` tells apart: backward and clipping belong to forward."""
    return tuple(
        replace(one, phase=Phase.FORWARD) if one.phase in (Phase.BACKWARD, Phase.CLIP) else one for one in predicted
    )


def pairs(predicted: Iterable[PhaseMemory], measured: Iterable[PhaseMemory], *, all_in_first: bool) -> list[PhasePair]:
    """The phases that both know, side by side, in order of time; a trace does not know those without allocations."""
    ours = by_place(expected(predicted, all_in_first=all_in_first))
    return [
        PhasePair(phase, step, ours[(phase, step)], one)
        for (phase, step), one in by_place(measured).items()
        if (phase, step) in ours
    ]


def expected(predicted: Iterable[PhaseMemory], *, all_in_first: bool) -> tuple[PhaseMemory, ...]:
    """What of a prediction can be measured, in order of time; of the later steps the highest.

    The trace runs one micro-batch in the first step: with more (``all_in_first`` false) its phases say nothing.
    """
    skipped = (Phase.FORWARD, Phase.BACKWARD)
    return tuple(
        one for (phase, step), one in by_place(predicted).items() if all_in_first or step or phase not in skipped
    )


def by_place(phases: Iterable[PhaseMemory]) -> dict[tuple[str, int], PhaseMemory]:
    """The phases by name and step, 0 for the first and 1 for all later ones, of which the highest is kept."""
    highest: dict[tuple[str, int], PhaseMemory] = {}
    for one in phases:
        place = (str(one.phase), min(one.step, LATER))
        known = highest.get(place)
        if known is None or one.requested_bytes > known.requested_bytes:
            highest[place] = one
    return highest


def quantities(predicted: Iterable[PhaseMemory], measurement: Measurement, context_bytes: int) -> list[Quantity]:
    """Peaks of the whole run, as far as they were measured; none of a run that did not come to its end.

    ``context_bytes`` is the device memory that the caching allocator does not know of.
    """
    if measurement.out_of_memory is not None:
        return []
    ours, theirs = tuple(predicted), measurement.phases
    found = []
    for name in ("requested_bytes", "allocated_bytes", "reserved_bytes"):
        most = max((getattr(one, name) or 0 for one in theirs), default=0)
        if most:
            found.append(Quantity(f"peak_{name}", max(getattr(one, name) or 0 for one in ours), most))
    process = max((one.process_bytes or 0 for one in theirs), default=0)
    if process:
        found.append(Quantity("device_bytes", max(one.reserved_bytes or 0 for one in ours) + context_bytes, process))
    return found


# --- allocation by allocation -----------------------------------------------------------------------------------------

_Birth = tuple[str, int, int, str]
"""Phase, step, bytes, who asked."""


def predicted_births(trace: Trace) -> Iterator[_Birth]:
    """The allocations of a trace, in order of time."""
    for allocation, sign, moment in trace.sizes():
        if sign > 0:
            yield moment.phase, moment.step, allocation.size, f"{allocation.owner}: {allocation.op}"


def measured_births(path: str) -> Iterator[_Birth]:
    """The allocations that a run wrote to a file."""
    with Path(path).open() as file:
        for line in file:
            size, phase, step, who = json.loads(line)
            if size > 0:
                yield phase, step, size, who


def comparable(
    births: Iterable[_Birth], *, all_in_first: bool, on_cpu: bool, ended_in: OutOfMemory | None = None
) -> list[_Birth]:
    """Those that two runs should agree in: of the first two steps, up to the phase that one of them ended in.

    Scalars are left out, and on the CPU the batch: it is made on the host, which there is the device. Loading and
    preparing differ between a GPU, the CPU and the meta device in what the host does.
    """
    end = (LATER + 1, 0) if ended_in is None else (ended_in.step, _place(ended_in.phase))
    return [
        (phase, step, size, who)
        for phase, step, size, who in births
        if size >= SMALL
        and phase in _COMPARED
        and (all_in_first or step)
        and step <= LATER
        and (step, _place(phase)) < end
        and not (on_cpu and who.startswith(("batch ", "labels of batch ")))
    ]


_COMPARED = (Phase.FORWARD, Phase.BACKWARD, Phase.CLIP, Phase.OPTIMIZER)
_IN_ORDER = (Phase.LOAD, Phase.PREPARE, *_COMPARED, Phase.ZERO_GRAD, Phase.EVALUATION)


def _place(phase: str) -> int:
    return _IN_ORDER.index(Phase(phase))


def differences(predicted: Iterable[_Birth], measured: Iterable[_Birth]) -> list[Difference]:
    """Sizes that do not occur as often as predicted; what weighs most comes first."""
    ours, our_names = _counted(predicted)
    theirs, their_names = _counted(measured)
    found = [
        Difference(*key, ours[key], theirs[key], our_names.get(key, ""), their_names.get(key, ""))
        for key in ours | theirs
        if ours[key] != theirs[key]
    ]
    return sorted(found, key=lambda d: -d.bytes * abs(d.measured - d.predicted))


def _counted(births: Iterable[_Birth]) -> tuple[Counter[tuple[str, int, int]], dict[tuple[str, int, int], str]]:
    counts: Counter[tuple[str, int, int]] = Counter()
    names: dict[tuple[str, int, int], str] = {}
    for phase, step, size, who in births:
        key = (str(phase), step, size)
        counts[key] += 1
        names.setdefault(key, who)
    return counts, names


def first_difference(predicted: Sequence[_Birth], measured: Sequence[_Birth]) -> Difference | None:
    """Where the two runs part first, in order of time; ``None`` if they ask for the same sizes in the same order.

    Not counted are blocks as large as a workspace of cuBLAS, which comes with the first product, whichever that is.
    """
    workspaces = {size for _, _, size, who in predicted if who.endswith(CUBLAS_CREATE)}
    of_ours, of_theirs = ([one for one in births if one[2] not in workspaces] for births in (predicted, measured))
    for ours, theirs in zip_longest(of_ours, of_theirs):
        if ours is None or theirs is None or ours[:3] != theirs[:3]:
            phase, step, size, _ = theirs or ours
            return Difference(str(phase), step, size, int(theirs is None), int(theirs is not None),
                              _asked(ours), _asked(theirs))  # fmt: skip
    return None


def _asked(birth: _Birth | None) -> str:
    return f"{birth[3]}, {birth[2]} bytes" if birth else "nothing"


def to_dict(item: PhasePair | Quantity | Difference) -> dict[str, Any]:
    """JSON-ready values."""
    return asdict(item) | ({"error_percent": item.error} if isinstance(item, Quantity) else {})
