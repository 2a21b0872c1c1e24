"""Traces jobs of the ground-truth benchmark with the library versions of the environment that runs it.

Started by ``benchmarks/groundtruth.py``: a JSON list of jobs on stdin, one JSON line for each result on stdout. A job
is ``{"kind", "model", "capability", ...}``; a result is bytes by name.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import transformers.utils
from transformers.utils import import_utils

if not import_utils.is_bitsandbytes_available():
    # transformers before 4.45 imports bitsandbytes only where it sees a GPU
    import_utils.is_bitsandbytes_available = lambda: True
    transformers.utils.is_bitsandbytes_available = import_utils.is_bitsandbytes_available

if not hasattr(import_utils, "is_flash_attn_greater_or_equal"):
    # transformers before 4.42 has no module for flash-attn: the models import its functions themselves
    sys.modules["transformers.modeling_flash_attention_utils"] = ModuleType("modeling_flash_attention_utils")

from fitplan.allocator.replay import replay
from fitplan.cuda import GRANULE, cublas_workspace
from fitplan.devices.context import context_on
from fitplan.devices.device import find_device
from fitplan.memory import estimate_trace
from fitplan.phase import Phase
from fitplan.setup import TrainingSetup
from fitplan.step.architecture import load_config
from fitplan.step.job import Place
from fitplan.step.model import build_skeleton, load_model
from fitplan.trace.events import Allocation, Category, Trace
from fitplan.trace.kernels import Gpu
from fitplan.trace.liger import liger_on_meta
from fitplan.trace.meta import meta_device
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import trace_training
from fitplan.verdict import judge

BEFORE_TRAINING = (Phase.LOAD, Phase.PREPARE)
"""``transformers.Trainer`` resets its memory counters when these are over."""

Job = dict[str, Any]
Result = dict[str, Any]


def _sizes(trace: Trace) -> Iterator[tuple[int, Any]]:
    """The bytes allocated after each event, every block rounded up as CUDA does, and the moment."""
    live = 0
    for allocation, sign, moment in trace.sizes():
        live += sign * -(-allocation.size // GRANULE) * GRANULE
        yield live, moment


# --- transformers.Trainer ---------------------------------------------------------------------------------------------


def trainer_peak(job: Job) -> Result:
    """The peak of a training run, without loading and preparing the model."""
    setup = TrainingSetup.from_dict(job["setup"])
    with ExitStack() as stack:
        if job.get("trl_bf16_cast"):
            stack.enter_context(_casting_as_trl())
        bitsandbytes = tuple(int(part) for part in job.get("bitsandbytes", "0.47.0").split("."))
        if bitsandbytes < (0, 43, 2):
            stack.enter_context(_keeping_4bit_inputs())
        if bitsandbytes < (0, 47, 0):
            stack.enter_context(_computing_in_the_type_of_the_input())
        run = trace_training(load_config(job["model"]), setup, Gpu(tuple(job["capability"])))
    peak, moment = max(
        ((live, moment) for live, moment in _sizes(run.trace) if moment.phase not in BEFORE_TRAINING),
        key=lambda found: found[0],
    )
    gpu = find_device(job["gpu"])
    made = replay(run.trace, limit_bytes=gpu.usable_bytes - context_on(gpu).bytes)
    estimate = replace(estimate_trace(run.trace), allocator=made.peaks.overhead)
    return {
        "peak": peak,
        "moment": moment.name,
        "device": judge(estimate, gpu).memory.bytes,
        "verdict": judge(estimate, gpu).fit,
    }


@contextmanager
def _casting_as_trl() -> Iterator[None]:
    """What trl's ``SFTTrainer`` adds to a 4-bit model under ``bf16``: norms stay float32, head and embedding do not.

    Source: trl 0.9.6 to 0.13.0, ``trl/trainer/utils.py``, ``peft_module_casting_to_bf16``.
    """
    import peft

    get_peft_model = peft.get_peft_model

    def get_and_cast(*args: Any, **kwargs: Any) -> Any:
        model = get_peft_model(*args, **kwargs)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
                module.to(torch.float32)
            elif any(part in name for part in ("lm_head", "embed_tokens")) and hasattr(module, "weight"):
                module.to(torch.bfloat16)
        return model

    peft.get_peft_model = get_and_cast
    try:
        yield
    finally:
        peft.get_peft_model = get_peft_model


@contextmanager
def _keeping_4bit_inputs() -> Iterator[None]:
    """What bitsandbytes did before 0.43.2: the input of every 4-bit product lives as long as its autograd node.

    Source: bitsandbytes 0.43.1, ``bitsandbytes/autograd/_functions.py``, ``MatMul4Bit.forward``:
    ``ctx.tensors = (A, B)``; since 0.43.2 ``(None, B)``.
    """
    from bitsandbytes.autograd._functions import MatMul4Bit

    forward = MatMul4Bit.forward

    def forward_and_keep(ctx: Any, A: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
        output = forward(ctx, A, *args, **kwargs)
        if any(ctx.needs_input_grad[:2]):
            ctx.kept_input = A
        return output

    MatMul4Bit.forward = staticmethod(forward_and_keep)
    try:
        yield
    finally:
        MatMul4Bit.forward = staticmethod(forward)


@contextmanager
def _computing_in_the_type_of_the_input() -> Iterator[None]:
    """What bitsandbytes did before 0.47.0: a 4-bit layer computes in the type of its first input, whatever was chosen.

    Behind a norm that was prepared for k-bit training this is float32.

    Source: bitsandbytes 0.46.0, ``bitsandbytes/nn/modules.py``, ``Linear4bit.__init__``: ``compute_type_is_set`` is
    ``False``; since 0.47.0 only where no type was chosen.
    """
    from bitsandbytes.nn import Linear4bit

    init = Linear4bit.__init__

    def init_undecided(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.compute_type_is_set = False

    Linear4bit.__init__ = init_undecided
    try:
        yield
    finally:
        Linear4bit.__init__ = init


# --- programs that do not use Trainer ---------------------------------------------------------------------------------


class _Program:
    """A program on the meta device, recorded: what is allocated now, and at most since :meth:`mark`."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._recorder = Recorder("meta")
        self._stack = ExitStack()
        self._mark = 0

    def __enter__(self) -> "_Program":
        self._stack.enter_context(self._recorder)
        self._stack.enter_context(meta_device(self._gpu))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def observe(self) -> Callable[..., None]:
        return self._recorder.enter

    def open_cublas(self, threads: int) -> None:
        """The workspaces of ``threads`` cuBLAS handles: one for forward, one for backward."""
        for _ in range(threads):
            size = cublas_workspace(self._gpu.capability)
            self._recorder.reserve(Allocation(size, Category.WORKSPACES, "cuBLAS", "cublasCreate"))

    def mark(self) -> None:
        self._mark = len(self._recorder.trace.events)

    def allocated(self) -> int:
        return [live for live, _ in _sizes(self._recorder.trace)][-1]

    def peak(self) -> int:
        levels = [live for live, _ in _sizes(self._recorder.trace)]
        return max(levels[max(0, self._mark - 1) :])


def _model(job: Job, program: _Program, setup: TrainingSetup, use_cache: bool) -> Any:
    config, place = load_config(job["model"]), Place("meta", "cuda")
    model = load_model(build_skeleton(config, setup, place), config, setup, place, program.observe)
    model.config.use_cache = use_cache
    return model


def metamathqa_step(job: Job) -> Result:
    """Bytes allocated at the end of a step of peft's MetaMathQA comparison.

    Source: huggingface/peft ``method_comparison/MetaMathQA/run.py``, ``train``: a plain loop, where gradients, the
    batch and the outputs (logits, key-value cache) are still there when memory is read.
    """
    setup = TrainingSetup.from_dict(job["setup"])
    with _Program(Gpu(tuple(job["capability"]))) as program:
        model = _model(job, program, setup, use_cache=True)
        program.open_cublas(2)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
        for _ in range(2):
            ids = torch.ones((setup.batch_size, setup.seq_len), dtype=torch.int64).to("meta")
            batch = {"input_ids": ids, "attention_mask": ids.clone(), "labels": ids.clone()}
            optimizer.zero_grad()
            outputs = model(**batch, num_items_in_batch=setup.batch_size * setup.seq_len)
            loss = outputs.loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return {"allocated": program.allocated()}


def notebook_step(job: Job) -> Result:
    """Bytes that a forward pass, and then a backward pass, leave behind in the fsdp_qlora notebooks.

    Source: AnswerDotAI/fsdp_qlora ``nbs/00-profile_lora_qlora.ipynb``, ``profile_model``: the whole model, adapters
    included, in bfloat16; ``output.logits.mean().backward()``.
    """
    setup = TrainingSetup.from_dict(job["setup"])
    result = {}
    with _Program(Gpu(tuple(job["capability"]))) as program:
        plain = setup.with_(gradient_checkpointing=False)  # else the embedding is asked for gradients, unlike there
        model = _model(job, program, plain, use_cache=True).to(torch.bfloat16)
        if setup.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        program.open_cublas(1)
        before = program.allocated()
        with torch.no_grad() if job["inference"] else nullcontext():
            output = model(torch.ones((1, setup.seq_len), dtype=torch.int64).to("meta"))
        result["forward"] = program.allocated() - before
        if not job["inference"]:
            program.open_cublas(job["first_backward"])
            output.logits.mean().backward()
            result["backward"] = program.allocated() - before
    return result


# --- single operators -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """One operator, set up.

    Attributes:
        forward: runs it.
        backward: runs backward from its output.
        cublas_handles: how many handles its script opens.
        kept: what the script holds and the operator does not use.

    """

    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    cublas_handles: int = 0
    kept: Any = None


def operator_peak(job: Job) -> Result:
    """The peak of one operator, forward and backward, over and over, as Liger-Kernel's benchmarks run it.

    Source: linkedin/Liger-Kernel ``benchmark/scripts/``: ``utils.py`` (``_test_memory``) and one script an operator.
    """
    gpu = Gpu(tuple(job["capability"]), job["multiprocessors"])
    with ExitStack() as stack:
        if job["liger"]:
            stack.enter_context(liger_on_meta(gpu))
        program = stack.enter_context(_Program(gpu))
        settings = {name.lower(): value for name, value in job["config"].items()}
        operator = (LIGER_OPERATORS if job["liger"] else OPERATORS)[job["operator"]](job["x"], **settings)
        program.open_cublas(operator.cublas_handles)  # all, also for a forward: the script ran backward before
        if job["mode"] == "backward":
            output = operator.forward()
            gradient = torch.randn_like(output)
        for _ in range(3):
            program.mark()
            if job["mode"] == "forward":
                operator.forward()
            elif job["mode"] == "backward":
                output.backward(gradient, retain_graph=True)
            else:
                operator.backward(operator.forward())
        return {"peak": program.peak()}


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return found


def _input(*shape: int, dtype: str) -> torch.Tensor:
    return torch.randn(*shape, dtype=_dtype(dtype), device="meta", requires_grad=True)


def _with_random_gradient(output: torch.Tensor) -> None:
    output.backward(torch.randn_like(output), retain_graph=True)


def _cross_entropy(x: int, b: int, t: int) -> Operator:
    logits = _input(b * t, x, dtype="float32")
    target = torch.ones(b * t, dtype=torch.int64, device="meta")
    return Operator(lambda: torch.nn.CrossEntropyLoss()(logits, target), torch.Tensor.backward)


def _fused_linear_cross_entropy(x: int, h: int, v: int, mode: str, dtype: str) -> Operator:
    """The script builds the Hugging Face and the Liger variant and runs one; the other's weight stays."""
    del mode  # says how the time was measured
    head, other = (torch.nn.Linear(h, v, bias=False, dtype=_dtype(dtype), device="meta") for _ in range(2))
    hidden = _input(x, h, dtype=dtype)
    target = torch.ones(x, dtype=torch.int64, device="meta")
    return Operator(lambda: torch.nn.CrossEntropyLoss()(head(hidden), target), torch.Tensor.backward, 2, other)


class _RMSNorm(torch.nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size, device="meta"))
        self.eps = eps

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        dtype = hidden.dtype
        hidden = hidden.to(torch.float32)
        if residual is not None:
            hidden = hidden + residual.to(torch.float32)
            residual = hidden
        variance = hidden.pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.eps)
        normed = self.weight * hidden.to(dtype)
        return normed if residual is None else (normed, residual.to(dtype))


def _norm(norm: torch.nn.Module, other: torch.nn.Module, hidden: torch.Tensor) -> Operator:
    """Both variants are built; one is run."""
    gradient = torch.randn_like(hidden)
    return Operator(lambda: norm(hidden), lambda output: output.backward(gradient, retain_graph=True), kept=other)


def _rms_norm(x: int, m: int, dtype: str, eps: float) -> Operator:
    return _norm(_RMSNorm(x, eps), _RMSNorm(x, eps), _input(m, x, dtype=dtype))


def _layer_norm(x: int, m: int, dtype: str, eps: float) -> Operator:
    norm, other = (torch.nn.LayerNorm(x, eps=eps, device="meta") for _ in range(2))
    return _norm(norm, other, _input(m, x, dtype=dtype))


def _fused_add_rms_norm(x: int, m: int, dtype: str, eps: float) -> Operator:
    """Three variants are built (one holds two weights); one is run."""
    norm, *others = (_RMSNorm(x, eps) for _ in range(4))
    hidden, residual = (_input(m, x, dtype=dtype) for _ in range(2))
    gradients = [torch.randn_like(hidden) for _ in range(2)]
    return Operator(
        lambda: norm(hidden, residual), lambda outputs: torch.autograd.backward(outputs, gradients), kept=others
    )


def _gated_mlp(
    x: int,
    hidden_size: int,
    intermediate_size: int,
    hidden_act: str,
    dtype: str,
    b: int = 0,
    bsz: int = 0,
    kind: type[torch.nn.Module] | None = None,
    **_: Any,
) -> Operator:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    config = LlamaConfig(hidden_size=hidden_size, intermediate_size=intermediate_size, hidden_act=hidden_act)
    with torch.device("meta"):
        mlp = (kind or LlamaMLP)(config).to(_dtype(dtype))
    hidden = _input(b or bsz, x, hidden_size, dtype=dtype)
    return Operator(lambda: mlp(hidden), _with_random_gradient, 2)


def _rope(
    x: int,
    dtype: str,
    num_q_heads: int,
    num_kv_heads: int,
    hidden_size: int | None = None,
    seq_len: int | None = None,
    rotate: Callable[..., Any] | None = None,
) -> Operator:
    """The script computes the angles first: a matrix product, which opens a cuBLAS handle."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    hidden_size, seq_len = hidden_size or x, seq_len or x
    width = hidden_size // num_q_heads
    query, key = (
        _input(1, seq_len, heads, width, dtype=dtype).transpose(1, 2) for heads in (num_q_heads, num_kv_heads)
    )
    gradients = torch.randn_like(query), torch.randn_like(key)
    cos, sin = (torch.empty(1, seq_len, width, dtype=_dtype(dtype), device="meta") for _ in range(2))
    positions, frequencies = torch.arange(seq_len, device="meta"), torch.empty(width // 2, device="meta")

    def backward(outputs: Any) -> None:
        torch.autograd.grad(outputs, (query, key), gradients, allow_unused=True, retain_graph=True)

    return Operator(
        lambda: (rotate or apply_rotary_pos_emb)(query, key, cos, sin), backward, 1, (positions, frequencies)
    )


OPERATORS: dict[str, Callable[..., Operator]] = {
    "cross_entropy": _cross_entropy,
    "fused_linear_cross_entropy": _fused_linear_cross_entropy,
    "rms_norm": _rms_norm,
    "fused_add_rms_norm": _fused_add_rms_norm,
    "layer_norm": _layer_norm,
    "swiglu": _gated_mlp,
    "geglu": _gated_mlp,
    "tiled_swiglu": _gated_mlp,
    "tiled_geglu": _gated_mlp,
    "rope": _rope,
}

# Liger's own variants. Where a script builds both, the other's weights stay.


def _liger_cross_entropy(x: int, b: int, t: int) -> Operator:
    from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss

    logits, loss = _input(b * t, x, dtype="float32"), LigerCrossEntropyLoss()
    target = torch.ones(b * t, dtype=torch.int64, device="meta")
    return Operator(lambda: loss(logits, target), torch.Tensor.backward)


def _liger_fused_linear_cross_entropy(x: int, h: int, v: int, mode: str, dtype: str) -> Operator:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    plain, loss = _fused_linear_cross_entropy(x, h, v, mode, dtype), LigerFusedLinearCrossEntropyLoss()
    hidden, target = _input(x, h, dtype=dtype), torch.ones(x, dtype=torch.int64, device="meta")
    head = torch.nn.Linear(h, v, bias=False, dtype=_dtype(dtype), device="meta")
    return Operator(lambda: loss(head.weight, hidden, target), torch.Tensor.backward, 2, plain.kept)


def _liger_rms_norm(x: int, m: int, dtype: str, eps: float) -> Operator:
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    return _norm(LigerRMSNorm(x, eps=eps).to("meta"), _RMSNorm(x, eps), _input(m, x, dtype=dtype))


def _liger_layer_norm(x: int, m: int, dtype: str, eps: float) -> Operator:
    from liger_kernel.transformers.layer_norm import LigerLayerNorm

    other = torch.nn.LayerNorm(x, eps=eps, device="meta")
    return _norm(LigerLayerNorm(x, eps=eps).to("meta"), other, _input(m, x, dtype=dtype))


def _liger_swiglu(x: int, **settings: Any) -> Operator:
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    return _gated_mlp(x, **settings, kind=LigerSwiGLUMLP)


def _liger_geglu(x: int, **settings: Any) -> Operator:
    from liger_kernel.transformers.geglu import LigerGEGLUMLP

    return _gated_mlp(x, **settings, kind=LigerGEGLUMLP)


def _liger_rope(x: int, **settings: Any) -> Operator:
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    return _rope(x, **settings, rotate=liger_rotary_pos_emb)


LIGER_OPERATORS: dict[str, Callable[..., Operator]] = {
    "cross_entropy": _liger_cross_entropy,
    "fused_linear_cross_entropy": _liger_fused_linear_cross_entropy,
    "rms_norm": _liger_rms_norm,
    "layer_norm": _liger_layer_norm,
    "swiglu": _liger_swiglu,
    "geglu": _liger_geglu,
    "tiled_swiglu": _liger_swiglu,
    "tiled_geglu": _liger_geglu,
    "rope": _liger_rope,
}

KINDS: dict[str, Callable[[Job], Result]] = {
    "trainer": trainer_peak,
    "metamathqa": metamathqa_step,
    "notebook": notebook_step,
    "operator": operator_peak,
}


def main() -> None:
    """Jobs from stdin, results to stdout."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no result
    for job in json.load(sys.stdin):
        try:
            result = KINDS[job["kind"]](job)
        except Exception as error:  # one row that cannot be traced must not hide the others
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
