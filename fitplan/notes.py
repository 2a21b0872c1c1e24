"""What the reader of an answer should know: how the checkpoint is stored, what is assumed of the GPU, what moved."""

from collections.abc import Iterator, Mapping, Sequence

from fitplan.configs.resolve import ModelConfig
from fitplan.cuda import AMPERE
from fitplan.devices.device import Device
from fitplan.devices.nccl import nccl_on
from fitplan.footprint.job import TrainingJob
from fitplan.setup import (
    TENSOR_CORES_FOR_BFLOAT16,
    Attention,
    Dtype,
    Method,
    MixedPrecision,
    Padding,
    Quant,
    Strategy,
    TrainingSetup,
)
from fitplan.tracer import installed_versions
from fitplan.units import gib


def notes_on(job: TrainingJob, versions: Mapping[str, str]) -> tuple[str, ...]:
    """The notes on the answer for one job; ``versions`` are those of the libraries that were traced."""
    installed = installed_versions(job.setup)
    return notes(job.model, job.device, [job.setup], versions, installed, job.remarks)


def notes(
    model: ModelConfig,
    gpu: Device | None,
    setups: Sequence[TrainingSetup],
    versions: Mapping[str, str],
    installed: Mapping[str, str],
    remarks: Sequence[str] = (),
) -> tuple[str, ...]:
    """The notes on an answer.

    Args:
        model: the model.
        gpu: the device; ``None`` where none was given.
        setups: what was answered.
        versions: of the libraries that were traced.
        installed: of the libraries that are installed here.
        remarks: what of the question could not be minded.

    """
    moved = sorted(
        f"{name} {version} (here {installed[name]})"
        for name, version in versions.items()
        if installed.get(name, version).partition("+")[0] != version.partition("+")[0]
    )
    found = [*_on_model(model), *_on_length(model, setups), *_on_checkpoints(setups)]
    if gpu is not None:
        found += [*_on_gpu(gpu, setups), *_on_attention(model, gpu, setups)]
    found += dict.fromkeys(note for setup in setups for note in _on_several(setup))
    found += remarks
    if moved:
        found.append(f"these figures were traced with {', '.join(moved)}; --trace takes the installed versions")
    return tuple(found)


def _on_several(setup: TrainingSetup) -> Iterator[str]:
    if setup.gpus == 1:
        return
    most = gib(nccl_on(setup.gpus).bytes + nccl_on(setup.gpus).spread_bytes)
    yield f"all figures are of one of {setup.gpus} GPUs; NCCL's buffers are not predicted, others measured up to {most}"
    if setup.strategy is Strategy.DDP:
        yield f"strategy ddp does not split the model: each of the {setup.gpus} GPUs needs all of this"
        return
    if setup.quant is not None and setup.quant_storage is None:
        yield "4-bit weights in uint8 are not sharded, each GPU holds all of them; --quant-storage bfloat16 shards them"
    if setup.method is Method.FULL and setup.dtype is not Dtype.FLOAT32 \
            and setup.mixed_precision is not MixedPrecision.NO:  # fmt: skip
        yield f"with strategy {setup.strategy} accelerate keeps weights that are trained in float32"
    if setup.gradient_accumulation_steps > 1:
        yield "between the micro-batches of a step each GPU keeps the gradients whole (accelerate's no_sync)"


def _on_model(model: ModelConfig) -> Iterator[str]:
    stored = model.settings.get("quantization_config")
    if model.bitsandbytes:
        yield "the checkpoint is quantised already (bitsandbytes): from_pretrained keeps it so, and LoRA on it is QLoRA"
    elif isinstance(stored, Mapping):
        how = stored.get("quant_method", "in its own way")
        yield f"the checkpoint is quantised ({how}); the answer is for its weights unquantised"
    if model.is_part:
        yield (
            "this model reads more than text; the answer is for rows of text, images and sound count as their tokens; "
            "what reads them is left out, or frozen where the text part is no model by itself"
        )


def _on_length(model: ModelConfig, setups: Sequence[TrainingSetup]) -> Iterator[str]:
    longest = max((setup.seq_len for setup in setups), default=0)
    if model.positions is not None and longest > model.positions:
        yield f"seq_len {longest} is more than the {model.positions} positions that {model.name} was made for"


def _on_gpu(gpu: Device, setups: Sequence[TrainingSetup]) -> Iterator[str]:
    if not gpu.is_usable_known:
        kept = gib(gpu.total_bytes - gpu.usable_bytes)
        yield f"how much the driver keeps of {gpu.name} is not known; {kept} are taken, as on its like"
    if gpu.capability < TENSOR_CORES_FOR_BFLOAT16 and any(_has_bfloat16(setup) for setup in setups):
        yield f"{gpu.name} does not multiply bfloat16, which is emulated there; float16 is faster"


def _on_attention(model: ModelConfig, gpu: Device, setups: Sequence[TrainingSetup]) -> Iterator[str]:
    """SDPA's kernel is the one that keeps a matrix of all pairs of positions where it costs.

    Without a mask transformers leaves the repeating of grouped heads to SDPA (``integrations/sdpa_attention.py``,
    ``use_gqa_in_sdpa``), which only FlashAttention can do, and that needs Ampere: the conditions are those of
    :func:`fitplan.trace.kernels.attention_backend`.
    """
    heads, grouped = (model.settings.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if gpu.capability >= AMPERE or not isinstance(heads, int) or not isinstance(grouped, int) or grouped >= heads:
        return
    if any(setup.attn in (None, Attention.SDPA) and setup.padding in (None, Padding.NONE) for setup in setups):
        yield (
            f"on {gpu.name} attention with grouped heads ({heads} on {grouped}) takes SDPA's math kernel, which keeps "
            "matrices of all pairs of positions; with a mask it takes another: --padding max_length --trace"
        )


def _on_checkpoints(setups: Sequence[TrainingSetup]) -> Iterator[str]:
    """Bitsandbytes' int8 product keeps its input in ``ctx.tensors`` (``autograd/_functions.py``, ``MatMul8bitLt``)."""
    if any(setup.quant is Quant.INT8 and setup.gradient_checkpointing for setup in setups):
        yield (
            "int8 layers keep their inputs where checkpoints that are not reentrant, the default of transformers 5, "
            "do not free them; gradient_checkpointing_kwargs={'use_reentrant': True} does, and is not in these figures"
        )


def _has_bfloat16(setup: TrainingSetup) -> bool:
    return setup.dtype is Dtype.BFLOAT16 or setup.mixed_precision is MixedPrecision.BF16
