"""One fine-tuning job, resolved: what every stage after the question is given."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import DEFAULT_CAPABILITY, Device
from fitplan.footprint.recipe import Recipe, kernels_of, recipe_of, shape_of
from fitplan.footprint.size import Shape
from fitplan.setup import TrainingSetup, as_bitsandbytes_says


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A model, a complete setup, and what they are run on.

    Attributes:
        model: its config.
        setup: every setting.
        capability: the compute capability of the GPU.
        device: the GPU; ``None`` is any of that capability.
        remarks: what of the question could not be minded, in words.

    """

    model: ModelConfig
    setup: TrainingSetup
    capability: tuple[int, int] = DEFAULT_CAPABILITY
    device: Device | None = None
    remarks: tuple[str, ...] = ()

    @cached_property
    def shape(self) -> Shape:
        """The lengths that the formulas take."""
        return shape_of(self.setup)

    @cached_property
    def recipe(self) -> Recipe:
        """What decides which operators run."""
        return recipe_of(self.setup)

    @cached_property
    def kernels(self) -> str:
        """The class of GPUs that run the same kernels."""
        return kernels_of(self.capability)

    @property
    def settled(self) -> frozenset[str]:
        """The settings that the model leaves no choice of."""
        stored = as_bitsandbytes_says(self.model.bitsandbytes)
        return frozenset(stored) | {"method", "quant_storage"} if stored else frozenset()

    def with_setup(self, setup: TrainingSetup) -> Self:
        """The same model on the same GPU, set up in another way."""
        return replace(self, setup=setup)
