"""Training stacks: what each takes where nobody says, by version.

A stack is a set of settings' defaults: of its own command and config (how long rows are, which modules get adapters),
and of what its code does with the model whatever one says (how the loss is computed, what a quantised model goes
through). What a setting does stands in ``step/``; here stands which stack means which. An example: TRL 1.16 loads a
model that is given by name in float32, trains rows of 1024 tokens, and never makes logits; ``--stack trl`` takes that,
and every flag that is given beside it is taken instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fitplan.errors import InputError
from fitplan.setup import (
    PEFT_DEFAULT,
    SETTINGS,
    Dtype,
    KbitCastBack,
    Loss,
    Method,
    Objective,
    Padding,
    Stack,
    Task,
)

Version = tuple[int, ...]
Defaults = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Release:
    """From one version of a stack on.

    Attributes:
        since: the first version that is like this.
        defaults: by method, the settings it takes.

    """

    since: Version
    defaults: Callable[[Method], Defaults]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A stack.

    Attributes:
        title: as people call it.
        newest: the version that is taken where none is named, and the last that was looked at.
        releases: the oldest first.
        source: where its defaults stand.

    """

    title: str
    newest: Version
    releases: tuple[Release, ...]
    source: str


def _trl(*, loss: Loss, dtype: Dtype, kbit: Defaults, adapters: Defaults) -> Callable[[Method], Defaults]:
    """``SFTConfig`` and ``ModelConfig``; the same in all versions that are known here but for what is given."""

    def defaults(method: Method) -> Defaults:
        common: dict[str, Any] = {
            "batch_size": 8,
            "seq_len": 1024,
            "dtype": dtype,
            "loss": loss,
            "gradient_checkpointing": True,
        }
        if method is Method.FULL:
            return common
        common |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": PEFT_DEFAULT}
        return common if method is Method.LORA else {**common, "double_quant": False, **kbit, **adapters}

    return defaults


_BFLOAT16_ADAPTERS = {"adapter_dtype": Dtype.BFLOAT16}
_NOT_PREPARED = {"kbit_prepare": False}

TRL = Known(
    title="TRL",
    newest=(1, 16),
    source="trl trainer/sft_config.py, model_config.py, sft_trainer.py and models/utils.py of each version",
    releases=(
        Release(
            since=(0, 22),
            defaults=_trl(
                loss=Loss.METRICS, dtype=Dtype.BFLOAT16, kbit={"kbit_cast_back": KbitCastBack.EMBEDDINGS}, adapters={}
            ),
        ),
        Release(
            since=(0, 26),
            defaults=_trl(loss=Loss.METRICS, dtype=Dtype.BFLOAT16, kbit=_NOT_PREPARED, adapters=_BFLOAT16_ADAPTERS),
        ),
        Release(
            since=(0, 27),
            defaults=_trl(loss=Loss.METRICS, dtype=Dtype.FLOAT32, kbit=_NOT_PREPARED, adapters=_BFLOAT16_ADAPTERS),
        ),
        Release(
            since=(1, 7),
            defaults=_trl(loss=Loss.CHUNKED, dtype=Dtype.FLOAT32, kbit=_NOT_PREPARED, adapters=_BFLOAT16_ADAPTERS),
        ),
        Release(
            since=(1, 15),
            defaults=_trl(loss=Loss.FUSED, dtype=Dtype.FLOAT32, kbit=_NOT_PREPARED, adapters=_BFLOAT16_ADAPTERS),
        ),
    ),
)


def _llamafactory(method: Method) -> Defaults:
    """Trained parameters are cast to float32, unless ``pure_bf16`` is set (``model/adapter.py``, ``init_adapter``)."""
    if method is Method.FULL:
        return {"batch_size": 8, "seq_len": 2048, "dtype": Dtype.FLOAT32}
    adapters = {"batch_size": 8, "seq_len": 2048, "lora_r": 8, "lora_alpha": 16}
    return adapters if method is Method.LORA else adapters | {"kbit_prepare": False}


def _axolotl(method: Method) -> Defaults:
    """After k-bit preparation what it made float32 is cast to the type of the training (``loaders/model.py``)."""
    common = {"batch_size": 1, "seq_len": 512, "gradient_checkpointing": False, "padding": Padding.LONGEST}
    return common | {"kbit_cast_back": KbitCastBack.ALL} if method is Method.QLORA else common


STACKS: Mapping[Stack, Known] = {
    Stack.TRL: TRL,
    Stack.LLAMAFACTORY: Known(
        title="LLaMA-Factory",
        newest=(0, 9, 5),
        source="llamafactory hparams/*.py, model/adapter.py and model/model_utils of 0.9.5",
        releases=(Release(since=(0, 9), defaults=_llamafactory),),
    ),
    Stack.AXOLOTL: Known(
        title="Axolotl",
        newest=(0, 19),
        source="axolotl utils/schemas and loaders/model.py of 0.19.0",
        releases=(Release(since=(0, 13), defaults=_axolotl),),
    ),
}


def defaults_of(stack: Stack, chosen: Defaults, method: Method) -> dict[str, Any]:
    """What a stack takes where nobody says, its version among it; nothing that contradicts what was chosen.

    Args:
        stack: not ``trainer``, which takes the defaults of :class:`fitplan.setup.TrainingSetup`.
        chosen: the settings that were given.
        method: how the model is fine-tuned.

    Raises:
        InputError: this version of the stack is older than what is known here.

    """
    known = STACKS[stack]
    named = SETTINGS["stack_version"].read(chosen.get("stack_version"))
    version = _parsed(named) if named else known.newest
    release = next((one for one in reversed(known.releases) if one.since <= version), None)
    if release is None:
        raise InputError(
            f"stack_version {shown(version)}: {known.title} is known from {shown(known.releases[0].since)} on; "
            "leave it out, or set what that version does by hand"
        )
    found = {"stack_version": shown(version), **release.defaults(method)}
    classifies = SETTINGS["task"].read(chosen.get("task")) not in (None, Task.CAUSAL_LM)
    if classifies or SETTINGS["objective"].read(chosen.get("objective")) is Objective.REWARD:
        found.pop("loss", None)
    return {name: value for name, value in found.items() if _suits(name, {**found, **chosen, "method": method})}


BY_CODE = ("loss", "adapter_dtype", "kbit_prepare", "kbit_cast_back")
"""What a stack's code does whatever one says."""


def as_run_by(stack: Stack, method: Method) -> dict[str, Any]:
    """What the newest version of a stack does to a job that is described in all else."""
    found = STACKS[stack].releases[-1].defaults(method)
    return {name: found[name] for name in BY_CODE if name in found}


def _suits(name: str, settings: Defaults) -> bool:
    """Whether a default means something beside the other settings."""
    for only in SETTINGS[name].only:
        other = settings.get(only.other)
        if other is not None and SETTINGS[only.other].read(other) not in only.values:
            return False
    return True


def _parsed(version: str) -> Version:
    return tuple(int(part) for part in version.split("."))


def shown(version: Version) -> str:
    """``"1.16"``."""
    return ".".join(map(str, version))
