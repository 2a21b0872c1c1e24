"""A trace exchanges much in the libraries, and gives all of it back."""

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from families import FAMILIES
from library_state import KINDS
from transformers import LlamaConfig, MistralConfig

import fitplan
from fitplan.errors import LibraryMoved
from fitplan.guard import Guard
from fitplan.trace.own_state import own_state
from fitplan.tracer import quiet

LLAMA = LlamaConfig(**FAMILIES["llama"])
LIMIT_SECONDS = 120


def _bytes(method: str = "lora", **settings: Any) -> list[Any]:
    """What a trace says a job takes, moment by moment."""
    return list(fitplan.estimate(LLAMA, method=method, trace=True, seq_len=16, **settings).moments)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_trace_of_a_process_leaves_the_libraries_as_they_were(kind: str) -> None:
    if kind == "liger":
        pytest.importorskip("liger_kernel")
    script = Path(__file__).with_name("library_state.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    command = [sys.executable, script, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


# --- what people do after a trace, and beside one ---------------------------------------------------------------------


def test_real_work_in_4_bit_goes_on() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    from bitsandbytes.nn import Linear4bit

    fitplan.check(LLAMA, method="qlora", trace=True, seq_len=16)
    numbers = torch.linspace(-1, 1, 4096)
    packed, state = functional.quantize_blockwise(numbers)
    assert torch.allclose(functional.dequantize_blockwise(packed, state), numbers, atol=0.02)
    layer = Linear4bit(64, 64, compress_statistics=True).to("cpu")
    assert layer.weight.quant_state.state2.code.device.type == "cpu"


def test_what_was_said_of_a_parameter_stays() -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    manager = optim.GlobalOptimManager.get_instance()
    parameter = torch.nn.Parameter(torch.zeros(8))
    manager.override_config(parameter, "optim_bits", 32)
    before = dict(manager.pid2config)
    assert before
    fitplan.check(LLAMA, method="lora", optim="paged_adamw_8bit", trace=True, seq_len=16)
    assert optim.GlobalOptimManager.get_instance() is manager
    assert manager.pid2config == before


def test_a_model_after_liger_is_plain() -> None:
    """The same family's, whether its module was imported before the trace or by it."""
    pytest.importorskip("liger_kernel")
    fitplan.check(MistralConfig(**FAMILIES["mistral"]), method="full", use_liger_kernel=True, trace=True, seq_len=16)
    modeling = importlib.import_module("transformers.models.mistral.modeling_mistral")
    with torch.device("meta"):
        model = modeling.MistralForCausalLM(MistralConfig(**FAMILIES["mistral"]))
    assert {type(module).__module__.partition(".")[0] for module in model.modules()} == {"torch", "transformers"}


def test_the_place_that_accelerate_found_stays() -> None:
    from accelerate.state import PartialState

    state = PartialState(cpu=True)
    before = dict(state._shared_state)
    _bytes()
    assert PartialState._shared_state == before


def test_many_at_once_give_the_same_answer() -> None:
    """And whoever works with torch beside them meets torch as it is."""
    alone = {method: _bytes(method) for method in ("lora", "qlora")}
    strange: list[Any] = []
    over = threading.Event()

    def bystander() -> None:
        while not over.wait(0.001):
            tensor, layer = torch.empty(2), torch.nn.Linear(2, 2)
            devices = {tensor.device.type, layer.weight.device.type, layer(tensor.zero_()).device.type}
            if devices != {"cpu"} or not logging.getLogger("fitplan.test").isEnabledFor(logging.CRITICAL):
                strange.append(devices)

    beside = threading.Thread(target=bystander)
    beside.start()
    methods = ["lora", "qlora"] * 4
    with ThreadPoolExecutor(len(methods)) as pool:
        found = list(pool.map(_bytes, methods))
    over.set()
    beside.join()
    assert found == [alone[method] for method in methods]
    assert not strange


# --- what a caller has set --------------------------------------------------------------------------------------------


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def _autocast_for_cuda() -> Iterator[None]:
    """``torch.autocast("cuda")`` turns itself off where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


STATES: dict[str, Any] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast without its cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "autocast for CUDA": _autocast_for_cuda,
    "default dtype": _default_dtype,
    "default device": _default_device,
    "device": lambda: torch.device("meta"),
    "fake tensors": lambda: importlib.import_module("torch._subclasses").FakeTensorMode(),
}


def _state() -> list[Any]:
    made = torch.empty(2)
    return [
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), made.device,
        torch.get_default_device(), type(made), torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting(),
        torch.autocast_decrement_nesting(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "settings",
    [{"method": "full", "dtype": "float32"}, {"method": "qlora"}, {"method": "lora", "mixed_precision": "no"}],
)
def test_what_the_caller_has_set_changes_nothing_and_stays(state: str, settings: dict[str, Any]) -> None:
    """Float32 weights are cast by autocast, which keeps the casts; without mixed precision there is no autocast."""
    plain = _bytes(**settings)
    scope: AbstractContextManager[Any] = STATES[state]()
    with scope:
        before = _state()
        assert _bytes(**settings) == plain
        assert _state() == before


def test_random_numbers_go_on() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(4)
    torch.manual_seed(7)
    _bytes()
    with own_state():
        torch.rand(4)
    assert torch.equal(torch.rand(4), wanted)


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.fixture
def library() -> ModuleType:
    module = ModuleType("bitsandbytes")
    exec("def double(number): return 2 * number\nclass Thing:\n  size = 1\nclass Part(Thing): pass\n", vars(module))
    for thing in (module.Thing, module.Part):
        thing.__module__ = "bitsandbytes"
    return module


def _elsewhere(call: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_a_function_is_exchanged_for_one_thread(library: ModuleType) -> None:
    real = library.double
    with Guard() as guard:
        guard.exchange_here(library, "double", lambda number: 3 * number)
        assert library.double(2) == 6
        assert _elsewhere(lambda: library.double(2)) == 4
    assert library.double is real


def test_everything_is_given_back(library: ModuleType) -> None:
    cache, names, entries = {"a": 1}, {"x"}, {"old": 1}
    before = dict(vars(library))

    def exchange_much_and_fail() -> None:
        with Guard() as guard:
            guard.keep_module(library)
            guard.exchange(library.Part, "size", 2)  # which it inherits
            guard.put(library, "added", 1)
            guard.empty(cache)
            guard.discard(names, "x")
            guard.put_item(entries, "new", 1)
            guard.put_item(entries, "old", 2)
            cache["b"], library.new, library.Thing.size = 2, 1, 5
            del library.double, entries["old"]
            assert (library.Part.size, names, entries) == (2, set(), {"new": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exchange_much_and_fail()
    assert vars(library) == before
    assert (library.Thing.size, library.Part.size, "size" in vars(library.Part)) == (1, 1, False)
    assert (cache, names, entries) == ({"a": 1}, {"x"}, {"old": 1})


def test_a_second_thread_waits(library: ModuleType) -> None:
    entered = threading.Event()

    def enter() -> None:
        with Guard():
            entered.set()

    with Guard(), Guard():
        second = threading.Thread(target=enter)
        second.start()
        assert not entered.wait(0.05)
    second.join(LIMIT_SECONDS)
    assert entered.is_set()


def test_a_name_that_is_gone_names_its_library(library: ModuleType) -> None:
    with pytest.raises(LibraryMoved, match="bitsandbytes has no triple") as told, Guard() as guard:
        guard.exchange(library, "triple", None)
    assert told.value.library == "bitsandbytes"
    with pytest.raises(LibraryMoved, match="Thing has no weight"), Guard() as guard:
        guard.exchange_here(library.Thing, "weight", lambda: None)


def test_other_arguments_name_their_library(library: ModuleType) -> None:
    with Guard() as guard:
        guard.exchange_here(library, "double", lambda number: number + "")
        with pytest.raises(LibraryMoved, match="double is called otherwise"):
            library.double(2, scale=3)
        with pytest.raises(TypeError, match="unsupported operand"):
            library.double(2)


def test_silence_is_for_one_thread() -> None:
    logger = logging.getLogger("fitplan.test")
    with quiet():
        assert not logger.isEnabledFor(logging.CRITICAL)
        assert _elsewhere(lambda: logger.isEnabledFor(logging.CRITICAL))
    assert logger.isEnabledFor(logging.CRITICAL)
