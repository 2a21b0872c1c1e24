"""Integers and booleans on the device that is not there keep their true values.

Kernels do nothing, so what a program computes on the device is not there. Where memory depends on values, they are
integers and booleans: masks, lengths, positions, indices. The device's memory is memory of this machine, so an
operator whose tensors are all of that kind is run once more by the CPU's kernel, on the same memory. Small
floating-point tensors that come from known values alone are known, too.

What comes out of weights is not known. It reads as zero and false, but for two things: the experts of a router are
balanced (as ``fitplan/trace/values.py`` has it), and a token that was generated is some token. Where the *number* of
elements depends on what is not known, the largest is taken, and told (``assumed``).

All of this happens below autograd, at a dispatch key that no backend uses, and not in a ``TorchDispatchMode``: under
such a mode autograd's engine does not add gradients in place (``isTensorSubclassLike`` in pytorch
``aten/src/ATen/TensorSubclassLikeUtils.h``), and ``torch.compile`` stands back.
"""

import ctypes
import mmap
import threading
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten

_KEY = "Fake"
_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})
MOST_BYTES = 64 << 20
"""Larger tensors are not computed: no question is asked of them."""
MOST_FLOAT_BYTES = 64 << 10
COPIED_BYTES = 1 << 20
"""Up to here the stand-ins copy (``stand_ins/cudart.c``)."""
PAGE = mmap.PAGESIZE
HOST_BYTES = 4 << 20
"""Floating-point tensors on the host that are larger are weights: drawn, cleared or copied they would only fill the
memory of this machine, and pages that nobody writes cost nothing."""
SOME_TOKEN = 3
"""What is drawn from logits; in no well-known vocabulary is it the end of a text."""

_unknown = set()
"""Storages of integers whose values come out of weights."""
_known = set()
"""Storages of small floating-point tensors whose values are true."""
assumed = {}
"""What could not be known, and how often it was asked for."""

_library = None


def keep_true():
    """From here on, in this thread and all that are started later."""
    global _library
    if _library is not None:
        return
    key = torch._C._parse_dispatch_key(_KEY)
    _library = torch.library.Library("_", "IMPL", _KEY)
    below = torch._C._dispatch_keyset_full_after(key)

    own, exclude = torch._C.DispatchKeySet(key), torch._C._ExcludeDispatchKeyGuard

    def fallback(keys, op, *args, **kwargs):
        if _is_handed_down(op):
            return op.redispatch(keys & below, *args, **kwargs)
        with exclude(own):
            return _run(op, args, kwargs)

    _library.fallback(fallback, _KEY, with_keyset=True)
    leave_alone(fallback, *globals().values())
    views = torch.library.Library("aten", "IMPL")
    for name in _VIEWS:
        views.impl(name, torch.library.fallthrough_kernel, _KEY)
    _library.views = views
    torch._C._dispatch_tls_set_dispatch_key_included(key, True)
    _in_new_threads(key)


def _is_handed_down(op):
    """Made of others, which have to come here: what PyTorch composes, and what other packages add."""
    found = _handed_down.get(id(op))
    if found is None:
        found = _handed_down[id(op)] = op.namespace not in _BUILT_IN or op in _COMPOSITES
    return found


_handed_down = {}
_VIEWS = (
    "detach", "alias", "view", "_unsafe_view", "_reshape_alias", "t", "transpose.int", "permute", "expand", "unsqueeze",
    "squeeze", "squeeze.dim", "select.int", "slice.Tensor", "split.Tensor", "unbind.int", "as_strided", "record_stream",
)  # fmt: skip
"""They allocate nothing and compute nothing; and a parameter is made from a tensor that Python has not seen yet
(``_make_subclass`` in pytorch ``torch/csrc/autograd/python_variable.cpp``)."""


def stay_out_of_fake_mode(fake_tensor):
    """While ``torch.compile`` traces with fake tensors there is no memory, and PyTorch has a use for the key itself."""
    mode, key = fake_tensor.FakeTensorMode, torch._C._parse_dispatch_key(_KEY)
    enter, leave = mode.__enter__, mode.__exit__
    depth = threading.local()

    def include(whether):
        torch._C._dispatch_tls_set_dispatch_key_included(key, whether)

    def enter_without_key(self):
        depth.value = getattr(depth, "value", 0) + 1
        include(False)
        return enter(self)

    def leave_with_key(self, *why):
        try:
            return leave(self, *why)
        finally:
            depth.value -= 1
            include(depth.value == 0)

    mode.__enter__, mode.__exit__ = enter_without_key, leave_with_key


def leave_alone(*functions):
    """``torch.compile`` looks at every Python frame; ours are none of the program's."""
    from torch._C._dynamo import eval_frame

    if hasattr(eval_frame, "skip_code"):  # before PyTorch 2.8
        skip_code = eval_frame.skip_code
    else:
        skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)

        def skip_code(code):
            eval_frame.set_code_exec_strategy(code, skip)

    codes = [one.__code__ for one in functions if hasattr(one, "__code__")]
    while codes:
        code = codes.pop()
        skip_code(code)
        codes += [constant for constant in code.co_consts if isinstance(constant, type(code))]


def _in_new_threads(key):
    start = threading.Thread.start

    def start_with_key(thread):
        run = thread.run

        def run_with_key():
            torch._C._dispatch_tls_set_dispatch_key_included(key, True)
            run()

        thread.run = run_with_key
        start(thread)

    threading.Thread.start = start_with_key


# --- one operator -----------------------------------------------------------------------------------------------------


def _run(op, args, kwargs):
    rule = _RULES.get(id(op))
    if rule is not None:
        found = rule(op, args, kwargs)
        if found is not NotImplemented:
            return found
    output = op(*args, **kwargs)
    outputs = (output,) if isinstance(output, torch.Tensor) else output
    if isinstance(outputs, (tuple, list)):
        for one in outputs:
            if isinstance(one, torch.Tensor) and type(one) in _PLAIN and one.is_cuda:
                _see(op, args, kwargs, outputs)
                break
    return output


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def _see(op, args, kwargs, outputs):
    inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    if not op._schema.is_mutable and _is_view(inputs, outputs):
        return
    wanted = [t for t in outputs if isinstance(t, torch.Tensor) and type(t) in _PLAIN and t.is_cuda]
    ints = [t for t in wanted if t.dtype in _INTEGERS]
    floats = [t for t in wanted if t.dtype not in _INTEGERS]
    small = all(t.nbytes <= MOST_BYTES for t in ints) and all(t.nbytes <= MOST_FLOAT_BYTES for t in floats)
    if ints or small:
        if small and op not in _LEAVES and all(_is_known(t) for t in inputs) and _compute(op, args, kwargs, outputs):
            for tensor in wanted:
                _mark(tensor, True)
            return
        for tensor in ints:
            _mark(tensor, op in _LEAVES)
            if not op._schema.is_mutable and tensor.nbytes <= COPIED_BYTES:
                _fill(tensor, 0)  # larger ones, such as quantised weights, stay as they are: no page is touched
    for tensor in floats:
        _mark(tensor, False)
        if not op._schema.is_mutable and tensor.nbytes <= COPIED_BYTES and op not in _LEAVES and tensor.nbytes:
            ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes if tensor.is_contiguous() else tensor.element_size())


_LEAVES = frozenset({aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
                     aten.new_empty.default, aten.new_empty_strided.default})  # fmt: skip


def _is_view(inputs, outputs):
    mine = {_place(t) for t in inputs if t.is_cuda and type(t) in _PLAIN}
    return bool(mine) and all(_place(t) in mine for t in outputs if isinstance(t, torch.Tensor))


def _place(tensor):
    """Where its storage begins; without asking for the storage, to which that would be one more reference: autograd's
    engine adds gradients in place only to what nobody else holds.
    """
    return tensor.data_ptr() - tensor.storage_offset() * tensor.element_size()


def _is_known(tensor):
    if not tensor.is_cuda:
        return not tensor.is_meta
    if type(tensor) not in _PLAIN or tensor.nbytes > MOST_BYTES:
        return False
    place = _place(tensor)
    return place not in _unknown if tensor.dtype in _INTEGERS else place in _known


def _mark(tensor, known):
    place = _place(tensor)
    if tensor.dtype in _INTEGERS:
        _known.discard(place)
        (_unknown.discard if known else _unknown.add)(place)
    else:
        _unknown.discard(place)
        (_known.add if known else _known.discard)(place)


def _fill(tensor, number):
    if tensor.numel():
        here(tensor).fill_(number)


def here(tensor):
    """The same memory as a tensor of the CPU."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    content = (ctypes.c_byte * (reach * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(content, dtype=torch.uint8).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _compute(op, args, kwargs, outputs):
    """Run the operator on the CPU, on the same memory; whether that can be done."""
    moved_args, moved_kwargs = tree_map_only(torch.Tensor, _moved, (args, dict(kwargs)))
    moved_args = [torch.device("cpu") if isinstance(one, torch.device) else one for one in moved_args]
    for name, instead in (("device", torch.device("cpu")), ("pin_memory", None), ("generator", None)):
        if moved_kwargs.get(name) is not None:
            moved_kwargs[name] = instead
    try:
        computed = op(*moved_args, **moved_kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        return False
    if op._schema.is_mutable:
        return True
    results = (computed,) if isinstance(computed, torch.Tensor) else computed
    for mine, true in zip(outputs, results):
        both = isinstance(mine, torch.Tensor) and isinstance(true, torch.Tensor)
        if both and mine.shape == true.shape and mine.numel():
            here(mine).copy_(true)
    return True


def _moved(tensor):
    return here(tensor) if tensor.is_cuda else tensor


# --- operators with a rule --------------------------------------------------------------------------------------------


def _assume(what):
    assumed[what] = assumed.get(what, 0) + 1


@contextmanager
def _answer(number):
    """Inside, the next number that is read from the device is this one: what a kernel would have counted."""
    process = ctypes.CDLL(None)
    process.fitplan_answer(ctypes.c_int64(number))
    try:
        yield
    finally:
        process.fitplan_was_asked()


def _nonzero(op, args, kwargs):
    mask = args[0]
    if not mask.is_cuda:
        return NotImplemented
    if _is_known(mask):
        positions = here(mask).nonzero()
    else:
        _assume("positions of a mask that comes out of weights: all of them are taken")
        positions = torch.ones(mask.shape, dtype=torch.bool).nonzero()
    with _answer(len(positions)):
        found = op(*args, **kwargs)
    if found.shape != positions.shape:
        found = torch.empty((mask.dim(), len(positions)), dtype=torch.int64, device=mask.device).t()
    here(found).copy_(positions)
    _mark(found, True)
    return found


def _masked(op, args, kwargs):
    """Indexing by a mask: CUDA first turns it into positions (pytorch ``aten/src/ATen/native/IndexingUtils.h``)."""
    if not args[0].is_cuda or not any(_is_mask(one) for one in args[1]):
        return NotImplemented
    indices = []
    for index in args[1]:
        indices += _nonzero(aten.nonzero.default, (index,), {}).unbind(1) if _is_mask(index) else [index]
    output = op(args[0], indices, *args[2:], **kwargs)
    _see_index(output, args[0], indices)
    return output


def _see_index(output, source, indices):
    """An integer tensor that is indexed by positions."""
    if output is source or output.dtype not in _INTEGERS:
        return
    positions = [one for one in indices if isinstance(one, torch.Tensor)]
    known = _is_known(source) and all(map(_is_known, positions)) and output.nbytes <= MOST_BYTES
    if known and output.numel():
        here(output).copy_(aten.index.Tensor(here(source), [_moved(i) if i is not None else None for i in indices]))
    _mark(output, known)


def _is_mask(index):
    return isinstance(index, torch.Tensor) and index.is_cuda and index.dtype in (torch.bool, torch.uint8)


def _repeat_interleave(op, args, kwargs):
    repeats = args[0]
    if not repeats.is_cuda or not _is_known(repeats):
        return NotImplemented
    found = torch.repeat_interleave(here(repeats))
    output = torch.empty(found.shape, dtype=repeats.dtype, device=repeats.device)
    if output.numel():
        here(output).copy_(found)
    _mark(output, True)
    return output


def _unique(op, args, kwargs):
    if not args[0].is_cuda:
        return NotImplemented
    values = here(args[0]) if _is_known(args[0]) else torch.arange(args[0].numel()).view(args[0].shape)
    outputs = []
    for one in op(values, *args[1:], **kwargs):
        output = torch.empty(one.shape, dtype=args[0].dtype if not outputs else one.dtype, device=args[0].device)
        if output.numel() and output.dtype in _INTEGERS:
            here(output).copy_(one)
        _mark(output, True)
        outputs.append(output)
    return tuple(outputs)


def _equal(op, args, kwargs):
    if args[0].is_cuda and all(map(_is_known, args)):
        return bool(torch.equal(here(args[0]), _moved(args[1])))
    return NotImplemented


def _topk(op, args, kwargs):
    """The experts of a router: token t goes to experts t*k, t*k+1, ... modulo their number."""
    if not args[0].is_cuda or args[0].dtype in _INTEGERS:
        return NotImplemented
    scores, indices = op(*args, **kwargs)
    rows, width = indices.shape[:-1].numel(), args[0].shape[-1]
    if indices.numel() and indices.nbytes <= MOST_BYTES:
        here(indices).copy_((torch.arange(rows * indices.shape[-1]) % width).view(indices.shape))
    _mark(indices, True)
    _mark(scores, False)
    return scores, indices


def _drawn(op, args, kwargs):
    """A token from its probabilities, or the likeliest."""
    if not args[0].is_cuda or args[0].dtype in _INTEGERS:
        return NotImplemented
    output = op(*args, **kwargs)
    if output.nbytes <= MOST_BYTES:
        _fill(output, min(SOME_TOKEN, args[0].shape[-1] - 1) if args[0].dim() else 0)
    _mark(output, True)
    return output


def _is_weight_on_host(tensor):
    return tensor.is_cpu and tensor.is_floating_point() and type(tensor) in _PLAIN and tensor.nbytes > HOST_BYTES


def _left_out(op, args, kwargs):
    """Weights that are drawn or cleared on the host."""
    return args[0] if _is_weight_on_host(args[0]) else NotImplemented


def _zero(op, args, kwargs):
    """Large integers are cleared by giving their pages back: Inductor clears 40 MiB for each kernel that it times."""
    tensor = args[0]
    if not tensor.is_cuda or type(tensor) not in _PLAIN or tensor.dtype not in _INTEGERS:
        return _left_out(op, args, kwargs)
    if tensor.nbytes <= COPIED_BYTES or not tensor.is_contiguous():
        return NotImplemented
    op(*args, **kwargs)
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
    ctypes.memset(begin, 0, first - begin)
    ctypes.memset(last, 0, end - last)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
    _mark(tensor, True)
    return tensor


def _clone(op, args, kwargs):
    return torch.empty_like(args[0], **kwargs) if _is_weight_on_host(args[0]) else NotImplemented


def _copy(op, args, kwargs):
    """Between host and device the stand-ins copy what is small; integers are copied whole."""
    to, source = args[0], args[1]
    if source.is_cpu and _is_weight_on_host(to):
        return to
    if to.is_cuda == source.is_cuda:
        return NotImplemented
    output = op(*args, **kwargs)
    _brought(to, source)
    return output


def _to_copy(op, args, kwargs):
    source = args[0]
    if (
        _is_weight_on_host(source)
        and not kwargs.get("pin_memory")
        and (kwargs.get("device") or source.device) == source.device
    ):
        kept = {name: kwargs[name] for name in ("dtype", "memory_format") if kwargs.get(name) is not None}
        return torch.empty_like(source, **kept)
    output = op(*args, **kwargs)
    if isinstance(output, torch.Tensor) and output.is_cuda != source.is_cuda and not output.is_meta:
        _brought(output, source)
        return output
    if output.is_cuda:
        _see(aten._to_copy.default, args, kwargs, (output,))
    return output


def _brought(to, source):
    device, host = (to, source) if to.is_cuda else (source, to)
    if host.is_meta or type(device) not in _PLAIN or type(host) not in _PLAIN:
        return
    small = to.nbytes <= COPIED_BYTES and to.is_contiguous() and source.is_contiguous() and to.dtype == source.dtype
    if to.is_cuda:
        known = small
        if to.dtype in _INTEGERS and to.nbytes <= MOST_BYTES and source.shape == to.shape:
            here(to).copy_(source)
            known = True
        _mark(to, known)
    elif to.dtype in _INTEGERS and source.nbytes <= MOST_BYTES and source.shape == to.shape:
        to.copy_(here(source))


_COMPOSITES = frozenset(
    getattr(getattr(aten, name), overload, None)
    for name, overload in (
        ("masked_select", "default"),
        ("masked_select_backward", "default"),
        ("masked_scatter_backward", "default"),
        ("unique_dim", "default"),
    )
    if hasattr(aten, name)
)
"""Made of others on the device too, some of which have a rule."""

_BUILT_IN = frozenset({"aten", "prims", "prim", "quantized", "c10d", "_c10d_functional", "inductor"})
"""Operators of other packages are made of these."""

_RULES_BY_OPERATOR = {
    aten.nonzero.default: _nonzero,
    aten.index.Tensor: _masked,
    aten.index_put.default: _masked,
    aten.index_put_.default: _masked,
    aten._index_put_impl_.default: _masked,
    aten.repeat_interleave.Tensor: _repeat_interleave,
    aten._unique2.default: _unique,
    aten.equal.default: _equal,
    aten.topk.default: _topk,
    aten.multinomial.default: _drawn,
    aten.argmax.default: _drawn,
    aten.copy_.default: _copy,
    aten.clone.default: _clone,
    aten.normal_.default: _left_out,
    aten.uniform_.default: _left_out,
    aten.fill_.Scalar: _left_out,
    aten.zero_.default: _zero,
    aten._to_copy.default: _to_copy,
}
_RULES = {id(op): rule for op, rule in _RULES_BY_OPERATOR.items()}
"""An operator's own hash is computed in Python, for every call."""
