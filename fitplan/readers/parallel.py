"""Files that say how several GPUs share a job: accelerate's YAML and DeepSpeed's JSON. They name no model."""

from fitplan.readers.common import ONE_GPU
from fitplan.readers.reading import Keys, Reading, whole
from fitplan.setup import MixedPrecision


def read_accelerate(keys: Keys) -> Reading:
    """What ``accelerate config`` writes."""
    kind, ranks = str(keys.get("distributed_type", "NO")), keys.get("num_processes", 1)
    for key in ("distributed_type", "num_processes"):
        keys.know(key, "not in the answer")
    if kind != "NO":
        keys.left_out.append(f"{kind} on {ranks} GPUs: {ONE_GPU}")
    for key in ("fsdp_config", "deepspeed_config"):
        keys.know(key, "not in the answer")
    mixed = str(keys.get("mixed_precision", "no")).lower()
    if mixed in set(MixedPrecision):
        keys.put("mixed_precision", "mixed_precision", mixed)
    elif mixed == "false":
        keys.put("mixed_precision", "mixed_precision", "no")
    else:
        keys.left_out.append(f"mixed_precision {mixed}: it is answered as bf16")
    return keys.read(None)


def read_deepspeed(keys: Keys) -> Reading:
    """A config of DeepSpeed."""
    zero = keys.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    keys.know("zero_optimization", "not in the answer")
    keys.left_out.append(f"ZeRO stage {stage}: {ONE_GPU}")
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
