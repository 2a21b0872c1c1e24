"""Build the model that is trained: quantisation, weights, k-bit preparation, adapters."""

import inspect
import re
import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fitplan.errors import InputError, MissingDependency, ModelNotSupported
from fitplan.faults import interface_of, one_line
from fitplan.phase import Phase
from fitplan.settings import shown
from fitplan.setup import Adapter, Dtype, KbitCastBack, Loss, Method, Quant, Task, TrainingSetup
from fitplan.step.adapters import KINDS, peft_arguments
from fitplan.step.architecture import TORCH_DTYPES, build_architecture, task_of, text_path
from fitplan.step.audit import QUANTISED
from fitplan.step.job import Observer, Place
from fitplan.step.losses import change_loss


def build_skeleton(config: PretrainedConfig, setup: TrainingSetup, place: Place) -> PreTrainedModel:
    """The model without weights: parameters on the meta device, whatever the place; quantised layers in.

    Raises:
        ModelNotSupported: transformers cannot build this config, or quantise nothing in it.

    """
    model = build_architecture(config, setup)
    if setup.method is Method.QLORA:
        _replace_linear_layers(model, setup, place)
    return model


def load_model(
    model: PreTrainedModel, config: PretrainedConfig, setup: TrainingSetup, place: Place, observe: Observer
) -> nn.Module:
    """The skeleton as it stands when training starts: weights on ``place.device``, adapters in, modes set.

    Follows what ``from_pretrained`` with a ``BitsAndBytesConfig``, ``prepare_model_for_kbit_training``,
    ``get_peft_model`` and ``Trainer`` with ``gradient_checkpointing=True`` do, in that order. Weights are random.

    Raises:
        InputError: a target module is not in the model, or Liger has no kernels for it.
        MissingDependency: Liger is asked for and not installed.

    """
    observe(Phase.LOAD)
    if place.device == "cuda":
        torch.empty(sum(warmed_up(model, setup).values()), dtype=torch.uint8, device=place.device)
    _load_weights(model, setup, place.device, observe)
    observe(Phase.PREPARE)
    trained: Any = model if setup.method is Method.FULL else _add_adapters(model, config, setup)
    if setup.use_liger_kernel:
        _apply_liger(model, setup, place)
    if setup.loss in (Loss.CHUNKED, Loss.FUSED) and not (setup.use_liger_kernel and setup.loss is Loss.CHUNKED):
        if task_of(config, setup) is not Task.CAUSAL_LM:
            raise InputError(f"loss {setup.loss}: it is for causal language models; choose loss logits")
        change_loss(model, setup.loss, place)
    trained.train()
    if setup.gradient_checkpointing:
        _enable_checkpointing(trained, setup)
    trained.config.use_cache = False
    return trained


def load_reference(
    config: PretrainedConfig, setup: TrainingSetup, place: Place, observe: Observer
) -> PreTrainedModel | None:
    """The model as it was, frozen, beside the one that is trained; ``None`` where there is none.

    Adapters need none: without them the model is what it was (trl ``trainer/dpo_trainer.py``, ``ref_model``).
    """
    if setup.method is not Method.FULL or not setup.has_reference:
        return None
    reference = build_skeleton(config, setup, place)
    observe(Phase.LOAD)
    _load_weights(reference, setup, place.device, observe)
    change_loss(reference, setup.loss, place)
    observe(Phase.PREPARE)
    return reference.requires_grad_(False).eval()


# --- quantisation and weights -----------------------------------------------------------------------------------------


def _replace_linear_layers(model: PreTrainedModel, setup: TrainingSetup, place: Place) -> None:
    """Swap linear layers for quantised ones, with the very rules of transformers' bitsandbytes quantizers."""
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    kind = Bnb8BitHfQuantizer if setup.quant is Quant.INT8 else Bnb4BitHfQuantizer
    quantizer = kind(_bnb_config(setup, _left_plain(model.config)), pre_quantized=False)
    model.config.quantization_config = quantizer.quantization_config
    with interface_of("transformers"):
        quantizer._process_model_before_weight_loading(
            model,
            device_map={"": place.device},
            keep_in_fp32_modules=list(model._keep_in_fp32_modules or ()),
        )
    if not any(type(param).__name__ in QUANTISED for param in model.parameters()):
        raise ModelNotSupported(
            f"nothing in this {model.config.model_type} model can be quantised by bitsandbytes, which takes plain "
            "linear layers only and leaves the output head; choose method lora"
        )
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = quantizer.quantization_config.quant_method
    eight_bit = setup.quant is Quant.INT8
    setattr(model, "is_loaded_in_8bit" if eight_bit else "is_loaded_in_4bit", True)


def _left_plain(config: PretrainedConfig) -> list[str] | None:
    """The modules that a checkpoint which is quantised already leaves as they are; ``None`` where it names none."""
    stored = getattr(config, "quantization_config", None)
    return stored.get("llm_int8_skip_modules") if isinstance(stored, Mapping) else None


def _bnb_config(setup: TrainingSetup, left_plain: list[str] | None) -> Any:
    if setup.quant is Quant.INT8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_plain)
    assert setup.compute_dtype is not None
    storage = {} if setup.quant_storage is None else {"bnb_4bit_quant_storage": TORCH_DTYPES[setup.quant_storage]}
    return transformers.BitsAndBytesConfig(
        **storage,
        load_in_4bit=True,
        llm_int8_skip_modules=left_plain,
        bnb_4bit_quant_type=str(setup.quant),
        bnb_4bit_use_double_quant=setup.double_quant,
        bnb_4bit_compute_dtype=TORCH_DTYPES[setup.compute_dtype],
    )


def _load_weights(model: nn.Module, setup: TrainingSetup, device: str, observe: Observer) -> None:
    """Give every parameter a storage on ``device``, quantising one matrix at a time; move the buffers there."""
    done: dict[int, nn.Parameter] = {}
    dtype = TORCH_DTYPES[setup.dtype]
    for path, module in model.named_modules():
        for name, param in module._parameters.items():
            if param is None:
                continue
            if id(param) not in done:
                observe(Phase.LOAD, f"{path}.{name}")
                done[id(param)] = _load_weight(param, name, dtype, device)
            module._parameters[name] = done[id(param)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                observe(Phase.LOAD, f"{path}.{name}")
                module._buffers[name] = buffer.to(device, copy=True)
    for module in model.modules():  # the layer and its weight share one state, as after a load from disk
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            module.quant_state = state


def warmed_up(model: PreTrainedModel, setup: TrainingSetup) -> dict[str, int]:
    """Bytes by parameter that ``from_pretrained`` takes in one piece and gives back before it loads the weights.

    It does so where it is told a device, as for quantised models; others are loaded on the CPU and moved by
    ``Trainer``. Source: transformers ``modeling_utils.py``, ``caching_allocator_warmup``, since 4.50; before 5 a
    quantizer named the share of the unquantised bytes, in ``float16`` numbers.
    """
    from transformers import modeling_utils

    if setup.method is not Method.QLORA or not hasattr(modeling_utils, "caching_allocator_warmup"):
        return {}
    quantizer = model.hf_quantizer
    named = dict(chain(model.named_parameters(), model.named_buffers()))
    if hasattr(quantizer, "param_element_size"):
        with interface_of("transformers"):
            return {name: int(t.numel() * quantizer.param_element_size(model, name, t)) for name, t in named.items()}
    factor = next(
        (getattr(quantizer, name)() for name in _WARM_UP_FACTORS if hasattr(quantizer, name)), _WARM_UP_FACTOR
    )
    return {name: 2 * tensor.nbytes // factor for name, tensor in named.items()}


_WARM_UP_FACTORS = ("get_accelerator_warm_up_factor", "get_cuda_warm_up_factor")
_WARM_UP_FACTOR = 4
"""Of transformers 4.51, for all quantizers."""


def _load_weight(param: nn.Parameter, name: str, dtype: torch.dtype, device: str) -> nn.Parameter:
    kind = type(param).__name__
    value = torch.empty(param.shape, dtype=dtype if kind in QUANTISED else param.dtype, device=device)
    if device != "meta":
        _randomise(value, name)
    if kind == "Params4bit":
        with interface_of("bitsandbytes"):
            return type(param)(value, requires_grad=False, **param.__dict__)._quantize(device)
    if kind == "Int8Params":
        settings = {key: item for key, item in param.__dict__.items() if key not in ("SCB", "CB")}
        return _to_int8(type(param)(value, requires_grad=False, **settings), value)
    return nn.Parameter(value, requires_grad=param.requires_grad)


def _to_int8(weight: Any, value: torch.Tensor) -> Any:
    """What ``Int8Params.to(device)`` does on a GPU, without asking where it is."""
    import bitsandbytes.functional as bnb_functional

    packed, scales, _ = bnb_functional.int8_vectorwise_quant(value.contiguous().to(dtype=torch.float16))
    weight.data = packed
    weight.CB, weight.SCB = packed, scales
    return weight


def _randomise(value: torch.Tensor, name: str) -> None:
    """Weights that keep activations finite, and so small that LLM.int8 finds no outliers: a trace assumes none.

    Behind a norm numbers are about 1, and a product with 4096 weights of this size about 0.6; an outlier has 6
    (``llm_int8_threshold``). Nothing else in memory depends on them.
    """
    if value.dim() > 1:
        value.normal_(std=0.01)
    else:
        value.fill_(0.0 if "bias" in name else 1.0)


# --- adapters and modes -----------------------------------------------------------------------------------------------


def _add_adapters(model: PreTrainedModel, config: PretrainedConfig, setup: TrainingSetup) -> nn.Module:
    import peft

    if setup.kbit_prepare:
        checkpoint_kwargs = {"use_gradient_checkpointing": setup.gradient_checkpointing}
        model = peft.prepare_model_for_kbit_training(model, **checkpoint_kwargs)
        _cast_back(model, setup)
    if setup.adapter is Adapter.BITFIT:
        return _only_biases(model)
    assert setup.adapter is not None, "what is not fully trained has an adapter"
    kind, arguments = KINDS[setup.adapter], peft_arguments(setup, task_of(config, setup))
    if kind.is_prompt and "task_type" not in arguments:
        raise InputError(f"adapter {setup.adapter}: peft has no prompts for {task_of(config, setup)}; choose lora")
    config_class = getattr(peft, kind.config)
    for name in arguments:
        if name not in config_class.__dataclass_fields__:
            raise InputError(f"{name}: {kind.config} of peft {peft.__version__} has no such setting; leave it out")
    if (text := text_path(model)) and not kind.is_prompt and setup.exclude_modules is None:
        arguments["exclude_modules"] = f"(?!{re.escape(text)}).*"  # as TRL and LLaMA-Factory adapt such models
    _check_targets(model, setup.target_modules)
    device = next(model.parameters()).device
    try:
        with warnings.catch_warnings(), device:
            warnings.simplefilter("ignore")
            return _in_their_type(_as_moved(peft.get_peft_model(model, config_class(**arguments)), setup), setup)
    except (ValueError, TypeError, NotImplementedError) as error:
        what = f"target_modules {shown(setup.target_modules)}" if setup.target_modules else f"adapter {setup.adapter}"
        raise InputError(f"{what} cannot be adapted: {one_line(error)}{_others(model, error)}") from error


def _others(model: PreTrainedModel, error: Exception) -> str:
    """Of a model that peft adapts in part, the layers that it does adapt (peft ``tuners/tuners_utils.py``, Mamba)."""
    if "Mamba" not in str(error):
        return ""
    names = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    names -= {"out_proj", "conv1d", "lm_head"}
    return f"; these can be: --target-modules {','.join(sorted(names))}"


def _as_moved(model: nn.Module, setup: TrainingSetup) -> nn.Module:
    """AdaLoRA's count of ranks is trained where peft converts it to the type of 16-bit weights.

    What it converts becomes a parameter like any other, except on meta, where it converts nothing (peft
    ``tuners/tuners_utils.py``, ``_move_adapter_to_device_of_base_layer``).
    """
    dtype = setup.compute_dtype or setup.dtype
    if setup.adapter is Adapter.ADALORA and dtype is not Dtype.FLOAT32 and setup.quant is not Quant.INT8:
        for path, param in model.named_parameters():
            if "ranknum" in path:
                param.requires_grad_(True)
    return model


def _cast_back(model: PreTrainedModel, setup: TrainingSetup) -> None:
    """What stacks cast of the float32 that k-bit preparation leaves behind.

    Sources: trl ``models/utils.py``, ``peft_module_casting_to_bf16`` (embeddings and head); axolotl
    ``loaders/model.py``, ``_convert_embedding_modules_dtype`` (norms as well).
    """
    dtype = TORCH_DTYPES[setup.dtype]
    for path, module in model.named_modules():
        embeds = any(name in path for name in ("lm_head", "embed_tokens", "wte", "wpe", "embed_in", "embed_out"))
        if setup.kbit_cast_back is KbitCastBack.ALL or (setup.kbit_cast_back is KbitCastBack.EMBEDDINGS and embeds):
            for param in module.parameters(recurse=False):
                if param.dtype is torch.float32:
                    param.data = param.data.to(dtype)


def _in_their_type(model: nn.Module, setup: TrainingSetup) -> nn.Module:
    """Adapters in the type that the stack casts them to; DoRA's magnitudes stay (trl ``trainer/sft_trainer.py``)."""
    if setup.adapter_dtype is not None:
        for path, param in model.named_parameters():
            if param.requires_grad and "lora_magnitude_vector" not in path:
                param.data = param.data.to(TORCH_DTYPES[setup.adapter_dtype])
    return model


def _only_biases(model: PreTrainedModel) -> PreTrainedModel:
    """BitFit (Ben Zaken et al., 2022, arXiv 2106.10199): of the frozen model the biases are trained."""
    found = False
    for name, param in model.named_parameters():
        is_bias = name.endswith("bias") and param.is_floating_point()
        param.requires_grad_(is_bias)
        found |= is_bias
    if not found:
        raise InputError(f"adapter bitfit: {type(model).__name__} has no biases to train; choose adapter lora")
    return model


def _check_targets(model: PreTrainedModel, targets: Any) -> None:
    """Names that are in no layer are passed over by peft, for lists that suit several families; a slip is told."""
    paths = [path for path, _ in model.named_modules()]
    known = {_letters(name): name for path, m in model.named_modules() if _is_linear(m) for name in [_last(path)]}
    for target in targets if isinstance(targets, tuple) else ():
        there = any(path == target or path.endswith(f".{target}") for path in paths)
        if not there and _letters(target) in known:
            raise InputError(
                f"target_modules: {target} is in no layer of this model; did you mean {known[_letters(target)]}?"
            )


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _letters(name: str) -> str:
    return "".join(sorted(name.lower().replace("_", "")))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D)


def _apply_liger(model: PreTrainedModel, setup: TrainingSetup, place: Place) -> None:
    """As ``Trainer(use_liger_kernel=True)`` does, to the model inside the adapters; a fused head leaves it no loss."""
    if place.kernels != "cuda":
        raise InputError("use_liger_kernel: Liger's kernels run on a GPU only; leave it out on the CPU")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"use_liger_kernel needs {error.name or 'liger_kernel'}, which is not installed; pip install liger-kernel"
        ) from error
    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"use_liger_kernel: Liger has no kernels for models of type {kind}; leave it out")
    with interface_of("liger_kernel"):
        fused = {"fused_linear_cross_entropy": False} if setup.loss is Loss.FUSED else {}
        _apply_liger_kernel_to_instance(model=model, **fused)


def _enable_checkpointing(model: Any, setup: TrainingSetup) -> None:
    """As ``Trainer`` does; with the reentrant variant (default before transformers 5) frozen embeddings must be asked
    for gradients, which is what TRL and peft's guides do.
    """
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise InputError(
            f"{type(model).__name__} supports no gradient checkpointing in transformers {transformers.__version__}; "
            "turn gradient_checkpointing off"
        )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    renamed = getattr(inner, "activation_checkpointing_enable", None)  # as newer transformers call it
    enable = renamed or model.gradient_checkpointing_enable
    if "gradient_checkpointing_kwargs" in inspect.signature(enable).parameters:
        enable(gradient_checkpointing_kwargs=None)
    else:
        enable()
    if setup.method is not Method.FULL and int(transformers.__version__.split(".")[0]) < 5:
        model.enable_input_require_grads()
