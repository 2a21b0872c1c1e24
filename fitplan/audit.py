"""How a model's parameters are stored, and why: the quantisation audit."""

from dataclasses import dataclass

ADAPTER = "adapter"
NOT_SAVED = "adapter, while it is trained only"
"""Reasons of parameters of adapters: those that are saved with them, and the rest."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are stored alike for the same reason.

    Attributes:
        storage: ``"nf4"``, ``"fp4"``, ``"int8"`` or a torch type such as ``"bfloat16"``.
        why: the reason for that storage, in words.
        trainable: whether they receive gradients.
        adapter: whether they belong to an adapter, not to the base model.
        parameters: how many numbers; quantised ones are counted as numbers, not as bytes.
        bytes: memory of the numbers themselves, with scales and code tables.
        example: the path of one of them.

    """

    storage: str
    why: str
    trainable: bool
    adapter: bool
    parameters: int
    bytes: int
    example: str

    @property
    def quantised(self) -> bool:
        """Whether they are stored in 4 or 8 bits."""
        return self.storage in ("nf4", "fp4", "int8")

    @property
    def is_saved_with_adapter(self) -> bool:
        """Whether they are part of what is saved beside the frozen model."""
        return self.trainable if not self.adapter else self.why != NOT_SAVED


def unquantised_share(groups: tuple[ParameterGroup, ...]) -> float:
    """The part of the base model's parameters that is not quantised, 0 to 1."""
    base = [group for group in groups if not group.adapter]
    total = sum(group.parameters for group in base)
    return sum(group.parameters for group in base if not group.quantised) / total if total else 0.0
