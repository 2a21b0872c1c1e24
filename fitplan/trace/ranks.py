"""One rank of several, on the meta device: no GPU, and no second process.

The code that distributes a model runs as it is (:mod:`fitplan.step.distribute`). Played are what it meets:

- a process group of so many ranks that talks to nobody (PyTorch's own, for tests), taught the meta device: what a
  collective operation writes to is there already, and what it would bring is not looked at;
- the module of the device, ``torch.cuda``, where FSDP asks for streams and events; an allocation has the number of the
  stream that it is made for, as the caching allocator keeps blocks for each;
- addresses: FSDP tells by them whether two tensors are one;
- the way from the host to the device: both are called meta here, so what is moved is copied.

Taken away are the questions that meta tensors cannot answer, or by which FSDP refuses them. Each is named where it is
exchanged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import GradBucket

from fitplan.errors import InputError
from fitplan.faults import interface_of
from fitplan.guard import Guard
from fitplan.setup import Strategy, TrainingSetup
from fitplan.trace.events import Category
from fitplan.trace.recorder import Recorder

RANK = 0
"""The rank that is traced. Where a dimension cannot be divided evenly the first ranks hold more (``torch.chunk``)."""


@contextmanager
def one_rank(setup: TrainingSetup, recorder: Recorder) -> Iterator[None]:
    """Inside, this process is one of ``setup.gpus`` that train together; nothing happens if that is one.

    Raises:
        InputError: a process group is open already.

    """
    if setup.gpus == 1:
        yield
        return
    if dist.is_initialized():
        raise InputError("this process is a rank of a job already; ask from a process that is none")
    with Guard() as guard:
        _open_group(guard, setup.gpus)
        _give_addresses(guard)
        device = device_for(recorder)
        if setup.strategy is Strategy.FSDP2:
            _play_fsdp2(guard, recorder, device)
        elif setup.strategy is Strategy.FSDP1:
            _play_fsdp1(guard, recorder, device)
        else:
            _play_ddp(guard, recorder)
        with recorder.resizes():
            yield


# --- the process group ------------------------------------------------------------------------------------------------


def _open_group(guard: Guard, ranks: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore  # which registers the backend

    _teach_meta(guard)
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=ranks)
    guard.callback(dist.destroy_process_group)


_INTO_FIRST = (
    "_allgather_base_", "allgather_", "reduce_scatter_", "_reduce_scatter_base_", "broadcast_", "allreduce_",
    "scatter_", "alltoall_",
)  # fmt: skip
_INTO_NOTHING = (
    "reduce_", "gather_", "send", "recv_", "alltoall_base_", "allgather_into_tensor_coalesced_",
    "reduce_scatter_tensor_coalesced_", "allreduce_coalesced_",
)  # fmt: skip
"""c10d's operations by what they return beside the work that is to wait for (``csrc/distributed/c10d/Ops.cpp``)."""


def _teach_meta(guard: Guard) -> None:
    """They have kernels for CPU and CUDA only."""
    from torch._C._distributed_c10d import FakeWork

    library = torch.library.Library("c10d", "IMPL")
    guard.callback(library._destroy)
    for name in (*_INTO_FIRST, *_INTO_NOTHING):
        first = name in _INTO_FIRST

        def done(*args: Any, first: bool = first, **kwargs: Any) -> Any:
            work = FakeWork().boxed()
            return (args[0], work) if first else work

        library.impl(name, done, "Meta")


# --- the device -------------------------------------------------------------------------------------------------------


def _give_addresses(guard: Guard) -> None:
    """FSDP1 compares addresses (``_flat_param.py``, ``_same_storage``): those of tensors of one storage are alike."""
    of_tensor, of_storage = torch.Tensor.data_ptr, torch.UntypedStorage.data_ptr

    def address_of_storage(storage: Any) -> int:
        if storage.device.type != "meta":
            return int(of_storage(storage))
        return int(storage._cdata) if storage.nbytes() else 0

    def address(tensor: torch.Tensor) -> int:
        if not tensor.is_meta:
            return int(of_tensor(tensor))
        start = address_of_storage(tensor.untyped_storage())
        return start + int(tensor.storage_offset()) * tensor.element_size() if start else 0

    guard.exchange_here(torch.Tensor, "data_ptr", address)
    guard.exchange_here(torch.UntypedStorage, "data_ptr", address_of_storage)
    guard.exchange_here(torch.Tensor, "record_stream", lambda tensor, stream: None)


def device_for(recorder: Recorder) -> Any:
    """What ``torch.cuda`` is to FSDP."""
    numbers = iter(range(1, 1 << 30))

    class Stream:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.number = next(numbers)

        def nothing(self, *args: Any) -> None: ...

        wait_stream = wait_event = synchronize = nothing

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

    class Event:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def record(self, stream: Any = None) -> Any:
            return self

        def nothing(self, *args: Any) -> None: ...

        wait = synchronize = nothing

        def query(self) -> bool:
            return True

    first = Stream()
    first.number = 0
    current = [first]

    @contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        current.append(stream)
        recorder.stream = stream.number
        try:
            yield
        finally:
            current.pop()
            recorder.stream = current[-1].number

    return SimpleNamespace(
        Stream=Stream,
        Event=Event,
        current_stream=lambda *args: current[-1],
        stream=on_stream,
        current_device=lambda: 0,
        is_available=lambda: True,
        device_count=lambda: 1,
        synchronize=lambda *args: None,
        set_device=lambda *args: None,
    )


def _move(recorder: Recorder, tensor: torch.Tensor) -> None:
    """From the host to the device, if it is there."""
    if recorder.is_on_host(tensor):
        with recorder.on("device"):
            tensor.data = tensor.data.clone()


# --- the wrappers -----------------------------------------------------------------------------------------------------


def _born_as(recorder: Recorder, category: Category, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with recorder.births_are(category):
            return function(*args, **kwargs)

    return call


def _play_fsdp2(guard: Guard, recorder: Recorder, device: Any) -> None:
    with interface_of("torch"):
        from torch.distributed.fsdp._fully_shard import (
            _fsdp_collectives,
            _fsdp_init,
            _fsdp_param_group,
            _fsdp_state,
            _fully_shard,
        )
    for module in (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state):
        guard.exchange_here(module, "_get_device_handle", lambda *args: device)
    for module in (_fsdp_init, _fully_shard):
        if hasattr(module, "_get_device_from_mesh"):
            guard.exchange_here(module, "_get_device_from_mesh", lambda mesh: torch.device("meta"))
    guard.exchange_here(_fsdp_param_group.FSDPParamGroup, "_validate_no_meta_params", lambda group: None)

    def move(params: list[Any], buffers: list[Any], device: Any) -> None:
        for tensor in (*params, *buffers):
            if not isinstance(tensor, dist.tensor.DTensor):
                _move(recorder, tensor)

    for module in (_fsdp_init, _fully_shard):
        if hasattr(module, "_move_states_to_device"):
            guard.exchange_here(module, "_move_states_to_device", move)
    _pass_over_offsets(guard)
    for name, category in (
        ("foreach_all_gather", Category.COMMUNICATION),
        ("foreach_all_gather_copy_out", Category.GATHERED_WEIGHTS),
        ("foreach_reduce", Category.COMMUNICATION),
    ):
        real = getattr(_fsdp_param_group, name)
        guard.exchange_here(_fsdp_param_group, name, _born_as(recorder, category, real))


def _pass_over_offsets(guard: Guard) -> None:
    """Accelerate takes a state dict before it shards, for which bitsandbytes reads a number of each 4-bit weight."""
    try:
        from bitsandbytes.functional import QuantState
    except ImportError:
        return
    guard.exchange_here(QuantState, "as_dict", lambda *args, **kwargs: {})


def let_fsdp1_run(guard: Guard, device: Any) -> None:
    """FSDP1 refuses whatever is no GPU, and would make modules on meta anew."""
    with interface_of("torch"):
        from torch.distributed.fsdp import _common_utils, _init_utils
        from torch.distributed.fsdp import fully_sharded_data_parallel as whole

    def compute_device(module: Any, *args: Any) -> torch.device:
        return next((parameter.device for parameter in module.parameters()), torch.device("meta"))

    def init_device_handle(state: Any, *args: Any) -> Any:
        state._device_handle = device
        return state

    guard.exchange_here(_common_utils._FSDPDeviceHandle, "from_device", lambda *args: device)
    guard.exchange_here(_init_utils, "_need_to_materialize_module", lambda *args: (False, False))
    guard.exchange_here(_init_utils, "_get_compute_device", compute_device)
    guard.exchange_here(whole, "_init_device_handle", init_device_handle)


def _play_fsdp1(guard: Guard, recorder: Recorder, device: Any) -> None:
    with interface_of("torch"):
        from torch.distributed.fsdp import FullyShardedDataParallel, _flat_param, _init_utils, _runtime_utils

    let_fsdp1_run(guard, device)

    def move(module: Any, ignored_params: Any, ignored_buffers: Any, device: Any) -> None:
        waiting = [module]
        while waiting:
            one = waiting.pop(0)
            for tensor in (*one.parameters(recurse=False), *one.buffers(recurse=False)):
                if tensor not in ignored_params:
                    _move(recorder, tensor)
            waiting += [child for child in one.children() if not isinstance(child, FullyShardedDataParallel)]

    guard.exchange_here(_init_utils, "_move_module_to_device", move)
    for module in (_flat_param, _runtime_utils):
        guard.exchange_here(module, "_no_dispatch_record_stream", lambda tensor, stream: None)


def _play_ddp(guard: Guard, recorder: Recorder) -> None:
    """DDP compares the shapes of all ranks, by values; and waits for a bucket, which the group above does not give."""
    parallel = torch.nn.parallel.distributed
    guard.exchange_here(parallel, "_verify_param_shape_across_processes", lambda *args, **kwargs: None)
    made = parallel.DistributedDataParallel.__init__

    def make(wrapper: Any, *args: Any, **kwargs: Any) -> None:
        with recorder.births_are(Category.COMMUNICATION):
            made(wrapper, *args, **kwargs)
        wrapper.register_comm_hook(None, _reduced)

    guard.exchange_here(parallel.DistributedDataParallel, "__init__", make)
    prepare = _born_as(recorder, Category.COMMUNICATION, parallel.DistributedDataParallel._pre_forward)
    guard.exchange_here(parallel.DistributedDataParallel, "_pre_forward", prepare)


def _reduced(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
