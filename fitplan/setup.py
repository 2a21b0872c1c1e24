"""The training setup: every setting that decides where the memory goes.

Names and defaults are those of ``transformers.TrainingArguments``, ``peft.LoraConfig`` and
``transformers.BitsAndBytesConfig`` where one exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from fitplan.errors import InputError, SetupConflict
from fitplan.names import did_you_mean
from fitplan.settings import (
    ByName,
    Decides,
    Group,
    Names,
    Numbers,
    Only,
    Pattern,
    Row,
    Setting,
    Version,
    doubling,
    setting,
    shown,
)


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
    """How the rows of a batch are brought to one length, as in the ``padding`` of a tokenizer, or laid end to end.

    It decides whether an attention mask is built at all: without padding transformers drops a mask of ones. ``free`` is
    TRL's ``padding_free``: all rows in a single one, told apart by their positions; ``packed`` the same of rows that
    hold several texts each (``packing``).
    """

    NONE = "none"
    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    FREE = "free"
    PACKED = "packed"


END_TO_END = (Padding.FREE, Padding.PACKED)


class Stack(StrEnum):
    """What runs the training: whose defaults are taken, see :mod:`fitplan.stacks`."""

    TRAINER = "trainer"
    TRL = "trl"
    LLAMAFACTORY = "llamafactory"
    AXOLOTL = "axolotl"


class Strategy(StrEnum):
    """How several GPUs share a job: each works on rows of its own, and holds the whole model or a part of it.

    ``ddp`` is PyTorch's ``DistributedDataParallel``, ``fsdp2`` its ``fully_shard``, ``fsdp1`` its
    ``FullyShardedDataParallel``, each as accelerate sets it up.
    """

    DDP = "ddp"
    FSDP2 = "fsdp2"
    FSDP1 = "fsdp1"


class BackwardPrefetch(StrEnum):
    """When FSDP1 gathers the weights of the next layer in backward."""

    BACKWARD_PRE = "backward_pre"
    BACKWARD_POST = "backward_post"
    NO_PREFETCH = "no_prefetch"


SHARDED = (Strategy.FSDP2, Strategy.FSDP1)
"""Each GPU holds a part of the model."""


class Loss(StrEnum):
    """How the loss of a causal language model is computed, see :mod:`fitplan.step.losses`."""

    LOGITS = "logits"
    METRICS = "metrics"
    CHUNKED = "chunked"
    FUSED = "fused"


class Objective(StrEnum):
    """What is learned: the texts themselves, or which of them are preferred."""

    SFT = "sft"
    DPO = "dpo"
    ORPO = "orpo"
    KTO = "kto"
    REWARD = "reward"
    GRPO = "grpo"


PAIRED = (Objective.DPO, Objective.ORPO, Objective.REWARD)
"""A row of the batch is a pair of texts, which go through the model together."""


class KbitCastBack(StrEnum):
    """What of the float32 that k-bit preparation leaves behind is cast back to the type of the training."""

    NONE = "none"
    EMBEDDINGS = "embeddings"
    ALL = "all"


class Adapter(StrEnum):
    """What is trained beside the frozen weights: peft's methods, and the biases of the model itself (BitFit)."""

    LORA = "lora"
    DORA = "dora"
    ADALORA = "adalora"
    LOHA = "loha"
    LOKR = "lokr"
    IA3 = "ia3"
    VERA = "vera"
    BOFT = "boft"
    OFT = "oft"
    PREFIX = "prefix"
    PROMPT = "prompt"
    P_TUNING = "p-tuning"
    BITFIT = "bitfit"


ADAPTER_NAMES: Mapping[Adapter, str] = {
    Adapter.LORA: "LoRA",
    Adapter.DORA: "DoRA",
    Adapter.ADALORA: "AdaLoRA",
    Adapter.LOHA: "LoHa",
    Adapter.LOKR: "LoKr",
    Adapter.IA3: "IA3",
    Adapter.VERA: "VeRA",
    Adapter.BOFT: "BOFT",
    Adapter.OFT: "OFT",
    Adapter.PREFIX: "prefix tuning",
    Adapter.PROMPT: "prompt tuning",
    Adapter.P_TUNING: "p-tuning",
    Adapter.BITFIT: "biases only",
}


class LoraInit(StrEnum):
    """``LoraConfig.init_lora_weights``, as far as it needs no data: ``true`` is peft's default."""

    TRUE = "true"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"
    OLORA = "olora"
    PISSA = "pissa"


LIGER_PACKAGE = "liger_kernel"
"""Decides the numbers of setups with ``use_liger_kernel`` only."""
FUSED_TILE_TOKENS = 4096
"""Tokens that TRL's fused output head takes at a time (trl ``kernels/chunked_logprob.py``, ``TOKEN_CHUNK_SIZE``)."""
ALL_LINEAR = "all-linear"
PEFT_DEFAULT = "peft-default"
"""Target modules: those that peft names for a model where nobody does (``TRANSFORMERS_MODELS_TO_*_MAPPING``)."""
DEFAULT_SEQ_LEN = 2048

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}

_ADAPTED = Only("method", (Method.LORA, Method.QLORA), "full fine-tuning has no adapters; choose method lora or qlora")
_QUANTISED = Only("method", (Method.QLORA,), "{} does not quantise; choose method qlora")
_SHARDS = Only("strategy", SHARDED, "{} gathers no weights; choose strategy fsdp2")
_REPLICATES = Only("strategy", (Strategy.DDP,), "{} has no buckets; choose strategy ddp")
_LORA = (Adapter.LORA, Adapter.DORA)
_PROMPTS = (Adapter.PREFIX, Adapter.PROMPT, Adapter.P_TUNING)
_TUNERS = tuple(one for one in Adapter if one not in (*_PROMPTS, Adapter.BITFIT))


def _adapters(*adapters: Adapter) -> tuple[Only, ...]:
    """For a setting of some adapters."""
    choose = f"choose adapter {adapters[0]}" + (f" or {adapters[1]}" if len(adapters) > 1 else "")
    return _ADAPTED, Only("adapter", adapters, f"{{}} has no such setting; {choose}")


_FOUR_BIT = Only("quant", (Quant.NF4, Quant.FP4), "int8 has no such setting; choose quant nf4 or fp4")
_CLASSIFIES = Only("task", (Task.SEQUENCE_CLASSIFICATION,), "only sequence-classification counts labels; choose it")


def _padding_in_words(padding: Padding) -> str:
    words = {Padding.NONE: "", Padding.FREE: "padding-free", Padding.PACKED: "packed"}
    return words.get(padding, f"padding to {padding}")


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """One fine-tuning job, complete and free of contradictions. Here stands each setting, and nowhere else.

    Fields left out, or given as ``None``, take the value that a user of ``transformers.Trainer`` and peft gets; fields
    that mean nothing for the chosen method are ``None``. Strings are accepted wherever an enum stands.

    Raises:
        SetupConflict: two settings contradict each other.
        InputError: a value is outside its range.

    """

    method: Method = setting(
        Method.QLORA,
        kind=Method,
        group=Group.JOB,
        help="how the model is fine-tuned",
        row=Row("method", "all weights, adapters, or adapters on quantised weights"),
    )
    task: Task | None = setting(
        kind=Task,
        group=Group.JOB,
        help="what the model is trained to do",
        told_default=": the one that its config names",
    )
    stack: Stack = setting(
        Stack.TRAINER,
        kind=Stack,
        group=Group.JOB,
        help="what runs the training: whose defaults are taken where nothing is given",
        decides=Decides.NOTHING,
        words=lambda stack: "" if stack is Stack.TRAINER else str(stack),
    )
    stack_version: str | None = setting(
        kind=Version,
        metavar="X.Y",
        group=Group.JOB,
        help="its version",
        told_default="the newest that is known",
        only=(Only("stack", tuple(one for one in Stack if one is not Stack.TRAINER), "{} has no version here"),),
        decides=Decides.NOTHING,
        words=lambda version: f" {version}",
    )
    batch_size: int = setting(
        1,
        kind=int,
        metavar="N",
        span=(1, 2**20),
        group=Group.JOB,
        help="rows in a micro-batch",
        theirs="per_device_train_batch_size",
        decides=Decides.SHAPE,
        row=Row("batch", "rows in a micro-batch; activations and logits grow with it", doubling(1, 1024), 1),
    )
    seq_len: int = setting(
        DEFAULT_SEQ_LEN,
        kind=int,
        metavar="N",
        span=(1, 2**24),
        group=Group.JOB,
        help="tokens in a row, padding included; of sequence-to-sequence models in the source and in the target",
        told_default=f"{DEFAULT_SEQ_LEN}, or what the model can",
        decides=Decides.SHAPE,
        row=Row("length", "tokens in a row; activations and logits grow with it", doubling(128, 131_072), 64),
    )
    gradient_accumulation_steps: int = setting(
        1,
        kind=int,
        metavar="N",
        span=(1, 2**12),
        group=Group.JOB,
        help="micro-batches in a step",
        decides=Decides.SHAPE,
        row=Row("accumulate", "micro-batches in an optimizer step", doubling(1, 256), 1),
        words=lambda times: f"accumulated {times} times" if times > 1 else "",
    )
    gpus: int = setting(
        1,
        kind=int,
        metavar="N",
        span=(1, 2**14),
        group=Group.GPUS,
        help="GPUs that train together, each with batches of its own; all figures are those of one",
        theirs="num_processes",
        decides=Decides.SHAPE,
        words=lambda gpus: f"{gpus} GPUs" if gpus > 1 else "",
    )
    strategy: Strategy | None = setting(
        kind=Strategy,
        spellings={"fsdp": "fsdp2", "full_shard": "fsdp1"},
        group=Group.GPUS,
        help="how they share the job: ddp holds the whole model on each, fsdp2 and fsdp1 a part",
        told_default="fsdp2 with several GPUs",
        words=str,
    )
    reshard_after_forward: bool | None = setting(
        kind=bool,
        group=Group.GPUS,
        help="let gathered weights go after forward, and gather them again for backward",
        told_default="on",
        theirs="fsdp_reshard_after_forward, fsdp_sharding_strategy",
        only=(_SHARDS,),
        words=lambda on: "" if on else "weights stay gathered after forward",
    )
    use_orig_params: bool | None = setting(
        kind=bool,
        group=Group.GPUS,
        help="keep single parameters beside the flat one",
        told_default="on, as Trainer sets it; accelerate itself takes off",
        theirs="fsdp_use_orig_params",
        only=(Only("strategy", (Strategy.FSDP1,), "{} has no such setting; choose strategy fsdp1"),),
        words=lambda on: "use_orig_params" if on else "no use_orig_params",
    )
    backward_prefetch: BackwardPrefetch | None = setting(
        kind=BackwardPrefetch,
        group=Group.GPUS,
        help="when the next layer is gathered in backward",
        told_default="no_prefetch",
        only=(Only("strategy", (Strategy.FSDP1,), "{} has no such setting; choose strategy fsdp1"),),
        words=lambda when: "" if when is BackwardPrefetch.NO_PREFETCH else str(when),
    )
    gradient_as_bucket_view: bool | None = setting(
        kind=bool,
        group=Group.GPUS,
        help="gradients lie in the buckets that are sent",
        told_default="off",
        only=(_REPLICATES,),
        words=lambda on: "gradients in buckets" if on else "",
    )
    adapter: Adapter | None = setting(
        usual=Adapter.LORA,
        kind=Adapter,
        group=Group.ADAPTERS,
        help="what is trained beside the frozen weights",
        only=(_ADAPTED,),
        row=Row("adapter", "what is trained beside the frozen weights (peft)"),
        words=lambda adapter: "" if adapter is Adapter.LORA else ADAPTER_NAMES[adapter],
    )
    lora_r: int | None = setting(
        usual=16,
        usual_for={Adapter.VERA: 256},
        kind=int,
        metavar="R",
        span=(1, 2**16),
        group=Group.ADAPTERS,
        help="rank",
        theirs="r",
        only=_adapters(*_LORA, Adapter.ADALORA, Adapter.LOHA, Adapter.LOKR, Adapter.VERA),
        decides=Decides.SHAPE,
        row=Row("rank", "rank of the adapters; all that they need grows with it", doubling(1, 512), 1),
        words=lambda rank: f"r={rank}",
    )
    lora_alpha: int | None = setting(
        usual=32,
        kind=int,
        metavar="N",
        span=(1, 2**20),
        group=Group.ADAPTERS,
        help="scaling",
        only=_adapters(*_LORA, Adapter.ADALORA, Adapter.LOHA, Adapter.LOKR),
        decides=Decides.NOTHING,
    )
    lora_dropout: float | None = setting(
        usual=0.0,
        kind=float,
        metavar="P",
        span=(0, 1),
        group=Group.ADAPTERS,
        help="dropout",
        only=_adapters(*_LORA, Adapter.ADALORA, Adapter.VERA),
    )
    target_modules: tuple[str, ...] | str | None = setting(
        usual=ALL_LINEAR,
        usual_for={Adapter.IA3: None},
        told_default=f"{ALL_LINEAR}; with ia3 those that peft names for the model",
        kind=Pattern,
        special=(ALL_LINEAR, PEFT_DEFAULT),
        metavar="NAMES",
        group=Group.ADAPTERS,
        help="module names with commas, or a regular expression; all-linear is every linear layer but the output head, "
        f"{PEFT_DEFAULT} those that peft names for the model",
        only=_adapters(*_TUNERS),
        row=Row("targets", "the modules that get adapters", (ALL_LINEAR,)),
        words=lambda names: f" on {'all linear layers' if names == ALL_LINEAR else shown(names)}",
    )
    exclude_modules: tuple[str, ...] | str | None = setting(
        kind=Pattern,
        metavar="NAMES",
        group=Group.ADAPTERS,
        help="modules that get none all the same",
        only=_adapters(*(one for one in _TUNERS if one is not Adapter.VERA)),
        words=lambda names: f" but {shown(names)}",
    )
    modules_to_save: tuple[str, ...] | None = setting(
        kind=Names,
        metavar="NAMES",
        group=Group.ADAPTERS,
        help="modules that are trained whole, in a copy",
        only=_adapters(*_TUNERS),
        words=lambda names: f" and all of {shown(names)}",
    )
    layers_to_transform: tuple[int, ...] | None = setting(
        kind=Numbers,
        metavar="N[,N]",
        span=(0, 2**16),
        group=Group.ADAPTERS,
        help="the layers that get adapters",
        told_default="all",
        only=_adapters(*(one for one in _TUNERS if one is not Adapter.IA3)),
        words=lambda layers: f" in layers {shown(layers)}",
    )
    adapter_dtype: Dtype | None = setting(
        kind=Dtype,
        spellings=_DTYPES,
        group=Group.ADAPTERS,
        help="type that adapters are cast to",
        told_default=": float32, as peft makes them",
        only=_adapters(*_TUNERS),
        words=lambda dtype: f" in {dtype}",
    )
    use_dora: bool | None = setting(
        usual=False,
        usual_for={Adapter.DORA: True},
        kind=bool,
        group=Group.ADAPTERS,
        help="the same as --adapter dora",
        told_default="off",
        only=_adapters(*_LORA),
    )
    use_rslora: bool | None = setting(
        usual=False,
        kind=bool,
        group=Group.ADAPTERS,
        help="scale by the root of the rank",
        only=_adapters(*_LORA),
        decides=Decides.NOTHING,
    )
    rank_pattern: tuple[tuple[str, int], ...] | None = setting(
        kind=ByName,
        metavar="NAME=R[,NAME=R]",
        span=(1, 2**16),
        group=Group.ADAPTERS,
        help="other ranks for some modules",
        only=_adapters(*_LORA, Adapter.LOHA, Adapter.LOKR),
        words=lambda ranks: f" (r: {shown(ranks)})",
    )
    alpha_pattern: tuple[tuple[str, int], ...] | None = setting(
        kind=ByName,
        metavar="NAME=N[,NAME=N]",
        span=(1, 2**20),
        group=Group.ADAPTERS,
        help="other scalings for some modules",
        only=_adapters(*_LORA, Adapter.LOHA, Adapter.LOKR),
        decides=Decides.NOTHING,
    )
    target_parameters: tuple[str, ...] | None = setting(
        kind=Names,
        metavar="NAMES",
        group=Group.ADAPTERS,
        help="parameters that get adapters, as those of fused experts",
        only=_adapters(*_LORA),
        words=lambda names: f" and parameters {shown(names)}",
    )
    init_lora_weights: LoraInit | None = setting(
        usual=LoraInit.TRUE,
        kind=LoraInit,
        group=Group.ADAPTERS,
        help="how the adapters begin",
        only=_adapters(*_LORA),
        words=lambda init: "" if init is LoraInit.TRUE else f"{init} weights",
    )
    feedforward_modules: tuple[str, ...] | str | None = setting(
        kind=Pattern,
        metavar="NAMES",
        group=Group.ADAPTERS,
        help="of the modules those whose inputs are scaled",
        told_default="those that peft names for the model",
        only=_adapters(Adapter.IA3),
    )
    oft_block_size: int | None = setting(
        usual=32,
        kind=int,
        metavar="N",
        span=(1, 2**16),
        group=Group.ADAPTERS,
        help="rows of a block of OFT",
        only=_adapters(Adapter.OFT),
        words=lambda size: f" in blocks of {size}",
    )
    boft_block_size: int | None = setting(
        usual=4,
        kind=int,
        metavar="N",
        span=(1, 2**16),
        group=Group.ADAPTERS,
        help="rows of a block of BOFT",
        only=_adapters(Adapter.BOFT),
        words=lambda size: f" in blocks of {size}",
    )
    boft_n_butterfly_factor: int | None = setting(
        usual=1,
        kind=int,
        metavar="N",
        span=(1, 2**8),
        group=Group.ADAPTERS,
        help="butterfly factors of BOFT",
        only=_adapters(Adapter.BOFT),
    )
    num_virtual_tokens: int | None = setting(
        usual=20,
        kind=int,
        metavar="N",
        span=(1, 2**16),
        group=Group.ADAPTERS,
        help="tokens that are learned, before those of the row",
        only=_adapters(*_PROMPTS),
        words=lambda tokens: f" of {tokens} tokens",
    )
    encoder_hidden_size: int | None = setting(
        kind=int,
        metavar="N",
        span=(1, 2**20),
        group=Group.ADAPTERS,
        help="width of the encoder of p-tuning",
        told_default="that of the model",
        only=_adapters(Adapter.P_TUNING),
    )
    quant: Quant | None = setting(
        usual=Quant.NF4,
        kind=Quant,
        spellings={"8bit": "int8", "4bit": "nf4"},
        group=Group.ADAPTERS,
        help="format of the frozen weights",
        theirs="bnb_4bit_quant_type, load_in_8bit",
        only=(_QUANTISED,),
        row=Row("quantise", "format of the frozen weights (bitsandbytes)"),
        words=str,
    )
    quant_storage: Dtype | None = setting(
        kind=Dtype,
        spellings=_DTYPES,
        group=Group.ADAPTERS,
        help="type that packed 4-bit weights are kept in; FSDP shards none but types with a fraction",
        told_default=": uint8",
        theirs="bnb_4bit_quant_storage",
        only=(_QUANTISED, _FOUR_BIT),
        words=lambda dtype: f" kept as {dtype}",
    )
    double_quant: bool | None = setting(
        usual=True,
        kind=bool,
        group=Group.ADAPTERS,
        help="quantise the scales again",
        theirs="bnb_4bit_use_double_quant",
        only=(_QUANTISED, _FOUR_BIT),
        row=Row("double quant", "quantise the scales of the 4-bit blocks again"),
        words=lambda double: " with double quantisation" if double else "",
    )
    compute_dtype: Dtype | None = setting(
        kind=Dtype,
        spellings=_DTYPES,
        group=Group.ADAPTERS,
        help="type of 4-bit products",
        told_default=": --dtype",
        theirs="bnb_4bit_compute_dtype",
        only=(_QUANTISED, _FOUR_BIT),
    )
    kbit_prepare: bool | None = setting(
        usual=True,
        kind=bool,
        group=Group.ADAPTERS,
        help="call prepare_model_for_kbit_training",
        only=(_QUANTISED,),
        row=Row("k-bit prep", "norms, embedding and head in float32 (peft)"),
        words=lambda called: "k-bit preparation" if called else "no k-bit preparation",
    )
    kbit_cast_back: KbitCastBack | None = setting(
        usual=KbitCastBack.NONE,
        kind=KbitCastBack,
        group=Group.ADAPTERS,
        help="what that has made float32 and is cast back: embeddings and head, or norms too",
        only=(_QUANTISED,),
        words=lambda what: "" if what is KbitCastBack.NONE else f"{what} cast back",
    )
    dtype: Dtype = setting(
        Dtype.BFLOAT16,
        kind=Dtype,
        spellings=_DTYPES,
        group=Group.TRAINING,
        help="type the weights are loaded in",
        row=Row("dtype", "the type that the weights are loaded in"),
        words=str,
    )
    mixed_precision: MixedPrecision | None = setting(
        kind=MixedPrecision,
        group=Group.TRAINING,
        help="autocast",
        told_default="bf16; fp16 with float16",
        theirs="bf16, fp16",
        row=Row("autocast", "automatic mixed precision"),
        words=lambda autocast: "" if autocast is MixedPrecision.NO else f"{autocast} autocast",
    )
    gradient_checkpointing: bool = setting(
        usual=True,
        usual_for={Adapter.PREFIX: False},
        kind=bool,
        group=Group.TRAINING,
        help="recompute activations in backward",
        row=Row("checkpointing", "recompute activations in backward, not keep them"),
        words=lambda on: "gradient checkpointing" if on else "no gradient checkpointing",
    )
    attn: Attention | None = setting(
        kind=Attention,
        spellings={"fa2": "flash_attention_2", "flash": "flash_attention_2"},
        group=Group.TRAINING,
        help="attention implementation",
        told_default="sdpa where the model has it, else eager",
        theirs="attn_implementation",
        row=Row("attention", "the attention implementation of transformers"),
        words=str,
    )
    optim: Optim = setting(
        Optim.ADAMW_TORCH_FUSED,
        kind=Optim,
        spellings={"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"},
        group=Group.TRAINING,
        help="optimizer",
        decides=Decides.OPTIMIZER,
        row=Row("optimizer", "what is kept for each trained parameter"),
        words=str,
    )
    use_liger_kernel: bool = setting(
        False,
        kind=bool,
        group=Group.TRAINING,
        help="Liger's kernels for norms, rotary positions, MLPs and the loss, which never keeps all logits",
        row=Row("Liger", "kernels for norms, MLPs and the loss, which keeps no logits", (False, True)),
        words=lambda on: "Liger kernels" if on else "",
    )
    loss: Loss = setting(
        Loss.LOGITS,
        kind=Loss,
        group=Group.TRAINING,
        help="how the loss is computed: from all logits, with TRL's metrics beside it, in TRL's pieces of 256 tokens, "
        "or fused with the output head",
        words=lambda loss: "" if loss is Loss.LOGITS else f"loss {loss}",
    )
    objective: Objective = setting(
        Objective.SFT,
        kind=Objective,
        group=Group.JOB,
        help="supervised fine-tuning; preferences: of pairs, which are two rows each (dpo, orpo), or of rows (kto); a "
        "reward model, of pairs; or rewards of answers that the model writes itself (grpo: the step that learns)",
        words=lambda objective: "" if objective is Objective.SFT else objective.upper(),
    )
    completion_len: int | None = setting(
        kind=int,
        metavar="N",
        span=(1, 2**24),
        group=Group.JOB,
        help="tokens at the end of a row that are scored: the answer, behind its prompt",
        told_default="all",
        theirs="max_completion_length",
        words=lambda tokens: f"answers of {tokens}",
    )
    eval_batch_size: int | None = setting(
        kind=int,
        metavar="N",
        span=(1, 2**20),
        group=Group.JOB,
        help="rows of a batch in evaluations, which come between the steps",
        told_default="no evaluation",
        theirs="per_device_eval_batch_size",
        words=lambda rows: f"evaluated in batches of {rows}",
    )
    beta: float | None = setting(
        usual=0.0,
        kind=float,
        metavar="B",
        span=(0, 100),
        group=Group.TRAINING,
        help="of grpo: weight of the comparison with the reference model, which is there where this is above 0",
        only=(Only("objective", (Objective.GRPO,), "{} has no such choice; choose objective grpo"),),
        words=lambda beta: "with reference model" if beta else "",
    )
    precompute_ref_log_probs: bool = setting(
        False,
        kind=bool,
        group=Group.TRAINING,
        help="dpo and kto without a reference model in memory: its answers are computed before",
        words=lambda on: "reference computed before" if on else "",
    )
    activation_offloading: bool = setting(
        False,
        kind=bool,
        group=Group.TRAINING,
        help="what is kept for backward goes to the host, as TRL does it",
        words=lambda on: "activations on the host" if on else "",
    )
    expandable_segments: bool = setting(
        False,
        kind=bool,
        group=Group.TRAINING,
        help="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        decides=Decides.ALLOCATOR,
    )
    padding: Padding = setting(
        Padding.NONE,
        kind=Padding,
        group=Group.JOB,
        help="how rows reach one length",
        told_default="none: all are full",
        row=Row("padding", "padded rows need an attention mask"),
        words=_padding_in_words,
    )
    num_labels: int | None = setting(
        kind=int,
        metavar="N",
        span=(1, 2**16),  # each has an entry in the config
        group=Group.JOB,
        help="classes of a sequence classifier",
        only=(_CLASSIFIES,),
    )

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is not None:
                self._put(name, SETTINGS[name].read(value))
            elif SETTINGS[name].default is not None:
                self._put(name, SETTINGS[name].default)
        if self.use_dora and self.adapter in (None, Adapter.LORA):
            self._put("adapter", Adapter.DORA)
        if self.objective is Objective.REWARD and self.task is None:
            self._put("task", Task.SEQUENCE_CLASSIFICATION)
            self._put("num_labels", self.num_labels or 1)
        _check_tokens(self)
        self._fill_defaults()
        _check_conflicts(self)

    @property
    def has_reference(self) -> bool:
        """Whether the model is compared with what it was before: without its adapters, or with a copy of all weights.

        Sources: trl ``trainer/dpo_trainer.py``, ``kto_trainer.py`` and ``grpo_trainer.py`` (``ref_model``).
        """
        if self.objective is Objective.GRPO:
            return bool(self.beta)
        return self.objective in (Objective.DPO, Objective.KTO) and not self.precompute_ref_log_probs

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill_defaults(self) -> None:
        for one in _FILLED:
            if getattr(self, one.name) is None and one.suits(self):
                self._put(one.name, one.usual_for.get(self.adapter, one.usual) if self.adapter else one.usual)
        if self.method is Method.QLORA and self.quant is not Quant.INT8 and self.compute_dtype is None:
            self._put("compute_dtype", self.dtype)
        if self.gpus > 1:
            self._put("strategy", self.strategy or Strategy.FSDP2)
            for name, usual in _OF_STRATEGY[self.strategy or Strategy.FSDP2].items():
                if getattr(self, name) is None:
                    self._put(name, usual)
        if self.mixed_precision is None:
            full_fp16 = self.dtype is Dtype.FLOAT16 and self.method is Method.FULL
            fp16 = MixedPrecision.NO if full_fp16 else MixedPrecision.FP16
            self._put("mixed_precision", fp16 if self.dtype is Dtype.FLOAT16 else MixedPrecision.BF16)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """A setup from plain values, as in :meth:`to_dict`.

        Raises:
            InputError: a key is unknown (the nearest known one is named), or as the class itself.

        """
        for name in settings:
            if name not in SETTINGS:
                hint = did_you_mean(name, list(SETTINGS)) or f"known are {', '.join(sorted(SETTINGS))}"
                raise InputError(f"{name} is no setting; {hint}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, resolved, as JSON-ready values."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: _plain(value) for name, value in values.items()}

    def with_(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return replace(self, **changes)


def _plain(value: Any) -> Any:
    """As JSON has it: pairs are an object."""
    if not isinstance(value, tuple):
        return value
    return dict(value) if value and isinstance(value[0], tuple) else list(value)


SETTINGS: Mapping[str, Setting] = {
    one.name: replace(one.metadata["setting"], name=one.name) for one in fields(TrainingSetup)
}
"""By name, in the order of the class."""

_FILLED = tuple(one for one in SETTINGS.values() if one.usual is not None or one.usual_for)
_BOUND = tuple(one for one in SETTINGS.values() if one.only)
_FOREIGN = {
    method: frozenset(
        one.name for one in _BOUND if not all(method in only.values for only in one.only if only.other == "method")
    )
    for method in Method
}
"""Settings that take a value of their own, those that depend on others, and those that mean nothing for a method: known
beforehand, as a search makes hundreds of setups.
"""


def settings_for(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings without those that mean nothing for ``method``: to answer all methods at once."""
    foreign = _FOREIGN[method]
    return {name: value for name, value in settings.items() if name not in foreign} | {"method": method}


TENSOR_CORES_FOR_BFLOAT16 = (8, 0)
"""Compute capability from which GPUs multiply bfloat16 (CUDA C++ Programming Guide, "Compute Capabilities")."""


def with_defaults(
    settings: Mapping[str, Any], *, method: Method, positions: int | None, capability: tuple[int, int]
) -> dict[str, Any]:
    """The settings, with what people take where they do not say: it depends on the model and the GPU.

    What the stack takes comes first (:mod:`fitplan.stacks`). The length is the default, or what the model knows
    ``positions`` for, if that is less. A GPU that does not multiply
    bfloat16 is given float16 autocast; trained weights are then kept in float32, which the gradient scaler asks for.
    """
    chosen = given(settings)
    usual: dict[str, Any] = {"seq_len": DEFAULT_SEQ_LEN, **_of_stack(chosen, method)}
    usual["seq_len"] = min(usual["seq_len"], positions or usual["seq_len"])
    if capability < TENSOR_CORES_FOR_BFLOAT16 and not {"dtype", "mixed_precision"} & chosen.keys():
        full = method is Method.FULL or usual.get("dtype") is Dtype.FLOAT32
        usual |= {"dtype": Dtype.FLOAT32 if full else Dtype.FLOAT16, "mixed_precision": MixedPrecision.FP16}
    return {**usual, **chosen}


def _of_stack(chosen: Mapping[str, Any], method: Method) -> Mapping[str, Any]:
    stack = SETTINGS["stack"].read(chosen.get("stack"))
    if stack in (None, Stack.TRAINER):
        return {}
    from fitplan.stacks import defaults_of  # which is made of settings

    return defaults_of(stack, chosen, method)


def as_bitsandbytes_says(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a transformers ``BitsAndBytesConfig`` that was written down; nothing where it quantises nothing.

    Source: transformers ``utils/quantization_config.py``, whose defaults hold for what is not said.
    """
    if config.get("load_in_8bit"):
        return {"quant": str(Quant.INT8)}
    if not config.get("load_in_4bit"):
        return {}
    storage = str(config.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
    return {
        "quant": str(config.get("bnb_4bit_quant_type", "fp4")),
        "double_quant": bool(config.get("bnb_4bit_use_double_quant")),
        "compute_dtype": str(config.get("bnb_4bit_compute_dtype") or "float32").removeprefix("torch."),
        **({"quant_storage": storage} if storage in set(Dtype) else {}),
    }


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that somebody chose: ``None`` is none."""
    return {name: value for name, value in settings.items() if value is not None}


MAX_TOKENS = 2**24
"""In a micro-batch: up to there the trace knows what the batch holds, and so whether a mask is built."""
MAX_STEP_TOKENS = 2**26
"""In an optimizer step, all of whose batches are made."""


def _check_tokens(setup: TrainingSetup) -> None:
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


def _check_conflicts(setup: TrainingSetup) -> None:
    for one in _BOUND:
        value = getattr(setup, one.name)
        broken = None if value is None else next((only for only in one.only if not only.allows(setup)), None)
        if broken is not None:
            other = getattr(setup, broken.other)
            both = f"{one.name} {shown(value)} with {broken.other} {other}"
            raise SetupConflict(one.name, broken.other, f"{both}: {broken.why.format(other)}, or drop {one.name}")
    _check_gpus(setup)
    _check_adapter(setup)
    if setup.completion_len is not None and setup.completion_len > setup.seq_len:
        raise SetupConflict(
            "completion_len", "seq_len",
            f"completion_len {setup.completion_len} with seq_len {setup.seq_len}: rows hold the prompt as well; choose "
            "a longer seq_len",
        )  # fmt: skip
    if setup.objective is Objective.REWARD and setup.task is not Task.SEQUENCE_CLASSIFICATION:
        raise SetupConflict(
            "objective", "task",
            f"objective reward with task {setup.task}: a reward model is a classifier; choose task "
            "sequence-classification",
        )  # fmt: skip
    if setup.objective not in (Objective.SFT, Objective.REWARD) and setup.loss is not Loss.FUSED:
        raise SetupConflict(
            "objective", "loss",
            f"objective {setup.objective} with loss {setup.loss}: preferences are known with TRL's fused head only; "
            "choose stack trl, or loss fused",
        )  # fmt: skip
    if setup.loss is not Loss.LOGITS and setup.task not in (None, Task.CAUSAL_LM):
        raise SetupConflict(
            "loss", "task",
            f"loss {setup.loss} with task {setup.task}: it is for causal language models; choose loss logits",
        )  # fmt: skip
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


_OF_STRATEGY: Mapping[Strategy, Mapping[str, Any]] = {
    Strategy.DDP: {"gradient_as_bucket_view": False},
    Strategy.FSDP2: {"reshard_after_forward": True},
    Strategy.FSDP1: {
        "reshard_after_forward": True,
        "use_orig_params": True,
        "backward_prefetch": BackwardPrefetch.NO_PREFETCH,
    },
}
"""What ``Trainer`` takes (transformers ``training_args.py``, ``_process_fsdp_args``)."""


def _check_gpus(setup: TrainingSetup) -> None:
    """What the libraries refuse on several GPUs, or what is not known there."""
    for name in (
        "strategy",
        "reshard_after_forward",
        "use_orig_params",
        "backward_prefetch",
        "gradient_as_bucket_view",
    ):
        value = getattr(setup, name)
        if setup.gpus == 1 and value is not None:
            raise SetupConflict(
                name, "gpus",
                f"{name} {shown(value)} with gpus 1: one has nothing to share; choose gpus 2 or more, or drop {name}",
            )  # fmt: skip
    if setup.strategy not in SHARDED:
        return
    strategy, quantised = setup.strategy, setup.method is Method.QLORA
    refused = {
        "objective": setup.objective is not Objective.SFT and "is known with strategy ddp only; choose it",
        "activation_offloading": setup.activation_offloading and "is known with strategy ddp only; choose it",
        "optim": strategy is Strategy.FSDP2 and _OPTIMIZERS_REFUSED.get(setup.optim, False),
        "quant": setup.quant is Quant.INT8
        and "bitsandbytes keeps int8 weights as whole tensors, which are not sharded; choose quant nf4 or strategy ddp",
        "kbit_prepare": bool(quantised and strategy is Strategy.FSDP1 and setup.kbit_prepare)
        and "its float32 beside bfloat16 cannot be flattened (Must flatten tensors with uniform dtype); turn "
        "kbit_prepare off",
        "quant_storage": quantised and strategy is Strategy.FSDP1 and setup.quant_storage is None
        and "uint8 cannot be flattened (Cannot flatten integer dtype tensors); choose quant_storage bfloat16",
    }  # fmt: skip
    for name, why in refused.items():
        if why:
            value = "uint8" if getattr(setup, name) is None else shown(getattr(setup, name))
            raise SetupConflict(name, "strategy", f"{name} {value} with strategy {strategy}: {why}")


_OPTIMIZERS_REFUSED: Mapping[Optim, str] = {
    Optim.ADAFACTOR: "it cannot add sharded to whole tensors; choose optim adamw_torch_fused",
    **dict.fromkeys(
        (Optim.ADAMW_8BIT, Optim.PAGED_ADAMW_8BIT, Optim.PAGED_ADAMW_32BIT, Optim.LION_8BIT),
        "the optimizers of bitsandbytes have no rule for sharded tensors; choose optim adamw_torch_fused",
    ),
}
"""As PyTorch refuses: ``got mixed torch.Tensor and DTensor``, ``does not have a sharding strategy registered``."""


def _check_adapter(setup: TrainingSetup) -> None:
    """What peft's adapters cannot do together with other settings."""
    if setup.adapter is Adapter.DORA and setup.use_dora is False:
        raise SetupConflict(
            "use_dora", "adapter", "use_dora off with adapter dora: choose adapter lora, or drop use_dora"
        )
    if setup.layers_to_transform is not None and isinstance(setup.target_modules, str):
        raise SetupConflict(
            "layers_to_transform", "target_modules",
            f"layers_to_transform {shown(setup.layers_to_transform)} with target_modules {setup.target_modules}: peft "
            "picks layers for a list of names only; choose target_modules such as q_proj,v_proj",
        )  # fmt: skip
    if setup.adapter is Adapter.PREFIX and setup.gradient_checkpointing:
        raise SetupConflict(
            "adapter", "gradient_checkpointing",
            "adapter prefix with gradient_checkpointing on: checkpointing drops the cache that holds the prefix; "
            "turn gradient_checkpointing off, or choose adapter prompt",
        )  # fmt: skip
    if setup.method is not Method.QLORA:
        return
    if setup.adapter in (Adapter.LOHA, Adapter.LOKR) and setup.quant is not Quant.INT8:
        raise SetupConflict(
            "adapter", "quant",
            f"adapter {setup.adapter} with quant {setup.quant}: peft takes its shape from weights, which are packed; "
            "choose quant int8, or adapter lora",
        )  # fmt: skip
    if setup.init_lora_weights not in (None, LoraInit.TRUE, LoraInit.GAUSSIAN):
        raise SetupConflict(
            "init_lora_weights", "method",
            f"init_lora_weights {setup.init_lora_weights} with method qlora: it is for unquantised weights; "
            "choose method lora, or init_lora_weights gaussian",
        )  # fmt: skip
