"""Trace a training run: the step on the meta device, recorded, at the model's full depth."""

import copy
import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig

from fitplan.audit import ParameterGroup
from fitplan.cuda import cublas_workspace
from fitplan.guard import Guard
from fitplan.phase import Phase
from fitplan.setup import SHARDED, Attention, Strategy, Task, TrainingSetup
from fitplan.step.adapters import names_single_layers
from fitplan.step.architecture import task_of, text_of
from fitplan.step.audit import Parameter, parameters_of
from fitplan.step.distribute import distribute, inside, loads_on_host
from fitplan.step.job import Observer, Place
from fitplan.step.model import build_skeleton, load_model, load_reference, warmed_up
from fitplan.step.run import train, update
from fitplan.trace.depth import Depth, NotPeriodic, deepen, shorten_text
from fitplan.trace.events import (
    CUBLAS_CREATE,
    EMPTY_CACHE,
    MICRO_BATCHES,
    Allocation,
    Category,
    Layer,
    Trace,
    layer_of_path,
)
from fitplan.trace.flash_attn import flash_attn_package
from fitplan.trace.kernels import Gpu
from fitplan.trace.liger import liger_on_meta
from fitplan.trace.meta import meta_device
from fitplan.trace.own_state import own_state
from fitplan.trace.ranks import one_rank
from fitplan.trace.recorder import Recorder


@dataclass(frozen=True)
class TracedRun:
    """What a trace tells.

    Attributes:
        trace: every allocation and release, at full depth.
        parameters: the model's parameters, grouped by how they are stored and why.
        attention: the attention implementation that was chosen.
        task: the task that was traced.
        layers_traced: for each stack of layers, how many were traced; the rest are replicas.

    """

    trace: Trace
    parameters: tuple[ParameterGroup, ...]
    attention: Attention
    task: Task
    layers_traced: dict[str, int]


def trace_training(
    config: PretrainedConfig,
    setup: TrainingSetup,
    gpu: Gpu | None,
    *,
    full_depth: bool = False,
    only_optimizer: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> TracedRun:
    """Run two training steps on the meta device and record them.

    ``gpu`` decides which kernels are chosen; ``None`` traces the CPU's. With ``full_depth`` every layer is traced,
    which is also what happens when the layers turn out not to repeat, or the setup names single ones.
    ``only_optimizer`` leaves out the forward and backward passes. ``progress`` is told what is being done.

    Raises:
        ModelNotSupported: the model cannot be built, or what it does depends on the values of its weights.
        InputError: the setup does not suit the model.

    """
    for more_edge in () if full_depth or names_single_layers(setup) or setup.gpus > 1 else (0, 1):
        short, cut = shorten_text(config, more_edge)
        progress(f"tracing {_layers(short)} of {_layers(config)} layers")
        run = _trace_as_is(short, setup, gpu, only_optimizer)
        depths = _depths_by_stack(run.trace, cut)
        if len(depths) < len(cut):
            break
        try:
            trace = deepen(run.trace, depths)
        except NotPeriodic:
            continue
        return TracedRun(
            trace, _grouped(run.parameters, depths), run.attention, task_of(config, setup), dict(run.trace.stacks)
        )
    progress(f"tracing all {_layers(config)} layers")
    run = _trace_as_is(config, setup, gpu, only_optimizer)
    return TracedRun(
        run.trace, _grouped(run.parameters, {}), run.attention, task_of(config, setup), dict(run.trace.stacks)
    )


@dataclass(frozen=True)
class _ShortRun:
    trace: Trace
    parameters: list[Parameter]
    attention: Attention


def _trace_as_is(config: PretrainedConfig, setup: TrainingSetup, gpu: Gpu | None, only_optimizer: bool) -> _ShortRun:
    config = copy.deepcopy(config)  # building and training a model write to its config
    place = Place("meta", "cuda" if gpu else "cpu")
    recorder = Recorder("meta")
    with ExitStack() as stack:
        stack.enter_context(fresh_process())
        if setup.attn is Attention.FLASH_ATTENTION_2:
            stack.enter_context(flash_attn_package())
        if setup.kbit_prepare and gpu is not None:
            stack.enter_context(_emptied_cache(recorder))
        skeleton = build_skeleton(config, setup, place)
        if setup.use_liger_kernel and gpu is not None:
            with suppress(ModuleNotFoundError):  # the step says what is missing
                stack.enter_context(liger_on_meta(gpu, recorder.enter_loss))
        stack.enter_context(recorder)
        stack.enter_context(meta_device(gpu))
        if gpu is not None and setup.activation_offloading:
            stack.enter_context(_told_of_emptied_cache(recorder))
        observe = _with_workspaces(recorder, gpu, recorder.reserve if only_optimizer else recorder.reserve_with_product)
        if gpu is not None and (parts := warmed_up(skeleton, setup)):
            recorder.pass_by(parts, "caching_allocator_warmup")
        stack.enter_context(one_rank(setup, recorder))
        with recorder.on("host") if gpu is not None and loads_on_host(setup) else nullcontext():
            model = load_model(skeleton, config, setup, place, observe)
        if (reference := load_reference(config, setup, place, observe)) is not None:
            recorder.watch(reference)
        if setup.strategy not in SHARDED:
            recorder.watch(model)
        observe(Phase.PREPARE)
        parameters = parameters_of(model, setup)
        model = distribute(model, setup, place)
        if setup.strategy in SHARDED:  # whoever holds a whole parameter keeps it from being let go
            recorder.watch(model)
        if setup.strategy is Strategy.FSDP2:  # which says of shards what they are shards of
            parameters = parameters_of(model, setup)
        stack.enter_context(recorder.module_calls())
        if only_optimizer:
            update(model, setup, place, observe)
        else:
            shown = min(MICRO_BATCHES, setup.gradient_accumulation_steps)
            train(model, config, setup, place, observe, micro_batches=shown, reference=reference)
        trace = recorder.finish()
    attention = Attention(str(inside(model).config._attn_implementation))
    return _ShortRun(trace, parameters, attention)


@contextmanager
def fresh_process() -> Iterator[None]:
    """What this process and this thread have set, and what earlier runs left in caches, is not there in a new one."""
    with Guard() as guard, own_state():
        _empty_caches(guard)
        gc.collect()
        if gc.isenabled():
            guard.callback(gc.enable)
            gc.disable()  # when cycles are found is not a property of the job
        yield


def _empty_caches(guard: Guard) -> None:
    """What bitsandbytes and accelerate keep for a process.

    Code tables by their name, what 8-bit optimizers are told of single parameters, and paged tensors; and the place
    that a ``Trainer`` has found itself in, which its arguments look for anew.
    """
    from accelerate.state import AcceleratorState, PartialState

    guard.empty(AcceleratorState._shared_state)
    guard.empty(PartialState._shared_state)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return
    from bitsandbytes import functional
    from bitsandbytes.optim import GlobalOptimManager

    guard.empty(functional.name2qmap)
    guard.exchange(GlobalOptimManager, "_instance", None)
    guard.exchange(functional.GlobalPageManager, "_instance", None)


@contextmanager
def _emptied_cache(recorder: Recorder) -> Iterator[None]:
    """Inside, k-bit preparation says that it empties the cache of the caching allocator at its end.

    Source: peft ``utils/other.py``, ``prepare_model_for_kbit_training``, where it has ``auto_clear_cache``: after the
    casts to float32, if there is a GPU. What it does after that takes no memory.
    """
    import peft

    prepare = peft.prepare_model_for_kbit_training

    def prepare_and_say(*args: Any, **kwargs: Any) -> Any:
        model = prepare(*args, **kwargs)
        recorder.reserve(Allocation(0, Category.TEMPORARIES, "k-bit preparation", EMPTY_CACHE))
        return model

    with Guard() as guard:
        if "auto_clear_cache" in inspect.signature(prepare).parameters:
            guard.exchange_here(peft, "prepare_model_for_kbit_training", prepare_and_say)
        yield


@contextmanager
def _told_of_emptied_cache(recorder: Recorder) -> Iterator[None]:
    """Inside, the step's own ``torch.cuda.empty_cache`` is in the trace."""
    with Guard() as guard:
        guard.exchange_here(torch.cuda, "empty_cache", partial(_empty_cache, recorder))
        yield


def _empty_cache(recorder: Recorder) -> None:
    recorder.reserve(Allocation(0, Category.TEMPORARIES, "the program", EMPTY_CACHE))


def _with_workspaces(recorder: Recorder, gpu: Gpu | None, reserve: Callable[[Allocation], None]) -> Observer:
    """The recorder as observer; the first product of forward and that of backward each open a cuBLAS handle.

    Handles belong to a thread, and CUDA's backward runs in a thread of its own (pytorch
    ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``torch/csrc/autograd/engine.cpp``). The workspace is taken when the
    result is there already, and may lie in a block that something larger left: where, decides what is reserved later.
    """
    waiting = {Phase.FORWARD, Phase.BACKWARD} if gpu else set()

    def observe(phase: Phase, owner: str = "", /) -> None:
        recorder.enter(phase, owner)
        if gpu is not None and phase in waiting:
            waiting.remove(phase)
            size = cublas_workspace(gpu.capability)
            reserve(Allocation(size, Category.WORKSPACES, f"cuBLAS, {phase} thread", CUBLAS_CREATE))

    return observe


def _depths_by_stack(trace: Trace, cut: dict[str, Depth]) -> dict[str, Depth]:
    """The stacks that were shortened: found by their length, and by name where encoder and decoder differ."""
    found: dict[str, Depth] = {}
    run = {m.layer.stack for m in trace.moments if m.phase is Phase.FORWARD and m.layer is not None}
    for stack, layers in trace.stacks.items():
        if stack not in run:  # what reads images, while rows are text
            continue
        for name, depth in cut.items():
            wrong_side = len(cut) > 1 and ("decoder" in name) != ("decoder" in stack)
            if depth.traced == layers and not wrong_side:
                found[stack] = depth
    return found


def _layers(config: Any) -> int:
    return int(getattr(text_of(config), "num_hidden_layers", 0) or 0)


def _grouped(parameters: list[Parameter], depths: dict[str, Depth]) -> tuple[ParameterGroup, ...]:
    """Groups at full depth: what replicated layers hold counts once for each replica."""
    groups: dict[tuple[str, str, bool, bool], ParameterGroup] = {}
    for one in parameters:
        times = _replicas(layer_of_path(one.path), depths)
        key = (one.storage, one.why, one.trainable, one.adapter)
        before = groups.get(key)
        groups[key] = ParameterGroup(
            storage=one.storage,
            why=one.why,
            trainable=one.trainable,
            adapter=one.adapter,
            parameters=times * one.count + (before.parameters if before else 0),
            bytes=times * one.size + (before.bytes if before else 0),
            example=before.example if before else one.path,
        )
    return tuple(groups.values())


def _replicas(layer: Layer | None, depths: dict[str, Depth]) -> int:
    depth = depths.get(layer.stack) if layer is not None else None
    if layer is None or depth is None or layer.index not in depth.pattern:
        return 1
    return 1 + depth.replicas
