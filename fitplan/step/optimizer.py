"""The optimizer, chosen and grouped as ``transformers.Trainer`` does."""

import inspect
import tempfile
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from fitplan.faults import interface_of, moved, one_line
from fitplan.setup import Optim, TrainingSetup
from fitplan.step.job import Place


def make_optimizer(model: nn.Module, setup: TrainingSetup, place: Place) -> torch.optim.Optimizer:
    """The optimizer of ``Trainer.create_optimizer``: two parameter groups, with and without weight decay.

    ``foreach`` is said out loud for the plain PyTorch optimizers: PyTorch switches it on for CUDA parameters by
    itself, and the other devices must take the same path.
    """
    arguments = TrainingArguments(output_dir=tempfile.gettempdir(), optim=str(setup.optim), use_cpu=True, report_to=[])
    with interface_of("transformers"):
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if place.kernels == "cuda" and setup.optim in (Optim.ADAMW_TORCH, Optim.SGD):
        kwargs["foreach"] = True
    optimizer = kind(_parameter_groups(model, arguments), **kwargs)
    if "bitsandbytes" in str(kind) and kwargs.get("optim_bits") == 8 and not _asks_for_another_class():
        _keep_embeddings_in_32_bit(model)
    return optimizer


def _parameter_groups(model: nn.Module, arguments: TrainingArguments) -> list[dict[str, Any]]:
    with interface_of("transformers"):
        decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": arguments.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]


def _asks_for_another_class() -> bool:
    """Whether this ``Trainer`` looks for an optimizer called ``Adam8bit``, which none that it makes is (4.48)."""
    try:
        source = inspect.getsource(Trainer.create_optimizer)
    except (OSError, TypeError) as error:
        raise moved("transformers", f"Trainer.create_optimizer has no source: {one_line(error)}") from error
    return '"Adam8bit"' in source


def _keep_embeddings_in_32_bit(model: nn.Module) -> None:
    """As ``Trainer.create_optimizer``: the 8-bit optimizers of bitsandbytes keep embeddings in 32 bit."""
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
