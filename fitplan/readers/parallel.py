"""How several GPUs share a job: accelerate's YAML, DeepSpeed's JSON, and what arguments of programs say of it.

Sources: accelerate 1.15 ``utils/dataclasses.py`` (``FullyShardedDataParallelPlugin``); transformers
5.24 ``training_args.py`` (``_process_fsdp_args``).
"""

from collections.abc import Mapping
from typing import Any

from fitplan.readers.common import ONE_GPU
from fitplan.readers.reading import Keys, Reading, whole
from fitplan.setup import BackwardPrefetch, MixedPrecision, Strategy

OPEN_NUMBER = 2
"""GPUs, where several are meant and nobody says how many."""

_COUNTS = ("nproc_per_node", "num_processes")
"""``torchrun`` and ``accelerate launch``."""


def read_accelerate(keys: Keys) -> Reading:
    """What ``accelerate config`` writes."""
    kind, ranks = str(keys.get("distributed_type", "NO")).upper(), whole(keys.get("num_processes", 1))
    config = keys.get("fsdp_config")
    for key in ("distributed_type", "num_processes", "fsdp_config", "deepspeed_config"):
        keys.know(key, "not in the answer")
    if kind == "FSDP" and ranks != 1:
        keys.put("num_processes", "gpus", ranks)
        _fsdp(keys, config if isinstance(config, Mapping) else {}, version=1, of_trainer=False)
    elif kind == "MULTI_GPU" and ranks != 1:
        keys.put("num_processes", "gpus", ranks)
        _is(keys, "distributed_type", Strategy.DDP)
    elif kind not in ("NO", "MULTI_GPU", "FSDP"):
        keys.left_out.append(f"{kind} on {ranks} GPUs: {ONE_GPU}")
    mixed = str(keys.get("mixed_precision", "no")).lower()
    if mixed in set(MixedPrecision):
        keys.put("mixed_precision", "mixed_precision", mixed)
    elif mixed == "false":
        keys.put("mixed_precision", "mixed_precision", "no")
    else:
        keys.left_out.append(f"mixed_precision {mixed}: it is answered as bf16")
    return keys.read(None)


def share(keys: Keys, *, version: int, by_config: bool = False) -> None:
    """What arguments of a program, or of the launcher before it, say of several GPUs.

    Args:
        keys: of the arguments.
        version: of FSDP, where nobody says.
        by_config: whether FSDP is meant where there is a config of it and no other word.

    """
    count = next((key for key in _COUNTS if isinstance(whole(keys.get(key)), int)), None)
    asked, config = keys.get("fsdp"), keys.get("fsdp_config")
    sharded = asked not in (None, False, "", [], "False") or keys.is_on("use_fsdp") or (by_config and bool(config))
    if count is not None and whole(keys.get(count)) == 1:
        return
    if count is not None:
        keys.put(count, "gpus", whole(keys.get(count)))
    elif sharded:
        keys.settings["gpus"] = OPEN_NUMBER
        keys.traps.append(f"it does not say on how many GPUs: {OPEN_NUMBER} are taken where you give no gpus")
    if not sharded:
        if count is not None and not keys.get("deepspeed"):
            _is(keys, count, Strategy.DDP)
        return
    given = {key: value for key, value in keys.values.items() if key.startswith("fsdp_") and key != "fsdp_config"}
    if isinstance(config, Mapping):
        given = {**given, **config}
    elif config is not None:
        keys.left_out.append(f"fsdp_config {config}: a file of its own; its defaults are taken")
    words = asked.split() if isinstance(asked, str) else asked if isinstance(asked, list) else []
    for word in (str(word).lower() for word in words):
        if word == "offload":
            given.setdefault("cpu_offload", True)
        elif word != "auto_wrap":
            given.setdefault("reshard_after_forward", word)
    _fsdp(keys, given, version=version, of_trainer=True)
    for key in ("fsdp", "fsdp_config", "use_fsdp", *(key for key in keys.values if key.startswith("fsdp_"))):
        keys.know(key, f"strategy {keys.settings['strategy']}")


_WHOLE_AFTER_FORWARD = ("shard_grad_op", "false", "2", "no", "_hybrid_shard_zero2", "hybrid_shard_zero2")
_HYBRID = ("hybrid_shard", "hybrid_shard_zero2", "_hybrid_shard_zero2", "4", "5")
_REPLICATED = ("no_shard", "3")


def _fsdp(keys: Keys, config: Mapping[str, Any], *, version: int, of_trainer: bool) -> None:
    """A config of FSDP, with or without ``fsdp_`` before its names."""
    said = {str(key).removeprefix("fsdp_"): value for key, value in config.items() if value is not None}
    strategy = Strategy.FSDP2 if str(said.get("version", version)) == "2" else Strategy.FSDP1
    sharding = str(said.get("sharding_strategy", said.get("reshard_after_forward", "full_shard"))).lower()
    if sharding in _REPLICATED:
        _is(keys, "fsdp_config", Strategy.DDP)
        return
    _is(keys, "fsdp_config", strategy)
    keys.settings["reshard_after_forward"] = sharding not in _WHOLE_AFTER_FORWARD
    if sharding in _HYBRID:
        keys.left_out.append("hybrid sharding, over the GPUs of a node: it is answered as over all of them")
    if strategy is Strategy.FSDP1:
        keys.settings["use_orig_params"] = _on(said.get("use_orig_params", of_trainer))
        prefetch = str(said.get("backward_prefetch", "no_prefetch")).lower()
        known = prefetch if prefetch in set(BackwardPrefetch) else BackwardPrefetch.NO_PREFETCH
        keys.settings["backward_prefetch"] = BackwardPrefetch(known)
        if _on(said.get("forward_prefetch")):
            keys.left_out.append("forward_prefetch: a second layer that is gathered in advance")
    if _on(said.get("activation_checkpointing")):
        keys.settings["gradient_checkpointing"] = True
    if any(_on(said.get(name)) for name in ("offload_params", "cpu_offload", "offload")):
        keys.left_out.append("parameters on the host: the answer keeps them on the GPU")


def _is(keys: Keys, key: str, strategy: Strategy) -> None:
    keys.settings["strategy"] = strategy
    keys.know(key, f"strategy {strategy}")


def _on(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "1", "on")


def read_deepspeed(keys: Keys) -> Reading:
    """A config of DeepSpeed."""
    zero = keys.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    keys.know("zero_optimization", "not in the answer")
    nearest = {3: "; strategy fsdp2 is near it", 0: "; strategy ddp is near it"}.get(stage, "")
    keys.left_out.append(f"ZeRO stage {stage}: {ONE_GPU}{nearest}")
    offloaded = [
        name for name in ("offload_optimizer", "offload_param")
        if isinstance(zero, dict) and isinstance(zero.get(name), dict) and zero[name].get("device", "none") != "none"
    ]  # fmt: skip
    if offloaded:
        keys.left_out.append(f"{' and '.join(offloaded)}: what lies on the host")
    batch = whole(keys.get("train_micro_batch_size_per_gpu"))
    if isinstance(batch, int):
        keys.put("train_micro_batch_size_per_gpu", "batch_size", batch)
    steps = whole(keys.get("gradient_accumulation_steps"))
    if isinstance(steps, int):
        keys.put("gradient_accumulation_steps", "gradient_accumulation_steps", steps)
    for key in ("bf16", "fp16"):
        part = keys.get(key)
        if isinstance(part, dict) and part.get("enabled") is True:
            keys.put(key, "mixed_precision", key)
    return keys.read(None)
