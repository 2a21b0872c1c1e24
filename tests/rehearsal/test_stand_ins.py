"""The stand-ins: a GPU as the libraries see it, its memory, and values that stay true."""

import pytest

from fitplan.devices.context import context_on
from fitplan.devices.device import find_device
from fitplan.trace.kernels import Gpu, attention_backend, cudnn_backward_scratch, flash_backward_scratch
from tests.rehearsal.conftest import Ask

GIB = 2**30


@pytest.mark.parametrize("gpu", ["t4", "a100", "4090", "h100", "b200"])
def test_the_gpu_is_as_told(ask: Ask, gpu: str) -> None:
    device = find_device(gpu)
    free, total, *rest = ask(
        "p = torch.cuda.get_device_properties(0)\n"
        "answer = [*torch.cuda.mem_get_info(), p.name, p.major, p.minor, p.multi_processor_count]",
        gpu=gpu,
    )
    assert total == device.usable_bytes
    assert free == device.usable_bytes - context_on(device).bytes
    assert rest == [f"NVIDIA {device.name}", *device.capability, device.multiprocessors]


def test_memory_is_counted_and_has_an_end(ask: Ask) -> None:
    device = find_device("4090")
    answer = ask(
        """
kept, asked = [], 0
try:
    while True:
        kept.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError as error:
    asked = "Tried to allocate 1024.00 MiB" in str(error)
most = len(kept)
del kept
torch.cuda.empty_cache()
answer = [most, asked, torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]]
""",
        gpu="4090",
    )
    free = device.usable_bytes - context_on(device).bytes
    assert answer == [free // GIB, True, 0, free]


def test_a_failed_request_gets_what_the_allocator_had_kept(ask: Ask) -> None:
    """PyTorch's own allocator frees its cache and tries again."""
    answer = ask(
        """
first = torch.empty(15 * 2**30, dtype=torch.uint8, device="cuda")
del first
second = torch.empty(16 * 2**30, dtype=torch.uint8, device="cuda")
answer = [torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()]
""",
        gpu="4090",
    )
    assert answer == [1, 16 * GIB]


def test_expandable_segments(ask: Ask) -> None:
    answer = ask(
        """
x = torch.empty(33 * 2**20, dtype=torch.uint8, device="cuda")
held = [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]
try:
    torch.empty(100 * 2**30, dtype=torch.uint8, device="cuda")
    held.append("no error")
except torch.OutOfMemoryError:
    held.append("out of memory")
answer = held
""",
        PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
    )
    assert answer == [33 * 2**20, 40 * 2**20, "out of memory"]  # pages of 20 MiB


def test_every_gpu_has_memory_of_its_own(ask: Ask) -> None:
    answer = ask(
        """
x = torch.empty(2**30, dtype=torch.uint8, device="cuda:1")
answer = [torch.cuda.device_count(), torch.cuda.mem_get_info(0)[0] - torch.cuda.mem_get_info(1)[0]]
""",
        count=2,
    )
    assert answer == [2, GIB]


def test_fresh_memory_is_zero_and_small_copies_are_true(ask: Ask) -> None:
    answer = ask(
        """
sent = torch.randn(100).cuda()
back = sent.cpu().tolist() == sent.cpu().tolist() and bool(sent.cpu().abs().sum() > 0)
answer = [back, torch.empty(1000, device="cuda").cpu().abs().sum().item()]
"""
    )
    assert answer == [True, 0.0]


TRUE_VALUES = {
    "mask of ones": ("torch.ones(4, 8, dtype=torch.int64).cuda().bool().all().item()", True),
    "padded": ("(torch.tensor([[1, 1, 0]]).cuda() == 1).all().item()", False),
    "positions": ("torch.tensor([0, 3, 0, 5]).cuda().nonzero().flatten().tolist()", [1, 3]),
    "masked": ("list(torch.randn(4, 2, device='cuda')[torch.tensor([1, 0, 1, 1]).cuda().bool()].shape)", [3, 2]),
    "masked select": (
        "torch.randn(4, device='cuda').masked_select(torch.tensor([1, 0, 1, 1]).cuda().bool()).numel()",
        3,
    ),
    "cumulative": ("torch.tensor([3, 1, 2]).cuda().cumsum(0).tolist()", [3, 4, 6]),
    "repeated": ("torch.repeat_interleave(torch.tensor([2, 1], device='cuda')).tolist()", [0, 0, 1]),
    "made on the device": ("torch.arange(3, 6, device='cuda').tolist()", [3, 4, 5]),
    "ones": ("torch.ones(3, device='cuda').sum().item()", 3.0),
    "mean of a mask": ("torch.tensor([1, 0], device='cuda').float().mean().item()", 0.5),
    "equal": ("torch.equal(torch.arange(3).cuda(), torch.arange(3).cuda())", True),
    "distinct": ("torch.unique(torch.tensor([5, 2, 5]).cuda()).tolist()", [2, 5]),
    "more than a copy holds": ("int(torch.ones(2**18, dtype=torch.int64).cuda().sum())", 2**18),
    "not a number": ("torch.isnan(torch.randn(4, device='cuda') * 2).any().item()", False),
    "experts": ("torch.randn(2, 4, device='cuda').softmax(-1).topk(2).indices.tolist()", [[0, 1], [2, 3]]),
}


def test_values_that_memory_depends_on_are_true(ask: Ask) -> None:
    found = ask(f"answer = [{', '.join(code for code, _ in TRUE_VALUES.values())}]")
    assert dict(zip(TRUE_VALUES, found, strict=True)) == {name: value for name, (_, value) in TRUE_VALUES.items()}


def test_what_cannot_be_known_is_taken_largest_and_told(ask: Ask) -> None:
    answer = ask(
        "from rehearsed import values\n"
        "weights = torch.randn(2**16, device='cuda')\n"
        "answer = [weights[weights > 0].numel(), len(values.assumed)]"
    )
    assert answer == [2**16, 1]


def test_gradients_are_added_in_place(ask: Ask) -> None:
    """As on a GPU: watching the values must not hold a gradient."""
    answer = ask(
        """
class Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.reshape(-1, 4000).t() @ x.reshape(-1, 512)
emb = torch.nn.Embedding(4000, 512, device="cuda")
ids = torch.zeros(1, 8, dtype=torch.int64, device="cuda")
Head.apply(emb(ids), emb.weight).sum().backward()  # workspaces are there from now on
emb.weight.grad = None
loss = Head.apply(emb(ids), emb.weight).sum()
before = torch.cuda.memory_stats()["requested_bytes.all.current"]
torch.cuda.reset_peak_memory_stats()
loss.backward()
answer = (torch.cuda.memory_stats()["requested_bytes.all.peak"] - before) / emb.weight.nbytes
"""
    )
    assert answer == pytest.approx(2, abs=0.1)  # the two gradients, and no sum beside them


_CASES = """
import itertools
names = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
cases = CASES
answer = []
for dtype, heads, kv, length, width, values, mask, dropout, gqa in cases:
    q = torch.empty(2, heads, length, width, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    k = torch.empty(2, kv, length, width, device="cuda", dtype=q.dtype, requires_grad=True)
    v = torch.empty(2, kv, length, values, device="cuda", dtype=q.dtype, requires_grad=True)
    m = torch.ones(2, 1, length, length, device="cuda", dtype=torch.bool) if mask else None
    answer.append(names[torch._fused_sdp_choice(q, k, v, m, dropout, m is None and length > 1, enable_gqa=gqa)])
"""

ATTENTION = [
    ("bfloat16", 8, 8, 256, 128, 128, False, 0.0, False),
    ("float16", 8, 8, 256, 128, 128, False, 0.0, False),
    ("float32", 8, 8, 256, 128, 128, False, 0.0, False),
    ("bfloat16", 8, 2, 256, 128, 128, False, 0.0, True),
    ("bfloat16", 8, 2, 256, 128, 128, True, 0.0, True),
    ("bfloat16", 8, 2, 256, 128, 128, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 128, 128, True, 0.0, False),
    ("float16", 8, 8, 256, 64, 64, True, 0.0, False),
    ("bfloat16", 8, 8, 255, 128, 128, True, 0.0, False),
    ("bfloat16", 8, 8, 256, 128, 128, False, 0.1, False),
    ("bfloat16", 8, 8, 256, 128, 128, True, 0.1, False),
    ("bfloat16", 8, 8, 256, 72, 72, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 100, 100, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 100, 100, True, 0.0, False),
    ("bfloat16", 8, 8, 256, 20, 20, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 192, 192, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 256, 256, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 512, 512, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 192, 128, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 96, 64, False, 0.0, False),
    ("bfloat16", 8, 8, 256, 256, 128, False, 0.0, False),
    ("bfloat16", 8, 8, 1, 128, 128, False, 0.0, False),
    ("float32", 8, 8, 256, 5, 5, False, 0.0, False),
    ("float32", 8, 8, 256, 6, 6, True, 0.0, False),
]


@pytest.mark.parametrize("gpu", ["t4", "v100", "a100", "3090", "4090", "h100", "b200", "5090"])
def test_attention_goes_where_pytorch_sends_it(ask: Ask, gpu: str) -> None:
    import torch

    chosen = ask(_CASES.replace("CASES", repr(ATTENTION), 1), gpu=gpu)
    rule = Gpu.exactly(find_device(gpu).capability, None)

    def ours(
        dtype: str, heads: int, kv: int, length: int, width: int, values: int, mask: bool, p: float, gqa: bool
    ) -> str:
        q, k, v = (
            torch.empty(2, n, length, w, device="meta", dtype=getattr(torch, dtype))
            for n, w in ((heads, width), (kv, width), (kv, values))
        )
        return attention_backend(rule, q, k, v, torch.ones(1, device="meta") if mask else None, p, gqa)

    assert dict(zip(ATTENTION, chosen, strict=True)) == {case: ours(*case) for case in ATTENTION}


@pytest.mark.parametrize("gpu", ["a100", "h100"])
@pytest.mark.parametrize("kv", [8, 2])
@pytest.mark.parametrize("length", [250, 384])
def test_scratch_of_attention_is_what_the_rules_say(ask: Ask, gpu: str, kv: int, length: int) -> None:
    """Backward, beyond its results: what PyTorch's own host code asks for."""
    import torch

    code = f"""
def of(heads):
    made = torch.randn(2, {length}, heads, 64, device="cuda", dtype=torch.bfloat16)
    return made.transpose(1, 2).detach().requires_grad_()
q, k, v = of(8), of({kv}), of({kv})
for _ in range(2):
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa={kv != 8})
    g = torch.ones_like(o)
    q.grad = k.grad = v.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    o.backward(g)
answer = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - q.nbytes - k.nbytes - v.nbytes
"""
    query = torch.empty(2, 8, length, 64, device="meta", dtype=torch.bfloat16)
    key = torch.empty(2, kv, length, 64, device="meta", dtype=torch.bfloat16)
    rule = cudnn_backward_scratch(query, key).nbytes if gpu == "h100" else sum(
        t.nbytes for t in flash_backward_scratch(query, key)
    )  # fmt: skip
    assert ask(code, gpu=gpu) == rule


def test_convolutions_run(ask: Ask) -> None:
    answer = ask(
        """
layer = torch.nn.Conv2d(3, 8, 3, padding=1, device="cuda")
found = layer(torch.randn(2, 3, 32, 32, device="cuda"))
found.sum().backward()
answer = [list(found.shape), list(layer.weight.grad.shape)]
"""
    )
    assert answer == [[2, 8, 32, 32], [8, 3, 3, 3]]
