"""From a config to the model's architecture: modules and parameters without memory."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._device import _device_constructors
from transformers import PretrainedConfig, PreTrainedModel

from fitplan.errors import InputError, LibraryMoved, ModelNotSupported
from fitplan.faults import moved_library, one_line
from fitplan.guard import Guard
from fitplan.setup import Dtype, Method, Task, TrainingSetup

TORCH_DTYPES = {Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16, Dtype.FLOAT32: torch.float32}

_AUTO_CLASSES: Mapping[Task, Any] = {
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    Task.SEQ2SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    Task.MASKED_LM: transformers.AutoModelForMaskedLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
}
_WHOLE: Any = transformers.AutoModelForImageTextToText
"""Models that read images and write text."""
_HEADS = {
    "ForCausalLM": Task.CAUSAL_LM,
    "LMHeadModel": Task.CAUSAL_LM,
    "ForMaskedLM": Task.MASKED_LM,
    "ForSequenceClassification": Task.SEQUENCE_CLASSIFICATION,
    "ForConditionalGeneration": Task.SEQ2SEQ_LM,
    "WithLMHeadModel": Task.SEQ2SEQ_LM,
}


def load_config(settings: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a ``config.json``; of a multimodal model its text part, if that is a model by itself.

    Else it is the whole: rows of text run through it, and what reads images or sound is frozen.

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
        config = transformers.CONFIG_MAPPING[model_type].from_dict(
            _without_implementations(copy.deepcopy(dict(settings)))
        )
    except Exception as error:  # the config classes raise whatever their checks happen to raise
        raise ModelNotSupported(f"transformers refuses this {model_type} config: {one_line(error)}") from error
    if hasattr(config, "text_config"):
        text = text_of(config)
        if hasattr(config, "tie_word_embeddings"):
            text.tie_word_embeddings = config.tie_word_embeddings  # which is what the whole model's head goes by
        text.architectures = config.architectures or text.architectures
        is_model = type(text) in _AUTO_CLASSES[Task.CAUSAL_LM]._model_mapping
        return text if is_model or type(config) not in _WHOLE._model_mapping else config
    config.fitplan_untied_head = settings.get("tie_word_embeddings") is False
    return config


def text_of(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that reads text; the config itself where that is all there is."""
    return config.get_text_config() if hasattr(config, "text_config") else config


def text_path(model: PreTrainedModel) -> str:
    """The path of what reads text inside a multimodal model, ending in a dot; empty where it is the whole model."""
    kind = type(text_of(model.config))
    if kind is type(model.config):
        return ""
    paths = (path for path, module in model.named_modules() if path and type(getattr(module, "config", None)) is kind)
    found = next(paths, None)
    return f"{found}." if found else ""


_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_OF_TRANSFORMERS = ("eager", "sdpa", "grouped_mm", "batched_mm")


def _without_implementations(settings: Any) -> Any:
    """Settings, nested ones too, that name no code: an implementation may be a repository of kernels on the hub.

    Source: transformers ``integrations/hub_kernels.py``; from 4.56 to 5.2 such code was run (CVE-2026-4372).
    """
    if isinstance(settings, dict):
        return {
            name: _without_implementations(value)
            for name, value in settings.items()
            if not any(one in str(name) for one in _IMPLEMENTATIONS) or value in _OF_TRANSFORMERS
        }
    return [_without_implementations(one) for one in settings] if isinstance(settings, list) else settings


def task_of(config: PretrainedConfig, setup: TrainingSetup) -> Task:
    """The task of the setup, else the one that the config's ``architectures`` names, else language modelling."""
    if setup.task is not None:
        return setup.task
    endings = [(name, ending) for name in config.architectures or () for ending in _HEADS if name.endswith(ending)]
    named = next((_HEADS[ending] for _, ending in endings if _HEADS[ending] is not Task.SEQ2SEQ_LM), None)
    if config.is_encoder_decoder:
        both = (_AUTO_CLASSES[task]._model_mapping for task in (Task.CAUSAL_LM, Task.SEQ2SEQ_LM))
        is_part = named is Task.CAUSAL_LM and all(type(config) in mapping for mapping in both)  # the decoder alone
        return named if named is Task.SEQUENCE_CLASSIFICATION or (named is not None and is_part) else Task.SEQ2SEQ_LM
    return named or Task.CAUSAL_LM


def model_class(config: PretrainedConfig, task: Task) -> type[PreTrainedModel]:
    """The transformers class for this config and task.

    Raises:
        ModelNotSupported: there is none.

    """
    mapping = _AUTO_CLASSES[task]._model_mapping
    if task is Task.CAUSAL_LM and type(config) not in mapping:
        mapping = _WHOLE._model_mapping
    if type(config) not in mapping:
        raise ModelNotSupported(f"transformers has no {task} model of type {config.model_type!r}; choose another task")
    found = mapping[type(config)]
    return found[0] if isinstance(found, list | tuple) else found


def build_architecture(config: PretrainedConfig, setup: TrainingSetup) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers, which are computed, on the CPU.

    Raises:
        ModelNotSupported: transformers cannot build this config.
        InputError: the setup asks for an attention or a length that the model does not have.

    """
    task = task_of(config, setup)
    if setup.num_labels is not None:
        config.num_labels = setup.num_labels
    if task is Task.SEQUENCE_CLASSIFICATION and getattr(config, "pad_token_id", None) is None:
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
        raise moved_library(error) or InputError(
            f"attn {setup.attn or 'as the config says'} cannot be used here: {one_line(error)}"
        ) from error
    except LibraryMoved:
        raise
    except Exception as error:  # a config with impossible numbers fails somewhere inside the model
        if setup.attn is not None and "attention" in str(error).lower() and "support" in str(error).lower():
            raise InputError(
                f"transformers {transformers.__version__} has no {setup.attn} attention for {config.model_type}; "
                "leave attn out, or choose eager"
            ) from error
        raise ModelNotSupported(
            f"transformers cannot build this {config.model_type} model: {one_line(error)}"
        ) from error
    _keep_in_fp32(model, setup)
    model.tie_weights()
    if getattr(config, "fitplan_untied_head", False):
        _untie_head(model)
    _check_length(model, config, setup)
    if text := text_path(model):
        for path, param in model.named_parameters():
            if not path.startswith(text) and "lm_head" not in path:
                param.requires_grad_(False)
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


LARGEST_BUFFER = 2**24
"""Numbers in a buffer: a causal mask of 4096 positions, the largest that models of transformers keep."""


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters are made on the meta device, or move there when they are registered; nothing is initialised.

    ``torch.empty`` is what parameters are made with, and never buffers whose values matter: a fused expert matrix can
    be larger than the memory of the machine that asks. What is made with other functions (Llama 4's experts with
    ``torch.zeros``) may be a buffer, but not where it is larger than any of them.
    """
    empty, register = torch.empty, nn.Module.register_parameter

    def large_on_meta(make: Any) -> Any:
        def made(*size: Any, **kwargs: Any) -> torch.Tensor:
            asked = empty(*size, **{**kwargs, "device": "meta"})
            return asked if asked.numel() > LARGEST_BUFFER else make(*size, **kwargs)

        return made

    def empty_on_meta(*args: Any, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **{**kwargs, "device": "meta"})

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and param.device.type != "meta":
            module._parameters[name] = type(param)(param.to("meta"), requires_grad=param.requires_grad)

    def untouched(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    _device_constructors()  # it remembers the functions that it finds: the real ones
    with Guard() as guard:
        guard.exchange_here(nn.Module, "register_parameter", register_on_meta)
        guard.exchange_here(torch, "empty", empty_on_meta)
        for name in ("zeros", "ones", "randn", "rand"):
            guard.exchange_here(torch, name, large_on_meta(getattr(torch, name)))
        for name in [name for name, fn in vars(torch.nn.init).items() if name.endswith("_") and callable(fn)]:
            guard.exchange_here(torch.nn.init, name, untouched)
        yield


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
