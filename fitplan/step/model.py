"""Build the model that is trained: architecture, quantisation, weights, k-bit preparation, adapters."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fitplan.errors import InputError, ModelNotSupported
from fitplan.phase import Phase
from fitplan.setup import ALL_LINEAR, Dtype, Method, Quant, Task, TrainingSetup
from fitplan.step.job import Observer, Place

TORCH_DTYPES = {Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16, Dtype.FLOAT32: torch.float32}

_AUTO_CLASSES: Mapping[Task, Any] = {
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    Task.SEQ2SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    Task.MASKED_LM: transformers.AutoModelForMaskedLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
}
_HEADS = {
    "ForCausalLM": Task.CAUSAL_LM,
    "LMHeadModel": Task.CAUSAL_LM,
    "ForMaskedLM": Task.MASKED_LM,
    "ForSequenceClassification": Task.SEQUENCE_CLASSIFICATION,
    "ForConditionalGeneration": Task.SEQ2SEQ_LM,
    "WithLMHeadModel": Task.SEQ2SEQ_LM,
}


def load_config(settings: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a ``config.json``; of a multimodal model, its text part.

    Raises:
        ModelNotSupported: transformers does not know the model type, or refuses the values.

    """
    model_type = settings.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        remote = " without running its own code" if "auto_map" in settings else ""
        raise ModelNotSupported(
            f"transformers {transformers.__version__} cannot build model type {model_type!r}{remote}; "
            "use a model type that it knows, or a newer transformers"
        )
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_dict(dict(settings))
    except Exception as error:  # the config classes raise whatever their checks happen to raise
        raise ModelNotSupported(f"transformers refuses this {model_type} config: {_one_line(error)}") from error
    if hasattr(config, "text_config"):
        return config.get_text_config()
    config.fitplan_untied_head = settings.get("tie_word_embeddings") is False
    return config


def task_of(config: PretrainedConfig, setup: TrainingSetup) -> Task:
    """The task of the setup, else the one that the config's ``architectures`` names, else language modelling."""
    if setup.task is not None:
        return setup.task
    if config.is_encoder_decoder:
        return Task.SEQ2SEQ_LM
    for architecture in config.architectures or ():
        for ending, task in _HEADS.items():
            if architecture.endswith(ending) and task is not Task.SEQ2SEQ_LM:
                return task
    return Task.CAUSAL_LM


def model_class(config: PretrainedConfig, task: Task) -> type[PreTrainedModel]:
    """The transformers class for this config and task.

    Raises:
        ModelNotSupported: there is none.

    """
    mapping = _AUTO_CLASSES[task]._model_mapping
    if type(config) not in mapping:
        raise ModelNotSupported(f"transformers has no {task} model of type {config.model_type!r}; choose another task")
    found = mapping[type(config)]
    return found[0] if isinstance(found, list | tuple) else found


def build_skeleton(config: PretrainedConfig, setup: TrainingSetup, place: Place) -> PreTrainedModel:
    """The model without weights: parameters on the meta device, whatever the place; quantised layers in.

    Raises:
        ModelNotSupported: transformers cannot build this config.

    """
    model = _architecture(config, setup)
    _check_length(model, config, setup)
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
        InputError: a target module is not in the model.

    """
    observe(Phase.LOAD)
    _load_weights(model, setup, place.device, observe)
    observe(Phase.PREPARE)
    trained: Any = model if setup.method is Method.FULL else _add_adapters(model, config, setup)
    trained.train()
    if setup.gradient_checkpointing:
        _enable_checkpointing(trained, setup)
    trained.config.use_cache = False
    return trained


# --- the architecture -------------------------------------------------------------------------------------------------


def _architecture(config: PretrainedConfig, setup: TrainingSetup) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers, which are computed, on the CPU."""
    task = task_of(config, setup)
    if setup.num_labels is not None:
        config.num_labels = setup.num_labels
    if task is Task.SEQUENCE_CLASSIFICATION and config.pad_token_id is None:
        config.pad_token_id = 0
    dtype = TORCH_DTYPES[setup.dtype]
    dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    build = model_class(config, task)._from_config
    try:
        with _parameters_on_meta(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attn = {"attn_implementation": str(setup.attn)} if setup.attn is not None else {}
            model = build(config, **attn, **{dtype_name: dtype})
    except ImportError as error:
        raise InputError(
            f"attn {setup.attn or 'as the config says'} cannot be used here: {_one_line(error)}"
        ) from error
    except Exception as error:  # a config with impossible numbers fails somewhere inside the model
        if setup.attn is not None and "attention" in str(error).lower() and "support" in str(error).lower():
            raise InputError(
                f"transformers {transformers.__version__} has no {setup.attn} attention for {config.model_type}; "
                "leave attn out, or choose eager"
            ) from error
        raise ModelNotSupported(
            f"transformers cannot build this {config.model_type} model: {_one_line(error)}"
        ) from error
    _keep_in_fp32(model, setup)
    model.tie_weights()
    if getattr(config, "fitplan_untied_head", False):
        _untie_head(model)
    return model


_POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions")


def _check_length(model: PreTrainedModel, config: PretrainedConfig, setup: TrainingSetup) -> None:
    """Models that look positions up in a table cannot read further than the table goes.

    The meta device does not look, a GPU stops with a failed assertion.
    """
    limits = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in _POSITION_TABLES:
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            limits.append(module.num_embeddings - getattr(module, "offset", reserved))  # OPT names its offset
    for path, buffer in model.named_buffers():
        if path.rpartition(".")[2] in _POSITION_TABLES:
            limits.append(buffer.shape[0])
    if limits and setup.seq_len > min(limits):
        raise InputError(
            f"seq_len {setup.seq_len} is longer than the {min(limits)} positions this {config.model_type} model knows; "
            f"choose seq_len {min(limits)} or less"
        )


def _untie_head(model: PreTrainedModel) -> None:
    """T5 models of transformers 5 tie the head whatever their config says; a checkpoint that holds a head unties it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=head.weight.requires_grad)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters are made on the meta device, or move there when they are registered; nothing is initialised.

    ``torch.empty`` is what parameters are made with, and never buffers whose values matter: a fused expert matrix can
    be larger than the memory of the machine that asks.
    """
    empty = torch.empty

    def empty_on_meta(*args: Any, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **{**kwargs, "device": "meta"})

    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and param.device.type != "meta":
            module._parameters[name] = type(param)(param.to("meta"), requires_grad=param.requires_grad)

    def untouched(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    initialisers = {name: fn for name, fn in vars(torch.nn.init).items() if name.endswith("_") and callable(fn)}
    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    torch.empty = empty_on_meta
    for name in initialisers:
        setattr(torch.nn.init, name, untouched)
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.empty = empty
        for name, fn in initialisers.items():
            setattr(torch.nn.init, name, fn)


def _keep_in_fp32(model: PreTrainedModel, setup: TrainingSetup) -> None:
    """Parameters that the model insists on keeping in float32 (``_keep_in_fp32_modules``).

    Source: transformers ``modeling_utils``: the list is honoured for float16 and by the bitsandbytes quantizers, its
    strict variant for bfloat16 as well.
    """
    patterns = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if setup.dtype is Dtype.FLOAT16 or setup.method is Method.QLORA:
        patterns |= set(model._keep_in_fp32_modules or ())
    for name, param in model.named_parameters():
        if param.is_floating_point() and patterns & set(name.split(".")):
            param.data = param.data.to(torch.float32)


# --- quantisation and weights -----------------------------------------------------------------------------------------


def _replace_linear_layers(model: PreTrainedModel, setup: TrainingSetup, place: Place) -> None:
    """Swap linear layers for quantised ones, with the very rules of transformers' bitsandbytes quantizers."""
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    kind = Bnb8BitHfQuantizer if setup.quant is Quant.INT8 else Bnb4BitHfQuantizer
    quantizer = kind(_bnb_config(setup), pre_quantized=False)
    model.config.quantization_config = quantizer.quantization_config
    quantizer._process_model_before_weight_loading(
        model,
        device_map={"": place.device},
        keep_in_fp32_modules=list(model._keep_in_fp32_modules or ()),
    )
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = quantizer.quantization_config.quant_method
    eight_bit = setup.quant is Quant.INT8
    setattr(model, "is_loaded_in_8bit" if eight_bit else "is_loaded_in_4bit", True)


def _bnb_config(setup: TrainingSetup) -> Any:
    if setup.quant is Quant.INT8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    assert setup.compute_dtype is not None
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
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


def _load_weight(param: nn.Parameter, name: str, dtype: torch.dtype, device: str) -> nn.Parameter:
    kind = type(param).__name__
    value = torch.empty(
        param.shape, dtype=dtype if kind in ("Params4bit", "Int8Params") else param.dtype, device=device
    )
    if device != "meta":
        _randomise(value, name)
    if kind == "Params4bit":
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
    """Weights that keep activations finite; memory does not depend on them."""
    if value.dim() > 1:
        value.normal_(std=0.02)
    else:
        value.fill_(0.0 if "bias" in name else 1.0)


# --- adapters and modes -----------------------------------------------------------------------------------------------


def _add_adapters(model: PreTrainedModel, config: PretrainedConfig, setup: TrainingSetup) -> nn.Module:
    import peft

    if setup.kbit_prepare:
        checkpoint_kwargs = {"use_gradient_checkpointing": setup.gradient_checkpointing}
        model = peft.prepare_model_for_kbit_training(model, **checkpoint_kwargs)
    targets = setup.target_modules
    lora = peft.LoraConfig(
        r=setup.lora_r,
        lora_alpha=setup.lora_alpha,
        lora_dropout=setup.lora_dropout,
        target_modules=targets if targets == ALL_LINEAR or isinstance(targets, str) else list(targets or ()),
        task_type=_PEFT_TASKS[task_of(config, setup)],
    )
    device = next(model.parameters()).device
    try:
        with warnings.catch_warnings(), device:
            warnings.simplefilter("ignore")
            return peft.get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(f"target_modules {_shown(targets)} cannot be adapted: {_one_line(error)}") from error


_PEFT_TASKS = {
    Task.CAUSAL_LM: "CAUSAL_LM",
    Task.SEQ2SEQ_LM: "SEQ_2_SEQ_LM",
    Task.MASKED_LM: None,
    Task.SEQUENCE_CLASSIFICATION: "SEQ_CLS",
}


def _enable_checkpointing(model: Any, setup: TrainingSetup) -> None:
    """As ``Trainer`` does; with the reentrant variant (default before transformers 5) frozen embeddings must be asked
    for gradients, which is what TRL and peft's guides do.
    """
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise InputError(
            f"{type(model).__name__} supports no gradient checkpointing in transformers {transformers.__version__}; "
            "turn gradient_checkpointing off"
        )
    enable = model.gradient_checkpointing_enable
    if "gradient_checkpointing_kwargs" in inspect.signature(enable).parameters:
        enable(gradient_checkpointing_kwargs=None)
    else:
        enable()
    if setup.method is not Method.FULL and int(transformers.__version__.split(".")[0]) < 5:
        model.enable_input_require_grads()


def _shown(targets: Any) -> str:
    return ",".join(targets) if isinstance(targets, tuple) else str(targets)


def _one_line(error: BaseException) -> str:
    """The first sentence of an error message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."
