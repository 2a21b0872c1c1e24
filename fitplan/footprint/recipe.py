"""What decides which operators a training step runs: the setup without its shape and its optimizer."""

from functools import cache
from typing import Any

from fitplan.cuda import AMPERE
from fitplan.footprint.size import Shape
from fitplan.settings import Decides
from fitplan.setup import END_TO_END, SETTINGS, SHARDED, Adapter, Method, Padding, Quant, TrainingSetup

SOME_DROPOUT = 0.05

Recipe = dict[str, Any]


def shape_of(setup: TrainingSetup) -> Shape:
    """The shape of the job; the rank is part of it where all that adapters need grows with it in proportion.

    Rows that are laid end to end are a single one. Where each GPU holds the whole model, it holds the same whatever
    their number.
    """
    rank = setup.lora_r or 0 if setup.adapter in (Adapter.LORA, Adapter.DORA) else 0
    rows, length = setup.batch_size, setup.seq_len
    if setup.padding in END_TO_END:
        rows, length = 1, rows * length
    gpus = setup.gpus if setup.strategy in SHARDED else min(setup.gpus, 2)
    return Shape(rows, length, rank, setup.gradient_accumulation_steps, gpus)


def recipe_of(setup: TrainingSetup) -> Recipe:
    """The rest of the setup, as JSON-ready values.

    Whether there is dropout matters, how much does not; fp4 and nf4 take the same bytes; several rows end to end are
    packed, whatever they hold. An evaluation of no more rows than a step trains holds nothing that the step does not
    hold as well, and gradients beside it.
    """
    values = setup.to_dict()
    recipe = {one.name: values[one.name] for one in SETTINGS.values() if one.decides is Decides.RECIPE}
    recipe["lora_dropout"] = None if setup.lora_dropout is None else setup.lora_dropout > 0
    if setup.quant is Quant.FP4:
        recipe["quant"] = str(Quant.NF4)
    if setup.padding is Padding.FREE and setup.batch_size > 1:
        recipe["padding"] = str(Padding.PACKED)
    if (setup.eval_batch_size or 0) <= setup.batch_size:
        recipe["eval_batch_size"] = None
    if setup.lora_r and not shape_of(setup).lora_r:
        recipe["lora_r"] = setup.lora_r
    return recipe


def completed(recipe: Recipe) -> Recipe:
    """A recipe that was written before some setting was known, which then had its default."""
    return {**_defaults(recipe["method"]), **recipe}


@cache
def _defaults(method: str) -> Recipe:
    return recipe_of(TrainingSetup(method=Method(method)))


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Settings that have this recipe, as JSON-ready values."""
    dropout = {None: None, False: 0.0, True: SOME_DROPOUT}[recipe["lora_dropout"]]
    return {**recipe, "lora_dropout": dropout, "gpus": 1 if recipe["strategy"] is None else 2}


def kernels_of(capability: tuple[int, int]) -> str:
    """GPUs that run the same kernels, as the rules of :mod:`fitplan.trace.kernels` tell them apart."""
    return "sm80" if capability >= AMPERE else "sm50"
