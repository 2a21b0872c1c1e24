"""What a thread has set in torch is not the job's: a trace sets it as it is in a new process, and gives it back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes

_CASTING = ("cpu", "cuda")
"""Devices whose autocast the tensors of a trace would follow: real ones on the CPU, and those that play a GPU."""


@contextmanager
def own_state() -> Iterator[None]:
    """Inside: gradients, no inference mode, no autocast, float32, the CPU as default device, no modes.

    The CPU's random numbers go on afterwards as if nothing had been drawn.
    """
    with ExitStack() as stack:
        stack.enter_context(_without_modes())
        stack.enter_context(torch.inference_mode(False))  # with gradients (``c10/core/InferenceMode.h``)
        _without_autocast(stack)
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _without_modes() -> Iterator[None]:
    """A default device is a mode, too (``torch/utils/_device.py``), and those of a caller see every call."""
    with ExitStack() as stack:
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        while torch._C._len_torch_function_stack():
            stack.callback(_push_mode, _pop_mode())
        yield


def _without_autocast(stack: ExitStack) -> None:
    """Autocast inside another one keeps its casts until the outer one ends; here there is no outer one."""
    for device in _CASTING:
        stack.callback(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
        torch.set_autocast_enabled(device, False)
    stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
    torch.set_autocast_cache_enabled(True)
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    for _ in range(depth - 1):
        stack.callback(torch.autocast_increment_nesting)
