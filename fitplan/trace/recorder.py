"""The recorder: follows every storage on one device from birth to release.

An example. Each allocation has a number; ``i`` is its birth, ``~i`` its release. The view ``y.T`` is no allocation, and
``y`` is let go when the last that holds its storage is:

    >>> recorder = Recorder("meta")
    >>> with recorder:
    ...     x = torch.empty(1024, 2, device="meta")
    ...     y = x.exp()
    ...     z = y.T
    ...     del y
    ...     w = z + 1
    ...     del z
    ...     trace = recorder.finish()
    >>> [allocation.size for allocation in trace.allocations]
    [8192, 8192, 8192]
    >>> trace.events[:4]
    [0, 1, 2, -2]

Whose an allocation is, and what for, is known later than its birth: what forward leaves behind is activations, what
backward leaves in a parameter's ``grad`` is a gradient. So categories are settled when a phase ends.
"""

import bisect
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fitplan.guard import Guard
from fitplan.phase import STEP_ENDS, Phase
from fitplan.step.adapters import is_adapter
from fitplan.trace.accumulation import Accumulation
from fitplan.trace.events import Allocation, Category, Layer, Moment, Trace, layer_of_path

_AROUND = re.compile(r"^module\.|_fsdp_wrapped_module\.|_fsdp_wrapped_module$|base_model\.model\.")
"""What peft, DDP and FSDP put into the paths of the modules that they go around."""

_WITH_LOSS = (Phase.FORWARD, Phase.EVALUATION)
_PRODUCTS = {
    getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm", "linear", "mv", "addmv", "dot")
}
"""What PyTorch leaves to cuBLAS (``aten/src/ATen/native/cuda/Blas.cpp``)."""


class Recorder(TorchDispatchMode):
    """Writes a :class:`Trace` of what the operators allocate on ``device`` while it is active.

    It watches storages, not tensors: a view allocates nothing, and memory is released when its last view is gone. The
    program that is recorded says what it is doing (:meth:`enter`); :meth:`watch` adds the model, for owners, layers
    and categories.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.trace = Trace()
        self._device = device
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._moment = Moment(Phase.LOAD)
        self._micro_batch = 0
        self._moments: dict[Moment, Moment] = {}
        self._paths: dict[int, str] = {}
        self._layers: dict[int, Layer] = {}
        self._head: int = 0
        self._calls: list[str] = []
        self._owner = ""
        self._in_layer = 0
        self._spans: list[int] = []
        self._span_owners: list[str] = []
        self._phase_births: list[int] = []
        self._recomputed: list[int] = []
        self._awaiting_product: Allocation | None = None
        self._recording = True
        self._accumulation = Accumulation()
        self._host: dict[int, weakref.ref[Any]] = {}
        self._place = ""
        self._category: Category | None = None
        self._trained: list[tuple[str, torch.Tensor]] = []
        self.stream = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the guard against it would cost a tenth of the time."""
        return False

    # --- what the program says ---------------------------------------------------------------------------------------

    def enter(self, phase: Phase, owner: str = "") -> None:
        """The program goes into ``phase``, or goes on with it for another ``owner``."""
        before = self._moment
        if phase is not before.phase:
            self._leave_phase(before.phase)
        step = before.step + (phase is Phase.FORWARD and before.phase in STEP_ENDS)
        if phase is Phase.FORWARD and before.phase is not Phase.FORWARD:
            self._micro_batch = self._micro_batch + 1 if before.phase is Phase.BACKWARD else 0
        once = phase not in (Phase.FORWARD, Phase.BACKWARD)
        layer = layer_of_path(owner) if owner else None
        self._owner = owner
        if phase is Phase.BACKWARD:
            self._accumulation.learn(self._device)
        part = "loss" if phase is Phase.BACKWARD else ""
        self._set_moment(Moment(phase, part, layer, step, 0 if once else self._micro_batch))

    def _leave_phase(self, phase: Phase) -> None:
        """What a phase leaves behind tells what it was for."""
        if phase is Phase.BACKWARD:
            for path, param in self._trained:  # gradients that no hook told of: FSDP writes those of its shards itself
                allocation = self._allocation_of(param.grad)
                if allocation is not None and allocation.category is not Category.GRADIENTS:
                    self._label(param.grad, Category.GRADIENTS, path)
        kept = {Phase.FORWARD: Category.ACTIVATIONS, Phase.OPTIMIZER: Category.OPTIMIZER_STATES}.get(phase)
        if kept is not None:
            self._keep(self._phase_births, kept)
        self._phase_births = []

    def _keep(self, births: list[int], category: Category) -> None:
        alive = {number for _, number in self._live.values()}
        for number in births:
            allocation = self.trace.allocations[number]
            if number in alive and allocation.category is Category.TEMPORARIES:
                allocation.category = category

    def enter_loss(self) -> None:
        """The program computes the loss; said by what does so without calling the output head."""
        self._span("loss")
        self._at("loss", None)

    def _set_moment(self, moment: Moment) -> None:
        self._moment = self._moments.setdefault(moment, moment)

    def _at(self, part: str, layer: Layer | None) -> None:
        if (part, layer) != (self._moment.part, self._moment.layer):
            self._set_moment(replace(self._moment, part=part, layer=layer))

    def reserve(self, allocation: Allocation) -> None:
        """Memory that no operator returns and that is never given back, such as a workspace."""
        self.trace.born(allocation, self._moment)

    def reserve_with_product(self, allocation: Allocation) -> None:
        """The same, right after the result of the next matrix product."""
        self._awaiting_product = allocation

    def pass_by(self, parts: dict[str, int], op: str) -> None:
        """Memory that no operator returns, made of parts by parameter, and given back at once."""
        by_layer: dict[Layer | None, int] = {}
        for path, size in parts.items():
            layer = layer_of_path(path)
            by_layer[layer] = by_layer.get(layer, 0) + size
        allocation = Allocation(sum(parts.values()), Category.TEMPORARIES, "", op, None, by_layer)
        self.trace.released(self.trace.born(allocation, self._moment), self._moment)

    @contextmanager
    def births_are(self, category: Category) -> Iterator[None]:
        """Inside, what is born is of this category, whoever asks for it."""
        before, self._category = self._category, category
        try:
            yield
        finally:
            self._category = before

    @contextmanager
    def on(self, place: str) -> Iterator[None]:
        """Inside, what is born is on the ``"host"`` or on the ``"device"``, although both have the same name here.

        Outside, what is made of tensors on the host is there too.
        """
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    # --- what the model is -------------------------------------------------------------------------------------------

    def watch(self, model: nn.Module) -> None:
        """Learn the module paths and layers, and label what is loaded."""
        for full_path, module in model.named_modules():
            path = _path(full_path)
            self._paths[id(module)] = path
            self._label(getattr(module, "_flat_param", None), Category.BASE_WEIGHTS, path)
            if hasattr(module, "quant_state"):  # the shard of a quantised weight does not know its scales any more
                for tensor in _quantisation_tensors(module):
                    self._label(tensor, Category.BASE_WEIGHTS, f"{path}.weight")
            layer = layer_of_path(path)
            if layer is not None and path == f"{layer.stack}.{layer.index}":
                self._layers[id(module)] = layer
                self.trace.stacks[layer.stack] = max(layer.index + 1, self.trace.stacks.get(layer.stack, 0))
        self._head = id(_head_of(model))
        self._trained = []
        for path, param in model.named_parameters():
            self._watch_parameter(_path(path), param)
        for path, buffer in model.named_buffers():
            category = Category.ADAPTER_WEIGHTS if is_adapter(path) else Category.BASE_WEIGHTS
            self._label(buffer, category, _path(path))

    def _watch_parameter(self, path: str, param: torch.Tensor) -> None:
        category = Category.ADAPTER_WEIGHTS if is_adapter(path) else Category.BASE_WEIGHTS
        for tensor in (param, *_quantisation_tensors(param)):
            self._label(tensor, category, path)
        if param.requires_grad:
            self._trained.append((path, param))

            def label_gradient(parameter: torch.Tensor) -> None:
                self._label(parameter.grad, Category.GRADIENTS, path)

            param.register_post_accumulate_grad_hook(label_gradient)

    def _label(self, tensor: torch.Tensor | None, category: Category, owner: str) -> None:
        allocation = self._allocation_of(tensor)
        if allocation is not None:
            allocation.category, allocation.owner = category, owner
            allocation.layer = layer_of_path(owner)

    def _allocation_of(self, tensor: Any) -> Allocation | None:
        tensor = getattr(tensor, "_local_tensor", tensor)
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != self._device:
            return None
        found = self._live.get(tensor.untyped_storage()._cdata)
        return self.trace.allocations[found[1]] if found else None

    # --- where the program is ----------------------------------------------------------------------------------------

    @contextmanager
    def module_calls(self) -> Iterator[None]:
        """Inside, calls of the watched modules are seen."""
        call = nn.Module.__call__

        def seen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self._paths.get(id(module))
            if path is None:
                return call(module, *args, **kwargs)
            layer = self._layers.get(id(module))
            self._enter_module(module, path, layer)
            try:
                output = call(module, *args, **kwargs)
            finally:
                self._leave_module(layer)
            if layer is not None and self._moment.phase is Phase.FORWARD:
                self._await_backward(output, layer)
            return output

        with Guard() as guard:
            guard.exchange_here(nn.Module, "__call__", seen)
            yield

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """Inside, storages are seen that grow and shrink in place: so FSDP takes and frees gathered weights."""
        resize = torch.UntypedStorage.resize_

        def seen(storage: Any, size: int) -> Any:
            before = storage.nbytes()
            resized = resize(storage, size)
            if storage.device.type == self._device and before != size:
                self._resized(storage, size)
            return resized

        with Guard() as guard:
            guard.exchange_here(torch.UntypedStorage, "resize_", seen)
            yield

    def _resized(self, storage: Any, size: int) -> None:
        key = storage._cdata
        if key in self._host:
            return
        layer, owner = self._moment.layer, self._current_owner()
        reference: weakref.ref[Any] = weakref.ref(storage, lambda _: self._release(key))
        if (found := self._live.get(key)) is not None:
            reference, number = found
            self.trace.released(number, self._moment)
            owner = self.trace.allocations[number].owner
        category = self._category or Category.GATHERED_WEIGHTS
        born = Allocation(size, category, owner, "resize_", layer, stream=self.stream)
        self._live[key] = (reference, self.trace.born(born, self._moment))

    def _enter_module(self, module: nn.Module, path: str, layer: Layer | None) -> None:
        self._calls.append(path)
        self._span(path)
        if self._moment.phase is Phase.BACKWARD:
            self._at("recompute", layer or self._moment.layer)
        elif layer is not None:
            self._at("layer", layer)
        elif id(module) == self._head:
            self._at("loss", None)
        elif not self._in_layer and self._moment.part != "loss":
            self._at("", None)
        self._in_layer += layer is not None

    def _leave_module(self, layer: Layer | None) -> None:
        self._calls.pop()
        self._in_layer -= layer is not None
        after_head = self._moment.part == "loss" and not self._in_layer
        self._span("loss" if after_head else self._calls[-1] if self._calls else "")
        if self._moment.phase is Phase.BACKWARD and not self._calls:
            self._keep(self._recomputed, Category.ACTIVATIONS)
            self._recomputed = []
            self._at("layer", self._moment.layer)

    def _await_backward(self, output: Any, layer: Layer) -> None:
        """The gradient of a layer's output is complete exactly when the layer's own backward begins."""
        tensor = output[0] if isinstance(output, tuple | list) else output
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda _: self._at("layer", layer))

    def _span(self, owner: str) -> None:
        """From here on autograd nodes belong to ``owner``; backward looks them up by their sequence number."""
        self._spans.append(torch.autograd._get_sequence_nr())
        self._span_owners.append(owner)

    def _current_owner(self) -> str:
        if self._calls:
            return "loss" if self._calls[-1] == "" and self._moment.part == "loss" else self._calls[-1]
        if self._moment.phase is Phase.BACKWARD:
            node = torch._C._current_autograd_node()
            if node is not None:
                place = bisect.bisect_right(self._spans, node._sequence_nr()) - 1
                return self._span_owners[place] if 0 <= place < len(self._spans) else ""
        return self._owner

    # --- what the operators do ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it is taken apart first, into operators on what this rank holds
        if self._accumulation.is_in_place(func, args):
            return args[0].add_(args[1])
        output = func(*args, **(kwargs or {}))
        if self._accumulation.is_learning:
            return output
        if isinstance(output, torch.Tensor):
            self._see(output, func, args)
        elif isinstance(output, tuple | list):
            sources = args[0] if args and isinstance(args[0], list) and len(args[0]) == len(output) else None
            for place, item in enumerate(output):
                if isinstance(item, torch.Tensor):
                    self._see(item, func, (sources[place],) if sources else ())
        return output

    def _see(self, tensor: torch.Tensor, func: Any, args: Any) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._host or storage.device.type != self._device:
            return  # tensors by which shapes are worked out name devices that they are not on
        moves = self._moment.phase in (Phase.LOAD, Phase.PREPARE)
        if self._place == "host" or (moves and self._host and not self._place and self._is_of_host(args)):
            self._host[key] = weakref.ref(storage, lambda _: self._host.pop(key, None))
            return
        allocation = self._describe(storage.nbytes(), func, args)
        number = self.trace.born(allocation, self._moment)
        self._live[key] = (weakref.ref(storage, lambda _: self._release(key)), number)
        self._phase_births.append(number)
        if self._moment.part == "recompute":
            self._recomputed.append(number)
        if self._awaiting_product is not None and func in _PRODUCTS:
            self.reserve(self._awaiting_product)
            self._awaiting_product = None

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        """Whether it was born there."""
        return tensor.untyped_storage()._cdata in self._host

    def _is_of_host(self, args: Any) -> bool:
        tensors = args[0] if args and isinstance(args[0], list) else args
        return any(isinstance(one, torch.Tensor) and self.is_on_host(one) for one in tensors)

    def _describe(self, size: int, func: Any, args: Any) -> Allocation:
        owner, layer = self._current_owner(), self._moment.layer
        if layer is None and self._moment.phase in (Phase.PREPARE, Phase.CLIP, Phase.OPTIMIZER):
            source = self._allocation_of(args[0]) if args else None
            if source is not None:
                owner, layer = source.owner, source.layer
        in_loss = owner == "loss" or (self._moment.part == "loss" and self._moment.phase in _WITH_LOSS)
        loss = in_loss or (self._moment.part == "loss" and owner == self._paths.get(self._head, "loss"))
        category = self._category or (Category.LOGITS_AND_LOSS if loss else Category.TEMPORARIES)
        return Allocation(size, category, owner, str(func), layer, self._parts(args), self.stream)

    def _parts(self, args: Any) -> dict[Layer | None, int] | None:
        if self._moment.phase not in (Phase.CLIP, Phase.OPTIMIZER) or not (args and isinstance(args[0], list)):
            return None
        parts: dict[Layer | None, int] = {}
        for tensor in (item for item in args[0] if isinstance(item, torch.Tensor)):
            source = self._allocation_of(tensor)
            layer = source.layer if source is not None else None
            parts[layer] = parts.get(layer, 0) + tensor.nbytes
        return parts

    def _release(self, key: int) -> None:
        _, number = self._live.pop(key)
        if self._recording:
            self.trace.released(number, self._moment)

    def finish(self) -> Trace:
        """The trace; births that carry no layer in a phase that goes through parameters get that of the next one."""
        self._recording = False
        self._leave_phase(self._moment.phase)
        following: Layer | None = None
        moment: Moment | None = None
        for event, at in zip(reversed(self.trace.events), reversed(self.trace.moments), strict=True):
            if event < 0:
                continue
            if at is not moment:
                following, moment = None, at
            allocation = self.trace.allocations[event]
            if allocation.layer is not None or allocation.owner:
                following = allocation.layer
            elif at.phase in (Phase.PREPARE, Phase.CLIP, Phase.OPTIMIZER):
                allocation.layer = following
        return self.trace


def _path(full: str) -> str:
    return _AROUND.sub("", full).removesuffix(".")


def _head_of(model: nn.Module) -> nn.Module | None:
    """The module whose output is the logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if head is not None else list(base.children())[-1]


def _quantisation_tensors(weight: Any) -> Iterator[torch.Tensor]:
    """The tensors that come with a bitsandbytes weight, or its layer: scales, nested scales, code tables, offset."""
    state = getattr(weight, "quant_state", None)
    for holder in (state, getattr(state, "state2", None), weight):
        for value in vars(holder).values() if holder is not None else ():
            if isinstance(value, torch.Tensor) and value is not getattr(weight, "grad", None):
                yield value
