"""Settings as a program gives them: the keyword arguments of the library's functions, for type checkers.

A test holds them to the list in :mod:`fitplan.setup`.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from fitplan.setup import (
    Adapter,
    Attention,
    BackwardPrefetch,
    Dtype,
    KbitCastBack,
    LoraInit,
    Loss,
    Method,
    MixedPrecision,
    Objective,
    Optim,
    Padding,
    Quant,
    Stack,
    Strategy,
    Task,
)

Modules = Sequence[str] | str | None
"""Names, in one string with commas, too; for some settings a regular expression."""
ForModules = Mapping[str, int] | Sequence[tuple[str, int]] | str | None
"""A number for each name; in one string as ``"q_proj=8,v_proj=16"``."""


class OtherSettings(TypedDict, total=False):
    """All but the method."""

    task: Task | str | None
    stack: Stack | str | None
    stack_version: str | None
    batch_size: int | None
    seq_len: int | None
    gradient_accumulation_steps: int | None
    adapter: Adapter | str | None
    lora_r: int | None
    lora_alpha: int | None
    lora_dropout: float | None
    target_modules: Modules
    exclude_modules: Modules
    modules_to_save: Modules
    layers_to_transform: Sequence[int] | int | str | None
    adapter_dtype: Dtype | str | None
    use_dora: bool | None
    use_rslora: bool | None
    rank_pattern: ForModules
    alpha_pattern: ForModules
    target_parameters: Modules
    init_lora_weights: LoraInit | str | None
    feedforward_modules: Modules
    oft_block_size: int | None
    boft_block_size: int | None
    boft_n_butterfly_factor: int | None
    num_virtual_tokens: int | None
    encoder_hidden_size: int | None
    quant: Quant | str | None
    double_quant: bool | None
    compute_dtype: Dtype | str | None
    kbit_prepare: bool | None
    kbit_cast_back: KbitCastBack | str | None
    dtype: Dtype | str | None
    mixed_precision: MixedPrecision | str | None
    gradient_checkpointing: bool | None
    attn: Attention | str | None
    optim: Optim | str | None
    use_liger_kernel: bool | None
    loss: Loss | str | None
    objective: Objective | str | None
    completion_len: int | None
    eval_batch_size: int | None
    beta: float | None
    precompute_ref_log_probs: bool | None
    activation_offloading: bool | None
    expandable_segments: bool | None
    padding: Padding | str | None
    num_labels: int | None
    gpus: int | None
    strategy: Strategy | str | None
    reshard_after_forward: bool | None
    use_orig_params: bool | None
    backward_prefetch: BackwardPrefetch | str | None
    gradient_as_bucket_view: bool | None
    quant_storage: Dtype | str | None


class GivenSettings(OtherSettings, total=False):
    """All settings."""

    method: Method | str | None
