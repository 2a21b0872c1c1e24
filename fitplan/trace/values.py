"""Values of integer tensors on the meta device, and of numbers computed from them.

Some questions of a model depend on data: is there padding, which tokens go to which expert, how many. The integer
tensors of the synthetic batch are known, so whatever is computed from them is computed alongside, on the CPU, and
answers with the truth. Tensors computed from weights have no values; routing decisions made from them (``topk``) are
answered as balanced: token t goes to experts t*k, t*k+1, ... modulo their number.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from fitplan.errors import ModelNotSupported

MAX_ELEMENTS = 2**24
"""Larger tensors are not computed: nothing that is asked of a model is that large."""

_INTEGERS = (torch.int64, torch.bool, torch.int32, torch.int8, torch.uint8, torch.int16)
_NAME = "_fitplan_value"

_OF_MASKS = (torch.ops.aten._to_copy.default, torch.ops.aten.cat.default)
"""Numbers with a fraction are followed through these: peft puts ones, as floats, before the mask of a row with a prompt
(``peft_model.py``, ``PeftModelForCausalLM.forward``).
"""


class _Unknown(Exception):
    pass


def know(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Remember that meta ``tensor`` stands for ``value``."""
    setattr(tensor, _NAME, value)
    return tensor


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """What meta ``tensor`` stands for, if that is known."""
    found = getattr(tensor, _NAME, None)
    return found if isinstance(found, torch.Tensor) else None


def follow(func: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Give the integer and the scalar outputs of ``func`` their values, where those of the inputs are known."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    of_mask = func in _OF_MASKS
    if not any(
        isinstance(t, torch.Tensor) and (of_mask or t.dtype in _INTEGERS or not t.dim()) and t.is_meta for t in outputs
    ):
        return
    try:
        values = _compute(func, args, kwargs, outputs)
    except _Unknown:
        return
    for tensor, value in zip(outputs, values if isinstance(values, tuple | list) else (values,), strict=False):
        if isinstance(tensor, torch.Tensor) and isinstance(value, torch.Tensor) and tensor.shape == value.shape:
            know(tensor, value)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
    if func is torch.ops.aten.topk.default and args[0].is_floating_point():
        return None, _balanced(args[0].shape, int(args[1]))
    if any(isinstance(t, torch.Tensor) and t.numel() > MAX_ELEMENTS for t in outputs):
        raise _Unknown
    known_args, known_kwargs = tree_map_only(torch.Tensor, _known, (args, kwargs))
    if "device" in known_kwargs:
        known_kwargs["device"] = torch.device("cpu")
    try:
        return func(*known_args, **known_kwargs)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise _Unknown from error


def _known(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor
    value = value_of(tensor)
    if value is None:
        raise _Unknown
    return value


def _balanced(shape: torch.Size, k: int) -> torch.Tensor:
    rows = shape[:-1].numel()
    return (torch.arange(rows * k) % shape[-1]).view(*shape[:-1], k)


def answer(tensor: torch.Tensor, question: str) -> torch.Tensor:
    """The value of a tensor whose content decides what happens next.

    A boolean that depends on weights is taken as false: models ask such things of infinities and outliers.

    Raises:
        ModelNotSupported: the answer depends on weights.

    """
    value = value_of(tensor)
    if value is not None:
        return value
    if tensor.dtype is torch.bool:
        return torch.zeros(tensor.shape, dtype=torch.bool)
    raise ModelNotSupported(
        f"what this model computes depends on values of its weights ({question} of a {tensor.dtype} tensor); "
        "measure it on a GPU instead of predicting it"
    )
