"""The trace of a training step: which bytes were allocated, when, by whom, and when they were released.

This module holds the data only and needs no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from fitplan.phase import Phase


class Category(StrEnum):
    """What a piece of memory holds."""

    BASE_WEIGHTS = "base_weights"
    ADAPTER_WEIGHTS = "adapter_weights"
    GRADIENTS = "gradients"
    OPTIMIZER_STATES = "optimizer_states"
    ACTIVATIONS = "activations"
    LOGITS_AND_LOSS = "logits_and_loss"
    TEMPORARIES = "temporaries"
    WORKSPACES = "workspaces"
    GATHERED_WEIGHTS = "gathered_weights"
    COMMUNICATION = "communication"


OF_SEVERAL_GPUS = (Category.GATHERED_WEIGHTS, Category.COMMUNICATION)


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the identical layers of a stack, e.g. the third decoder layer."""

    stack: str
    index: int


def layer_of_path(path: str) -> Layer | None:
    """The layer that a module or parameter path lies in: ``model.layers.3.mlp`` is in layer 3 of ``model.layers``."""
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return Layer(".".join(parts[:place]), int(part))
    return None


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of the step that a person has a name for.

    Attributes:
        phase: what the program is doing.
        part: which part of it: ``""``, ``"loss"``, ``"layer"`` or ``"recompute"``.
        layer: the layer, for the last two.
        step: 0 in the first optimizer step (no optimizer states yet), then 1.
        micro_batch: 0 in the first forward and backward of a step, where no gradients have been accumulated, then 1;
            0 in what comes once a step.

    """

    phase: Phase
    part: str = ""
    layer: Layer | None = None
    step: int = 0
    micro_batch: int = 0

    @property
    def name(self) -> str:
        """``"backward of layer 31"``, ``"optimizer step"``."""
        return moment_name(self.phase, self.part, self.layer)


_PHASE_NAMES = {
    Phase.LOAD: "loading the model",
    Phase.PREPARE: "preparing the model",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.CLIP: "gradient clipping",
    Phase.OPTIMIZER: "optimizer step",
    Phase.ZERO_GRAD: "between steps",
    Phase.EVALUATION: "evaluation",
}


def moment_name(phase: Phase, part: str, layer: Layer | None) -> str:
    """The name of a moment as people read it."""
    name = _PHASE_NAMES[phase]
    if part == "loss":
        return f"{name} of the loss"
    if layer is None:
        return name
    stack = f"{layer.stack} " if layer.stack else ""
    verb = "recompute" if part == "recompute" else name
    return f"{verb} of {stack}layer {layer.index}"


MICRO_BATCHES = 2
"""Most of a step's micro-batches that a trace holds: those after the second are like it."""

CUBLAS_CREATE = "cublasCreate"
"""The ``op`` of a cuBLAS handle's workspace."""

EMPTY_CACHE = "empty_cache"
"""The ``op`` of no bytes at all, where the program has the caching allocator give back what it does not use."""


@dataclass(slots=True)
class Allocation:
    """One piece of memory, from birth to release.

    Attributes:
        size: bytes, as requested.
        category: what it holds.
        owner: path of the module or parameter that asked for it.
        op: the operator that returned it.
        layer: the layer in whose stretch it was born.
        parts: for a tensor that joins one of each layer (a stack of gradient norms, say), the bytes of each.
        stream: the number of the CUDA stream that it was made for; the caching allocator keeps blocks for each.

    """

    size: int
    category: Category
    owner: str
    op: str
    layer: Layer | None = None
    parts: dict[Layer | None, int] | None = None
    stream: int = 0


@dataclass(slots=True)
class Trace:
    """A recorded training run.

    Attributes:
        allocations: every allocation, in order of birth.
        events: ``i`` where allocation ``i`` is born, ``~i`` where it is released, in order of time.
        moments: for each event, the moment in which it happened.
        stacks: the number of layers of each stack, by its name.

    """

    allocations: list[Allocation] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    stacks: dict[str, int] = field(default_factory=dict)

    @property
    def emptied(self) -> frozenset[int]:
        """The allocations, of no bytes, that stand for an emptied cache."""
        return frozenset(number for number, one in enumerate(self.allocations) if one.op == EMPTY_CACHE)

    @property
    def streams(self) -> dict[int, int]:
        """The allocations that are for another stream than the first, and for which."""
        return {number: one.stream for number, one in enumerate(self.allocations) if one.stream}

    @property
    def steps(self) -> list[int]:
        """For each event, the optimizer step in which it happened."""
        return [moment.step for moment in self.moments]

    def born(self, allocation: Allocation, moment: Moment) -> int:
        """Append a birth; the number of the allocation."""
        self.allocations.append(allocation)
        self.events.append(len(self.allocations) - 1)
        self.moments.append(moment)
        return len(self.allocations) - 1

    def released(self, number: int, moment: Moment) -> None:
        """Append a release."""
        self.events.append(~number)
        self.moments.append(moment)

    def sizes(self) -> Iterator[tuple[Allocation, int, Moment]]:
        """Each event as (allocation, +1 or -1, moment)."""
        for event, moment in zip(self.events, self.moments, strict=True):
            yield (self.allocations[event], 1, moment) if event >= 0 else (self.allocations[~event], -1, moment)
