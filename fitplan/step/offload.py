"""Activations on the host: what ``activation_offloading`` of TRL leaves of a forward pass on the GPU.

An example, with checkpointing. Each layer keeps its input for backward, 16 MiB of Llama-3-8B at 2048 tokens: 0.5 GiB of
32 layers. Offloaded, each input is copied to the host while the next layers run. The GPU lets go of one when the fifth
after it is kept, so that copying has its time; in backward each comes back when it is asked for, and goes when the node
after the one that asked is done. So a handful of inputs is there at a time, whatever the depth.

Source: trl 1.16 ``models/activation_offloading.py`` (``OffloadActivations`` with its defaults, in which axolotl and, in
its own ``training/_activation_offloading.py``, torchtune do the same). Written anew: what is kept, and until when.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fitplan.setup import Loss, TrainingSetup
from fitplan.step.job import Place

LEAST_BYTES = 1024
"""Smaller tensors stay (``min_offload_size``)."""
STASHED = 5
"""Tensors that are alive while they are copied (``max_fwd_stash_size``)."""

_Key = tuple[int, int, torch.dtype]


def offloading(model: Any, setup: TrainingSetup, place: Place) -> AbstractContextManager[Any]:
    """For forward and backward of one micro-batch: entered anew each time; nothing where nothing is offloaded."""
    if not setup.activation_offloading or place.device == "cpu":
        return nullcontext()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kept = head if setup.loss in (Loss.LOGITS, Loss.METRICS) else None  # the other losses do without calling it
    return _offloading(_Offloaded(model, place), kept)


@contextmanager
def _offloading(hooks: "_Offloaded", kept: nn.Module | None) -> Iterator[None]:
    """What the output head keeps stays: it is asked for at once."""
    plain: list[saved_tensors_hooks] = []

    def before(*_: Any) -> None:
        plain.append(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        plain[-1].__enter__()

    def after(*_: Any) -> None:
        plain.pop().__exit__()

    handles = []
    if kept is not None:
        handles = [kept.register_forward_pre_hook(before), kept.register_forward_hook(after, always_call=True)]
    try:
        torch.cuda.empty_cache()  # done wherever bitsandbytes is imported, which peft does
        with hooks:
            yield
    finally:
        hooks.clear()
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class _Gone:
    """A tensor on the host: its numbers in a row, which on meta are none, and how they lay on the GPU."""

    numbers: torch.Tensor | None
    count: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    written: dict[str, Any]


class _Offloaded(saved_tensors_hooks):
    def __init__(self, model: nn.Module, place: Place) -> None:
        super().__init__(self._pack, self._unpack)
        self._device = place.device
        self._beside = torch.cuda.Stream() if place.device == "cuda" else None
        self._weights = {param.untyped_storage()._cdata for param in model.parameters()}
        self._known: dict[int, torch.Tensor | _Gone] = {}
        self._stash: dict[int, torch.Tensor] = {}  # leaving
        self._back: dict[int, torch.Tensor] = {}  # have come back
        self._keys: dict[_Key, int] = {}
        self._names: dict[int, _Key] = {}
        self._count = 0
        self._node: Any = None
        self._is_backward = False

    def clear(self) -> None:
        """Whatever was not asked for."""
        for kept in (self._known, self._stash, self._back, self._keys, self._names):
            kept.clear()
        self._node = None

    # --- forward ------------------------------------------------------------------------------------------------------

    def _pack(self, tensor: torch.Tensor) -> int:
        self._count += 1
        number, key = self._count, _key(tensor)
        if key in self._keys:  # leaving already: it stays for whoever asks
            self._name(number, key)
            self._known[number] = tensor
            return number
        storage = tensor.untyped_storage()
        small = tensor.nelement() * tensor.element_size() < LEAST_BYTES
        if small or isinstance(tensor, nn.Parameter) or storage._cdata in self._weights or not self._is_here(tensor):
            self._known[number] = tensor
            return number
        written = dict(vars(tensor))
        repeated = 0 in tensor.stride()
        if not repeated and (not tensor.is_contiguous() or tensor.storage_offset()):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        for older in [one for one in self._stash if one <= number - STASHED]:
            self._let_go(older)
        count = tensor.untyped_storage().nbytes() // tensor.element_size() if repeated else tensor.nelement()
        self._known[number] = _Gone(
            numbers=self._copied(tensor, count),
            count=count,
            dtype=tensor.dtype,
            shape=tensor.shape,
            stride=tensor.stride(),
            offset=int(tensor.storage_offset()),
            written=written,
        )
        self._stash[number] = tensor
        self._name(number, key)
        return number

    def _is_here(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._device

    def _copied(self, tensor: torch.Tensor, count: int) -> torch.Tensor | None:
        if self._beside is None:
            return None
        self._beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._beside):
            numbers = torch.empty(count, dtype=tensor.dtype, device="cpu", pin_memory=True)
            return numbers.copy_(tensor.as_strided((count,), (1,), 0), non_blocking=True)

    def _name(self, number: int, key: _Key) -> None:
        self._keys[key] = number
        self._names[number] = key

    def _forget_name(self, number: int) -> None:
        key = self._names.pop(number, None)
        if key is not None and self._keys.get(key) == number:
            del self._keys[key]

    def _let_go(self, number: int) -> None:
        if self._beside is not None:
            torch.cuda.current_stream().wait_stream(self._beside)
        del self._stash[number]
        self._forget_name(number)

    # --- backward -----------------------------------------------------------------------------------------------------

    def _unpack(self, number: int) -> torch.Tensor:
        if not self._is_backward:
            self._is_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self._back.clear)
        found = self._known.pop(number)
        if isinstance(found, _Gone):
            found = self._brought_back(number, found)
        self._forget_name(number)
        return found

    def _brought_back(self, number: int, gone: _Gone) -> torch.Tensor:
        node = torch._C._current_autograd_node()
        before: list[int] = []
        if self._node is not node:
            self._node = node
            before = list(self._back)
        tensor = self._stash.get(number)
        came_back, users = tensor is None, 0
        if tensor is None:
            tensor = self._back[number] = self._restored(gone)
            users = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)

        def after(outputs: Any, _inputs: Any) -> Any:
            mine = self._back.get(number) if came_back else None
            if mine is not None and torch._C._storage_Use_Count(mine.untyped_storage()._cdata) > users:
                if self._beside is not None:
                    mine.record_stream(torch.cuda.current_stream())
                del self._back[number]
            for leaving in list(self._stash):
                self._let_go(leaving)
            for one in before:
                if self._beside is not None:
                    self._beside.wait_stream(torch.cuda.current_stream())
                self._back.pop(one, None)
            return outputs

        node.register_hook(after)
        return tensor

    def _restored(self, gone: _Gone) -> torch.Tensor:
        if gone.numbers is None:
            flat = torch.empty(gone.count, dtype=gone.dtype, device=self._device)
        else:
            assert self._beside is not None
            with torch.cuda.stream(self._beside):
                flat = gone.numbers.to(self._device, non_blocking=True)
            torch.cuda.current_stream().wait_stream(self._beside)
        tensor = flat.as_strided(gone.shape, gone.stride, gone.offset)
        vars(tensor).update(gone.written)
        return tensor


def _key(tensor: torch.Tensor) -> _Key:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.dtype
