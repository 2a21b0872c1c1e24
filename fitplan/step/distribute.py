"""How several GPUs share a model: what accelerate does to it before the training, called as accelerate calls it.

Sources: accelerate ``accelerator.py`` (``prepare_model``, ``_prepare_fsdp2``, ``no_sync``, ``clip_grad_norm_``) and
``utils/fsdp_utils.py`` (``fsdp2_prepare_model``); transformers ``trainer.py`` (``_build_accelerator_args``,
``_wrap_model``). A process group must be open, one process a GPU.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from transformers import PreTrainedModel

from fitplan.errors import MissingDependency
from fitplan.faults import interface_of
from fitplan.setup import SHARDED, Method, MixedPrecision, Strategy, TrainingSetup
from fitplan.step.job import Place

_AUTOCAST_DTYPES = {MixedPrecision.BF16: torch.bfloat16, MixedPrecision.FP16: torch.float16}


def distribute(model: nn.Module, setup: TrainingSetup, place: Place) -> nn.Module:
    """``Accelerator.prepare_model``: the model as it is called in training, on one GPU or as one of several."""
    if setup.strategy is Strategy.FSDP2:  # casts by its own policy
        return _fsdp2(model, setup, place)
    _wrap_forward(model, setup, place)
    if setup.strategy is Strategy.DDP:
        return _ddp(model, setup)
    return _fsdp1(model, setup) if setup.strategy is Strategy.FSDP1 else model


def loads_on_host(setup: TrainingSetup) -> bool:
    """Whether the weights are read into the memory of the host, and shards of them go to the GPU.

    Those that are quantised while they are read go to the GPU at once (transformers
    ``quantizers/quantizer_bnb_4bit.py``, ``update_device_map``).
    """
    return setup.strategy in SHARDED and setup.method is not Method.QLORA


def inside(model: nn.Module) -> nn.Module:
    """The model that was distributed, without what was put around it."""
    inner = getattr(model, "module", model)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def not_synchronised(model: Any, setup: TrainingSetup) -> Iterator[None]:
    """``Accelerator.no_sync``: gradients of this micro-batch stay where they are, and with FSDP whole."""
    if setup.strategy is Strategy.FSDP2:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
        return
    around: AbstractContextManager[Any] = model.no_sync() if hasattr(model, "no_sync") else nullcontext()
    with around:
        yield


def clip(model: Any, setup: TrainingSetup, most: float) -> None:
    """``Accelerator.clip_grad_norm_``."""
    parameters = list(model.parameters())
    if setup.strategy is Strategy.FSDP1:
        model.clip_grad_norm_(most)
    elif setup.strategy is Strategy.FSDP2:
        from accelerate import Accelerator

        with interface_of("accelerate"):
            Accelerator._clip_grad_norm_dtensor_aware(None, parameters, most)
    else:
        torch.nn.utils.clip_grad_norm_(parameters, most)


def _wrap_forward(model: nn.Module, setup: TrainingSetup, place: Place) -> None:
    """Autocast around the forward, outputs converted to float32."""
    if setup.mixed_precision is MixedPrecision.NO:
        return
    assert setup.mixed_precision is not None
    autocast = torch.autocast(device_type=place.kernels, dtype=_AUTOCAST_DTYPES[setup.mixed_precision])
    forward: Any = model.forward
    model.forward = MethodType(autocast(forward.__func__), model)
    wrapped: Any = model.forward
    model.forward = MethodType(convert_outputs_to_fp32(wrapped.__func__), model)


def _ddp(model: nn.Module, setup: TrainingSetup) -> nn.Module:
    """Parameters that take no part are looked for, unless the model is checkpointed and no adapters are around it."""
    searched = not (isinstance(model, PreTrainedModel) and model.is_gradient_checkpointing)
    return nn.parallel.DistributedDataParallel(
        model,
        find_unused_parameters=searched,
        gradient_as_bucket_view=bool(setup.gradient_as_bucket_view),
    )


def _fsdp2(model: nn.Module, setup: TrainingSetup, place: Place) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    except ImportError as error:
        raise MissingDependency(
            "strategy fsdp2 needs accelerate 1.7 or newer; pip install --upgrade accelerate, or choose strategy fsdp1"
        ) from error
    plugin = _plugin(setup, fsdp_version=2, reshard_after_forward=setup.reshard_after_forward)
    mesh = init_device_mesh("cuda" if place.device == "cuda" else "cpu", (setup.gpus,), mesh_dim_names=("fsdp",))
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=str(setup.mixed_precision),
        device=torch.device(place.device),
        is_main_process=False,
        torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=("fsdp",)),
    )
    with interface_of("accelerate"):
        prepared: nn.Module = fsdp2_prepare_model(accelerator, model)
    return prepared


def _fsdp1(model: nn.Module, setup: TrainingSetup) -> nn.Module:
    """As accelerate wraps it; where weights are trained in float32 beside autocast, shards are cast afterwards."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharding = "FULL_SHARD" if setup.reshard_after_forward else "SHARD_GRAD_OP"
    plugin = _plugin(
        setup, fsdp_version=1, sharding_strategy=sharding, backward_prefetch=str(setup.backward_prefetch).upper(),
        sync_module_states=False, use_orig_params=setup.use_orig_params,
    )  # fmt: skip
    if setup.adapter is not None:
        _wrap_as_peft_asks(model, plugin)
    plugin.set_auto_wrap_policy(model)
    wrapped = FullyShardedDataParallel(
        model,
        sharding_strategy=plugin.sharding_strategy or plugin.reshard_after_forward,
        cpu_offload=plugin.cpu_offload,
        auto_wrap_policy=plugin.auto_wrap_policy,
        mixed_precision=plugin.mixed_precision_policy,
        sync_module_states=False,
        backward_prefetch=plugin.backward_prefetch,
        forward_prefetch=plugin.forward_prefetch,
        use_orig_params=plugin.use_orig_params,
        limit_all_gathers=plugin.limit_all_gathers,
    )
    if setup.mixed_precision is not MixedPrecision.NO:
        for module in FullyShardedDataParallel.fsdp_modules(wrapped):
            flat = module._flat_param if module._has_params else None
            if flat is not None and flat.dtype != torch.float32 and flat.requires_grad:
                flat.data = flat.data.to(torch.float32)
                module._handle._orig_param_dtype = torch.float32
    return wrapped


def _plugin(setup: TrainingSetup, **asked: Any) -> Any:
    from accelerate.utils import FullyShardedDataParallelPlugin

    known = inspect.signature(FullyShardedDataParallelPlugin).parameters
    asked |= {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "cpu_ram_efficient_loading": False}
    plugin = FullyShardedDataParallelPlugin(**{name: value for name, value in asked.items() if name in known})
    if setup.mixed_precision is not MixedPrecision.NO:
        plugin.set_mixed_precision(str(setup.mixed_precision))
    return plugin


def _wrap_as_peft_asks(model: nn.Module, plugin: Any) -> None:
    """``Trainer`` has peft wrap what is trained apart from what is frozen, for FSDP1."""
    stand_in = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    with interface_of("transformers"):
        try:
            from transformers.distributed.fsdp import update_fsdp_plugin_peft
        except ImportError:
            from transformers import Trainer

            arguments = SimpleNamespace(is_fsdp_enabled=True, model=model, accelerator=stand_in)
            Trainer._fsdp_qlora_plugin_updates(arguments)
        else:
            update_fsdp_plugin_peft(model, stand_in)
