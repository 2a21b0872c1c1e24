"""The training setup: every setting that decides where the memory goes.

Names and defaults are those of ``transformers.TrainingArguments``, ``peft.LoraConfig`` and
``transformers.BitsAndBytesConfig`` where one exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from fitplan.errors import InputError, SetupConflict
from fitplan.names import did_you_mean


class Method(StrEnum):
    """How the model is fine-tuned."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Task(StrEnum):
    """What the model is trained to do: which head it carries and which loss it computes."""

    CAUSAL_LM = "causal-lm"
    SEQ2SEQ_LM = "seq2seq-lm"
    MASKED_LM = "masked-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"


class Quant(StrEnum):
    """The format of the frozen weights (bitsandbytes)."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"


class Dtype(StrEnum):
    """The type that the weights are loaded in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class MixedPrecision(StrEnum):
    """Automatic mixed precision: ``TrainingArguments(bf16=True)`` or ``(fp16=True)``."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


class Attention(StrEnum):
    """``attn_implementation`` of transformers."""

    SDPA = "sdpa"
    EAGER = "eager"
    FLASH_ATTENTION_2 = "flash_attention_2"


class Optim(StrEnum):
    """``TrainingArguments.optim``."""

    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_TORCH = "adamw_torch"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    PAGED_ADAMW_32BIT = "paged_adamw_32bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    LION_8BIT = "lion_8bit"


class Padding(StrEnum):
    """How the rows of a batch are brought to one length, as in the ``padding`` of a tokenizer.

    It decides whether an attention mask is built at all: without padding transformers drops a mask of ones.
    """

    NONE = "none"
    LONGEST = "longest"
    MAX_LENGTH = "max_length"


LIGER_PACKAGE = "liger_kernel"
"""Decides the numbers of setups with ``use_liger_kernel`` only."""
ALL_LINEAR = "all-linear"
DEFAULT_SEQ_LEN = 2048

_SPELLINGS: Mapping[type[StrEnum], Mapping[str, str]] = {
    Dtype: {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    Attention: {"fa2": "flash_attention_2", "flash": "flash_attention_2"},
    Quant: {"8bit": "int8", "4bit": "nf4"},
    Optim: {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"},
}


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """One fine-tuning job, complete and free of contradictions.

    Fields left out, or given as ``None``, take the value that a user of ``transformers.Trainer`` and peft gets; fields
    that mean nothing for the chosen method are ``None``. Strings are accepted wherever an enum stands.

    Raises:
        SetupConflict: two settings contradict each other.
        InputError: a value is outside its range.

    """

    method: Method = Method.QLORA
    task: Task | None = None
    """``None``: the one that the model's ``architectures`` names."""
    batch_size: int = 1
    """Rows in one micro-batch: ``per_device_train_batch_size``."""
    seq_len: int = DEFAULT_SEQ_LEN
    """Tokens in a row, padding included; for sequence-to-sequence models, of the source and of the target."""
    gradient_accumulation_steps: int = 1
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    target_modules: tuple[str, ...] | str | None = None
    """Module names, also in one string with commas; ``"all-linear"``: every linear layer but the output head (peft)."""
    quant: Quant | None = None
    double_quant: bool | None = None
    """``bnb_4bit_use_double_quant``."""
    compute_dtype: Dtype | None = None
    """``bnb_4bit_compute_dtype``; by default the ``dtype``."""
    kbit_prepare: bool | None = None
    """Whether ``peft.prepare_model_for_kbit_training`` is called."""
    dtype: Dtype = Dtype.BFLOAT16
    mixed_precision: MixedPrecision | None = None
    gradient_checkpointing: bool = True
    attn: Attention | None = None
    """``None``: transformers' own choice, SDPA where the model supports it, else eager."""
    optim: Optim = Optim.ADAMW_TORCH_FUSED
    use_liger_kernel: bool = False
    """Fused kernels for norms, rotary positions, MLPs and the loss, which never keeps the logits of all tokens."""
    expandable_segments: bool = False
    """Whether ``PYTORCH_CUDA_ALLOC_CONF`` says ``expandable_segments:True``."""
    padding: Padding = Padding.NONE
    num_labels: int | None = field(default=None)
    """Classes of a sequence classifier."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) is None:
                self._put(one.name, one.default)
        for name, kind in _ENUM_FIELDS.items():
            self._put(name, _enum(kind, name, getattr(self, name)))
        self._put("target_modules", _names(self.target_modules))
        _check_ranges(self)
        _check_conflicts(self)
        self._fill_defaults()

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill_defaults(self) -> None:
        defaults: dict[str, Any] = {}
        if self.mixed_precision is None:
            full_fp16 = self.dtype is Dtype.FLOAT16 and self.method is Method.FULL
            fp16 = MixedPrecision.NO if full_fp16 else MixedPrecision.FP16
            defaults["mixed_precision"] = fp16 if self.dtype is Dtype.FLOAT16 else MixedPrecision.BF16
        if self.method is not Method.FULL:
            defaults |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ALL_LINEAR}
        if self.method is Method.QLORA:
            defaults |= {"quant": Quant.NF4, "kbit_prepare": True}
            if self.quant is not Quant.INT8:
                defaults |= {"double_quant": True, "compute_dtype": self.dtype}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                self._put(name, value)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """A setup from plain values, as in :meth:`to_dict`.

        Raises:
            InputError: a key is unknown (the nearest known one is named), or as the class itself.

        """
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known) or f"known are {', '.join(sorted(known))}"
                raise InputError(f"{name} is no setting; {hint}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, resolved, as JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def with_(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return replace(self, **changes)


_ENUM_FIELDS: dict[str, type[StrEnum]] = {
    "method": Method,
    "task": Task,
    "quant": Quant,
    "compute_dtype": Dtype,
    "dtype": Dtype,
    "mixed_precision": MixedPrecision,
    "attn": Attention,
    "optim": Optim,
    "padding": Padding,
}

LORA_FIELDS = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
QLORA_FIELDS = ("quant", "double_quant", "compute_dtype", "kbit_prepare")


def settings_for(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings without those that mean nothing for ``method``: to answer all methods at once."""
    foreign: tuple[str, ...] = ()
    if method is not Method.QLORA:
        foreign += QLORA_FIELDS
    if method is Method.FULL:
        foreign += LORA_FIELDS
    return {name: value for name, value in settings.items() if name not in foreign} | {"method": method}


TENSOR_CORES_FOR_BFLOAT16 = (8, 0)
"""Compute capability from which GPUs multiply bfloat16 (CUDA C++ Programming Guide, "Compute Capabilities")."""


def with_defaults(
    settings: Mapping[str, Any], *, method: Method, positions: int | None, capability: tuple[int, int]
) -> dict[str, Any]:
    """The settings, with what people take where they do not say: it depends on the model and the GPU.

    The length is the default, or what the model knows ``positions`` for, if that is less. A GPU that does not multiply
    bfloat16 is given float16 autocast; trained weights are then kept in float32, which the gradient scaler asks for.
    """
    usual: dict[str, Any] = {"seq_len": min(DEFAULT_SEQ_LEN, positions or DEFAULT_SEQ_LEN)}
    chosen = given(settings)
    if capability < TENSOR_CORES_FOR_BFLOAT16 and not {"dtype", "mixed_precision"} & chosen.keys():
        dtype = Dtype.FLOAT32 if method is Method.FULL else Dtype.FLOAT16
        usual |= {"dtype": dtype, "mixed_precision": MixedPrecision.FP16}
    return {**usual, **chosen}


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that somebody chose: ``None`` is none."""
    return {name: value for name, value in settings.items() if value is not None}


def _names(modules: Any) -> Any:
    """Names of modules as a tuple, or ``"all-linear"``; what is neither is told later."""
    if isinstance(modules, str):
        modules = [name.strip() for name in modules.split(",") if name.strip()]
    if isinstance(modules, list | tuple | set | frozenset):
        return ALL_LINEAR if tuple(modules) == (ALL_LINEAR,) else tuple(modules)
    return modules


def _enum(kind: type[StrEnum], name: str, value: Any) -> StrEnum | None:
    if value is None or isinstance(value, kind):
        return value
    text = str(value)
    text = _SPELLINGS.get(kind, {}).get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        near = did_you_mean(text, kind, 2)
        hint = f"; {near}" if near else ""
        raise InputError(f"{name} cannot be {value!r}: known are {', '.join(kind)}{hint}") from None


MAX_TOKENS = 2**24
"""In a micro-batch: up to there the trace knows what the batch holds, and so whether a mask is built."""
MAX_STEP_TOKENS = 2**26
"""In an optimizer step, all of whose batches are made."""

_RANGES: Mapping[str, tuple[int, int]] = {
    "batch_size": (1, 2**20),
    "seq_len": (1, 2**24),
    "gradient_accumulation_steps": (1, 2**12),
    "lora_r": (1, 2**16),
    "lora_alpha": (1, 2**20),
    "num_labels": (1, 2**24),
}


def _check_ranges(setup: TrainingSetup) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(setup, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} must be a whole number, not {value!r}")
        if not low <= value <= high:
            raise InputError(f"{name} must lie between {low} and {high}, not {value}")
    rows = setup.batch_size * setup.seq_len
    for name, tokens, most in (
        ("batch_size x seq_len", rows, MAX_TOKENS),
        (
            "batch_size x seq_len x gradient_accumulation_steps",
            rows * setup.gradient_accumulation_steps,
            MAX_STEP_TOKENS,
        ),
    ):
        if tokens > most:
            raise InputError(f"{name} is {tokens} tokens; at most {most} can be answered for")
    dropout = setup.lora_dropout
    if dropout is not None and (isinstance(dropout, bool) or not isinstance(dropout, int | float)):
        raise InputError(f"lora_dropout must be a number, not {dropout!r}")
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(f"lora_dropout must lie between 0 and 1, not {dropout}")
    targets = setup.target_modules
    named = isinstance(targets, str | tuple) and targets and all(isinstance(name, str) and name for name in targets)
    if targets is not None and not named:
        raise InputError(f"target_modules must be module names or {ALL_LINEAR!r}, not {targets!r}")
    for name in ("double_quant", "kbit_prepare", "gradient_checkpointing", "use_liger_kernel", "expandable_segments"):
        value = getattr(setup, name)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}")


def _check_conflicts(setup: TrainingSetup) -> None:
    if setup.method is Method.FULL:
        _refuse(setup, LORA_FIELDS, "method", "full fine-tuning has no adapters; choose method lora or qlora")
    if setup.method is not Method.QLORA:
        _refuse(setup, QLORA_FIELDS, "method", f"{setup.method} does not quantise; choose method qlora")
    if setup.quant is Quant.INT8:
        _refuse(setup, ("double_quant", "compute_dtype"), "quant", "int8 has no such setting; choose quant nf4 or fp4")
    if setup.method is Method.FULL and setup.dtype is Dtype.FLOAT16 and setup.mixed_precision is MixedPrecision.FP16:
        raise SetupConflict(
            "dtype", "mixed_precision",
            "dtype float16 with mixed_precision fp16: the gradient scaler refuses to unscale float16 gradients; "
            "choose dtype float32, or mixed_precision bf16",
        )  # fmt: skip
    if setup.attn is Attention.FLASH_ATTENTION_2 and setup.dtype is Dtype.FLOAT32 \
            and setup.mixed_precision is MixedPrecision.NO:  # fmt: skip
        raise SetupConflict(
            "attn", "dtype",
            "attn flash_attention_2 with dtype float32: its kernels take 16-bit types only; "
            "choose attn sdpa, dtype bfloat16, or mixed_precision bf16",
        )  # fmt: skip
    if setup.num_labels is not None and setup.task not in (None, Task.SEQUENCE_CLASSIFICATION):
        raise SetupConflict(
            "num_labels", "task", f"num_labels with task {setup.task}: only sequence-classification counts labels"
        )


def _refuse(setup: TrainingSetup, names: tuple[str, ...], other: str, why: str) -> None:
    for name in names:
        value = getattr(setup, name)
        if value is not None:
            shown = ",".join(value) if isinstance(value, tuple) else value
            raise SetupConflict(
                name, other, f"{name} {shown} with {other} {getattr(setup, other)}: {why}, or drop {name}"
            )
