"""The adapters: what peft calls each, its settings and its parameters.

Nothing here knows torch: scripts are emitted without it. A new adapter is a value of
:class:`fitplan.setup.Adapter`, its fields in the list of settings, and a line here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fitplan.settings import ByName
from fitplan.setup import ALL_LINEAR, PEFT_DEFAULT, SETTINGS, Adapter, LoraInit, Task, TrainingSetup


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One adapter.

    Attributes:
        config: the class of its settings in peft.
        prefix: how the names of its parameters begin (``peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING``; prompts are modules
            of a ``prompt_encoder``).
        fields: settings, in the order of peft's, and what peft calls them.
        fixed: arguments that peft insists on, and that no memory depends on.
        is_prompt: whether it is learned tokens, not weights beside those of modules.

    """

    config: str
    prefix: str
    fields: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    is_prompt: bool = False


def _named(*names: str, **renamed: str) -> dict[str, str]:
    return renamed | {name: name for name in names}


_WHERE = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
_LORA = _named(
    "lora_alpha", "lora_dropout", *_WHERE, "use_dora", "use_rslora", "rank_pattern", "alpha_pattern",
    "target_parameters", "init_lora_weights", lora_r="r",
)  # fmt: skip
_LYCORIS = _named(*_WHERE, "rank_pattern", "alpha_pattern", lora_r="r", lora_alpha="alpha")

KINDS: Mapping[Adapter, AdapterKind] = {
    Adapter.LORA: AdapterKind(config="LoraConfig", prefix="lora_", fields=_LORA),
    Adapter.DORA: AdapterKind(config="LoraConfig", prefix="lora_", fields=_LORA),
    Adapter.ADALORA: AdapterKind(
        config="AdaLoraConfig",
        prefix="lora_",
        fields=_named("lora_alpha", "lora_dropout", *_WHERE, lora_r="init_r"),
        fixed={"total_step": 1000},
    ),
    Adapter.LOHA: AdapterKind(config="LoHaConfig", prefix="hada_", fields=_LYCORIS),
    Adapter.LOKR: AdapterKind(config="LoKrConfig", prefix="lokr_", fields=_LYCORIS),
    Adapter.IA3: AdapterKind(
        config="IA3Config",
        prefix="ia3_",
        fields=_named("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"),
    ),
    Adapter.VERA: AdapterKind(
        config="VeraConfig",
        prefix="vera_lambda_",
        fields=_named(
            "target_modules", "modules_to_save", "layers_to_transform", lora_r="r", lora_dropout="vera_dropout"
        ),
    ),
    Adapter.BOFT: AdapterKind(
        config="BOFTConfig", prefix="boft_", fields=_named("boft_block_size", "boft_n_butterfly_factor", *_WHERE)
    ),
    Adapter.OFT: AdapterKind(config="OFTConfig", prefix="oft_", fields=_named("oft_block_size", *_WHERE)),
    Adapter.PREFIX: AdapterKind(
        config="PrefixTuningConfig", prefix="prompt_encoder", fields=_named("num_virtual_tokens"), is_prompt=True
    ),
    Adapter.PROMPT: AdapterKind(
        config="PromptTuningConfig", prefix="prompt_encoder", fields=_named("num_virtual_tokens"), is_prompt=True
    ),
    Adapter.P_TUNING: AdapterKind(
        config="PromptEncoderConfig",
        prefix="prompt_encoder",
        fields=_named("num_virtual_tokens", "encoder_hidden_size"),
        is_prompt=True,
    ),
}
"""Of all that are peft's; BitFit adds nothing to a model."""

PEFT_TASKS: Mapping[Task, str | None] = {
    Task.CAUSAL_LM: "CAUSAL_LM",
    Task.SEQ2SEQ_LM: "SEQ_2_SEQ_LM",
    Task.MASKED_LM: None,
    Task.SEQUENCE_CLASSIFICATION: "SEQ_CLS",
}

_BESIDE = ("modules_to_save", "ranknum", "vera_A", "vera_B")
"""What comes with an adapter under another name: copies of whole modules, AdaLoRA's count, VeRA's projections."""

_PREFIXES = tuple(dict.fromkeys([kind.prefix for kind in KINDS.values()] + list(_BESIDE)))


def is_adapter(path: str) -> bool:
    """Whether a parameter or buffer of this path belongs to an adapter, not to the base model."""
    return any(part.startswith(_PREFIXES) for part in path.split("."))


def is_saved(path: str) -> bool:
    """Whether what belongs to an adapter is saved with it.

    Source: peft ``utils/save_and_load.py``, ``get_peft_model_state_dict``.
    P-tuning saves the tokens that its encoder made, which are as large as those that the encoder reads.
    """
    parts = path.split(".")
    return "ranknum" not in parts and ("prompt_encoder" not in parts or parts[-2] == "embedding")


def peft_arguments(setup: TrainingSetup, task: Task) -> dict[str, Any]:
    """The arguments of the adapter's config, under peft's names; what is open, or peft's default, is left out.

    Args:
        setup: whose adapter is one of :data:`KINDS`.
        task: what the model is trained to do.

    """
    assert setup.adapter is not None, "there is an adapter"
    kind = KINDS[setup.adapter]
    values = {theirs: _as_peft_has_it(name, getattr(setup, name)) for name, theirs in kind.fields.items()}
    found = {name: value for name, value in values.items() if value is not None}
    if (named := PEFT_TASKS[task]) is not None:
        found["task_type"] = named
    return found | kind.fixed


def _as_peft_has_it(name: str, value: Any) -> Any:
    if value is False or value is LoraInit.TRUE or value == PEFT_DEFAULT:
        return None
    if SETTINGS[name].kind is ByName and value is not None:
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, str) else value


def names_single_layers(setup: TrainingSetup) -> bool:
    """Whether an adapter is not the same in all layers: their numbers are named, or the prompt holds all of them."""
    patterns: list[Any] = [setup.target_modules, setup.exclude_modules, setup.modules_to_save, setup.target_parameters]
    named = [name for names in patterns if names for name in ([names] if isinstance(names, str) else names)]
    named += [name for name, _ in (*(setup.rank_pattern or ()), *(setup.alpha_pattern or ()))]
    numbered = any(re.search(r"(?<![A-Za-z_\d])\d", name) for name in named if name != ALL_LINEAR)
    return numbered or setup.layers_to_transform is not None or setup.adapter is Adapter.PREFIX
