"""The training loop: what ``transformers.Trainer`` with accelerate does, in the order in which it does it."""

import inspect
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, Trainer

from fitplan.phase import Phase
from fitplan.setup import Loss, MixedPrecision, Objective, TrainingSetup
from fitplan.step.architecture import task_of
from fitplan.step.batch import IGNORED_LABEL, make_batch
from fitplan.step.distribute import clip, inside, not_synchronised
from fitplan.step.job import Observer, Place
from fitplan.step.losses import metrics
from fitplan.step.offload import offloading
from fitplan.step.optimizer import make_optimizer

MAX_GRAD_NORM = 1.0
"""``TrainingArguments.max_grad_norm``."""


def train(
    model: nn.Module,
    config: PretrainedConfig,
    setup: TrainingSetup,
    place: Place,
    observe: Observer,
    *,
    steps: int = 2,
    micro_batches: int | None = None,
    reference: nn.Module | None = None,
) -> None:
    """Run ``steps`` optimizer steps on synthetic batches.

    ``model`` is as :func:`fitplan.step.distribute.distribute` left it.

    Optimizer states exist from the end of the first step on, so two steps show every state that later steps repeat.
    ``micro_batches`` caps how many of the micro-batches of a step are run (of the first step, one); all of them are on
    the device, as with ``Trainer``, which fetches the whole step's batches first.
    """
    observe(Phase.PREPARE)
    optimizer = make_optimizer(model, setup, place)
    task = task_of(config, setup)
    scale = torch.full((), 2.0**16, device=place.device) if setup.mixed_precision is MixedPrecision.FP16 else None
    takes_count = setup.objective is Objective.SFT and _takes_loss_kwargs(inside(model))
    total_loss = torch.tensor(0.0, device=place.device)
    accumulation = setup.gradient_accumulation_steps
    for step in range(steps):
        observe(Phase.FORWARD)
        batches = []
        for number in range(accumulation):
            observe(Phase.FORWARD, f"batch {number}")
            batches.append(make_batch(config, task, setup, place.device))
        extra: dict[str, Any] = {}
        if takes_count:
            extra["num_items_in_batch"] = _count_labels(batches, observe)
        shown = accumulation if micro_batches is None else min(micro_batches, accumulation) if step else 1
        for number, inputs in enumerate(batches[:shown], 1):
            observe(Phase.FORWARD)
            kept = number < shown and setup.gpus > 1
            with not_synchronised(model, setup) if kept else nullcontext(), offloading(model, setup, place):
                loss = _compute_loss(model, reference, inputs, extra, setup)
                if not takes_count:
                    loss = loss / accumulation
                observe(Phase.BACKWARD)
                (loss if scale is None else loss * scale).backward()
            total_loss += loss.detach()
            del loss
        _update(model, setup, optimizer, scale, observe)
        del batches, inputs, extra
    if setup.eval_batch_size is not None:
        _evaluate(model, reference, config, setup, place, observe)


EVALUATED = 2
"""Batches of an evaluation: the first is alive while the second is made."""


def _evaluate(
    model: nn.Module,
    reference: nn.Module | None,
    config: PretrainedConfig,
    setup: TrainingSetup,
    place: Place,
    observe: Observer,
) -> None:
    """``Trainer.evaluation_loop`` as it is without metrics of one's own: of each batch the loss is kept.

    Nothing is recomputed and nothing kept for a backward pass, but the logits of a batch are there at once.
    """
    assert setup.eval_batch_size is not None
    task, of_rows = task_of(config, setup), setup.with_(batch_size=setup.eval_batch_size, gradient_accumulation_steps=1)
    observe(Phase.EVALUATION)
    model.eval()
    losses = []
    with torch.no_grad():
        for number in range(EVALUATED):
            observe(Phase.EVALUATION, f"batch {number} of the evaluation")
            inputs = make_batch(config, task, of_rows, place.device)
            observe(Phase.EVALUATION)
            loss = _compute_loss(model, reference, inputs, {}, of_rows).detach().mean()
            losses.append(loss.repeat(setup.eval_batch_size))
    model.train()


def update(model: nn.Module, setup: TrainingSetup, place: Place, observe: Observer, *, steps: int = 2) -> None:
    """Run ``steps`` optimizer steps on gradients that no forward and backward pass made.

    An optimizer takes the same memory for them, and this takes a fraction of the time.
    """
    observe(Phase.PREPARE)
    optimizer = make_optimizer(model, setup, place)
    for _ in range(steps):
        observe(Phase.FORWARD)
        observe(Phase.BACKWARD)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.backward(trained, [torch.empty_like(parameter) for parameter in trained])
        _update(model, setup, optimizer, None, observe)


def _update(
    model: nn.Module, setup: TrainingSetup, optimizer: Any, scale: torch.Tensor | None, observe: Observer
) -> None:
    observe(Phase.CLIP)
    if scale is not None:
        _unscale(optimizer, scale)
    clip(model, setup, MAX_GRAD_NORM)
    observe(Phase.OPTIMIZER)
    optimizer.step()
    observe(Phase.ZERO_GRAD)
    model.zero_grad()


def _compute_loss(
    model: Any,
    reference: nn.Module | None,
    inputs: dict[str, torch.Tensor],
    extra: dict[str, Any],
    setup: TrainingSetup,
) -> torch.Tensor:
    """``Trainer.compute_loss``: the outputs, logits among them, are dropped before backward starts."""
    if setup.objective is Objective.REWARD:
        return _compute_reward(model, inputs)
    if setup.objective is not Objective.SFT:
        return _compute_preference(model, reference, inputs, setup)
    outputs = model(**inputs, **extra)
    if setup.loss is Loss.METRICS and not setup.use_liger_kernel:
        metrics(outputs["logits"], inputs)
    loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    return loss


BETA = 0.1
"""``DPOConfig.beta``; no memory depends on it."""


def _compute_preference(
    model: Any, reference: nn.Module | None, inputs: dict[str, torch.Tensor], setup: TrainingSetup
) -> torch.Tensor:
    """``DPOTrainer.compute_loss``: the model's answer, then that of the reference, of which nothing is kept.

    ``GRPOTrainer`` asks its reference before, when the answers are written; no peak is there.
    """
    answer: torch.Tensor = model(**inputs)["loss"]
    if setup.has_reference:
        with torch.no_grad(), ExitStack() as stack:
            if reference is None and hasattr(model, "disable_adapter"):
                stack.enter_context(model.disable_adapter())
            before = (model if reference is None else reference)(**inputs)["loss"]
        answer = answer - before
    return -functional.logsigmoid(BETA * -answer)


def _compute_reward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """``RewardTrainer.compute_loss``: the first half of the rows should be worth more than the second."""
    outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
    chosen, rejected = torch.chunk(outputs["logits"].squeeze(-1), chunks=2)
    return -functional.logsigmoid(chosen - rejected).mean()


def _count_labels(batches: list[dict[str, torch.Tensor]], observe: Observer) -> torch.Tensor:
    """``num_items_in_batch`` of ``Trainer``: labels that count towards the loss, over one optimizer step."""
    counts = []
    for number, batch in enumerate(batches):
        observe(Phase.FORWARD, f"labels of batch {number}")
        counts.append((batch["labels"] != IGNORED_LABEL).sum())
    observe(Phase.FORWARD)
    return torch.stack(counts).sum()


def _takes_loss_kwargs(model: nn.Module) -> bool:
    """Whether this ``Trainer`` passes the number of labels of the whole step to the model's loss (since 4.46)."""
    if not hasattr(Trainer, "get_batch_samples"):
        return False
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "accepts_loss_kwargs"):
        return bool(base.accepts_loss_kwargs)
    parameters = inspect.signature(base.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _unscale(optimizer: torch.optim.Optimizer, scale: torch.Tensor) -> None:
    """``GradScaler.unscale_``: in place, one flag and one inverse scale on the device."""
    found_inf = torch.full((), 0.0, device=scale.device)
    inverse = scale.double().reciprocal().float()
    gradients: dict[torch.dtype, list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                gradients.setdefault(param.grad.dtype, []).append(param.grad)
    for same_dtype in gradients.values():
        torch._amp_foreach_non_finite_check_and_unscale_(same_dtype, found_inf, inverse)
