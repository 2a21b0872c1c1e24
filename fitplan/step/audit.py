"""Read off a model that is ready for training how each parameter is stored, and why."""

from dataclasses import dataclass

import torch
from torch import nn

from fitplan.audit import ADAPTER, NOT_SAVED
from fitplan.setup import Method, TrainingSetup
from fitplan.step.adapters import is_adapter, is_saved

QUANTISED = ("Params4bit", "Int8Params")
"""Classes of bitsandbytes' weights."""

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter; see :class:`fitplan.audit.ParameterGroup` for the fields."""

    path: str
    storage: str
    why: str
    trainable: bool
    adapter: bool
    count: int
    size: int


def parameters_of(model: nn.Module, setup: TrainingSetup) -> list[Parameter]:
    """Every parameter of the model, tied ones once; and buffers of adapters, which are saved but are no parameters."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    modules = dict(model.named_modules())
    found = []
    for path, param in model.named_parameters():
        adapter = is_adapter(path)
        module = modules[path.rpartition(".")[0]]
        storage = _storage(param, setup)
        why = _why_adapter(path) if adapter else _why(param, module, module is head, setup)
        found.append(
            Parameter(
                path=path.removeprefix(_PEFT_PREFIX),
                storage=storage,
                why=why,
                trainable=param.requires_grad,
                adapter=adapter,
                count=_count(param),
                size=_size(param),
            )
        )
    return found + [
        Parameter(
            path=path,
            storage=_storage(buffer, setup),
            why=why,
            trainable=False,
            adapter=True,
            count=0,
            size=buffer.nbytes,
        )
        for path, buffer in model.named_buffers()
        if is_adapter(path)
        for why in [ADAPTER if _is_persistent(path, modules) else NOT_SAVED]
    ]


def _is_persistent(path: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a buffer is part of the state that is saved."""
    module, _, name = path.rpartition(".")
    return name not in modules[module]._non_persistent_buffers_set


def _why_adapter(path: str) -> str:
    return ADAPTER if is_saved(path) else NOT_SAVED


def _is_quantised(param: torch.Tensor) -> bool:
    return type(param).__name__ in QUANTISED


def _storage(param: torch.Tensor, setup: TrainingSetup) -> str:
    if _is_quantised(param):
        return str(setup.quant)
    return str(param.dtype).removeprefix("torch.")


def _count(param: torch.Tensor) -> int:
    """Numbers in the weight, whatever their packing."""
    state = getattr(param, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else param.numel()


def _size(param: torch.Tensor) -> int:
    """Bytes of the weight with everything that is needed to read it."""
    size = param.nbytes
    state = getattr(param, "quant_state", None)
    for holder in (state, getattr(state, "state2", None)):
        size += sum(t.nbytes for t in vars(holder).values() if isinstance(t, torch.Tensor)) if holder is not None else 0
    scales = getattr(param, "SCB", None)
    return size + (scales.nbytes if isinstance(scales, torch.Tensor) else 0)


def _why(param: torch.Tensor, module: nn.Module, is_head: bool, setup: TrainingSetup) -> str:
    if _is_quantised(param):
        return "linear layer"
    if setup.method is not Method.QLORA:
        return "not quantised"
    if is_head:
        kind = "output head, kept by transformers"
    elif isinstance(module, nn.Embedding):
        kind = "embedding"
    elif param.dim() == 1:
        kind = "norm or bias"
    elif param.dim() == 3:
        kind = "fused experts: bitsandbytes replaces linear layers only"
    elif isinstance(module, nn.Linear):
        kind = f"{type(module).__name__}: bitsandbytes replaces plain linear layers only"
    else:
        kind = "not a linear layer"
    if setup.kbit_prepare and param.dtype is torch.float32:
        kind += "; cast by k-bit preparation"
    return kind
