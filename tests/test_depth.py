"""Replicated layers: the trace of a few layers, deepened, is the trace of all of them."""

from collections import Counter
from typing import Any

import pytest
from families import FAMILIES, first_difference

from fitplan.setup import Optim, TrainingSetup
from fitplan.step.architecture import load_config
from fitplan.trace import tracing
from fitplan.trace.depth import Depth, NotPeriodic, deepen, shorten
from fitplan.trace.events import Allocation, Category, Layer, Moment, Phase, Trace
from fitplan.trace.kernels import Gpu

DEPTHS = {"gpt2": {"n_layer": 9}, "t5": {"num_layers": 8, "num_decoder_layers": 9}}
ALTERNATING = {
    "gemma2": ["sliding_attention", "full_attention"] * 5,
    "gemma3": ["sliding_attention", "sliding_attention", "full_attention"] * 5,
    "gpt_oss": ["sliding_attention", "full_attention"] * 5,
}
SETUPS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "optim": "adamw_torch"},
    "lora": {"method": "lora", "gradient_checkpointing": False},
    "qlora": {"method": "qlora", "gradient_accumulation_steps": 2},
    "int8": {"method": "qlora", "quant": "int8"},
    "liger": {"method": "qlora", "use_liger_kernel": True},
}


def _deep_config(family: str) -> Any:
    settings = {**FAMILIES[family], **DEPTHS.get(family, {"num_hidden_layers": 9})}
    if family in ALTERNATING:
        kinds = ALTERNATING[family]
        settings |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
    try:
        return load_config(settings)
    except Exception:
        pytest.skip(f"the installed transformers does not know {settings['model_type']}")


@pytest.mark.parametrize("method", SETUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_equal_the_full_depth(family: str, method: str) -> None:
    config = _deep_config(family)
    if family not in {"lora": ("llama", "t5", "gemma3"), "int8": ("llama", "gemma3"), "liger": ("llama",)}.get(
        method, FAMILIES
    ):
        pytest.skip("full and qlora cover this family's layers")
    if family == "falcon" and method == "qlora":
        pytest.skip("bitsandbytes quantises nothing of Falcon, which is no QLoRA")
    setup = TrainingSetup(batch_size=2, seq_len=16, **SETUPS[method])
    full = tracing.trace_training(config, setup, Gpu(), full_depth=True)
    short = tracing.trace_training(config, setup, Gpu())
    assert max(short.layers_traced.values()) < max(full.layers_traced.values())
    assert first_difference(_ordered(short.trace), _ordered(full.trace)) is None
    contents = ([_content(a) for a in run.trace.allocations] for run in (short, full))
    assert first_difference(*contents) is None
    assert short.trace.stacks == full.trace.stacks
    assert {(g.storage, g.why, g.parameters, g.bytes) for g in short.parameters} == {
        (g.storage, g.why, g.parameters, g.bytes) for g in full.parameters
    }


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("optim", Optim)
def test_replicas_have_all_states(optim: Optim, method: str) -> None:
    """Matrices are large enough to be paged; the optimizer alone takes what it takes in the step."""
    config = load_config({**FAMILIES["llama"], "num_hidden_layers": 9, **WIDE})
    setup = TrainingSetup(method=method, optim=optim, seq_len=16)
    ways: list[dict[str, bool]] = [{"full_depth": True}, {}, {"only_optimizer": True}]
    full, short, alone = (tracing.trace_training(config, setup, Gpu(), **way) for way in ways)
    if optim is not Optim.ADAFACTOR:  # what it keeps of a layer depends on the layers before: all are traced
        assert short.layers_traced != full.layers_traced
    assert _states(short.trace) == _states(full.trace) == _states(alone.trace)


WIDE = {"hidden_size": 320, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}


def _states(trace: Trace) -> dict[int, int]:
    """How many states there are of which size."""
    return Counter(a.size for a in trace.allocations if a.category is Category.OPTIMIZER_STATES)


def _ordered(trace: Trace) -> list[tuple[int, Moment]]:
    """The events; autograd drops what a finished graph held in no particular order, so releases in a row are sorted."""
    ordered: list[tuple[int, Moment]] = []
    releases: list[tuple[int, Moment]] = []
    for event, moment in zip(trace.events, trace.moments, strict=True):
        if event < 0:
            releases.append((event, moment))
            continue
        ordered += [*sorted(releases, key=lambda item: item[0]), (event, moment)]
        releases = []
    return ordered + sorted(releases, key=lambda item: item[0])


def _content(allocation: Allocation) -> tuple[Any, ...]:
    return allocation.size, allocation.category, allocation.owner, allocation.op, allocation.layer


def test_shortening_keeps_the_last_kind_of_layer_last() -> None:
    config = _deep_config("llama")
    config.num_hidden_layers = 11
    config.kinds = list("abcabcabcab")
    short, cut = shorten(config)
    assert cut == {}
    assert short.num_hidden_layers == 11
    config.kinds = list("ab" * 8)
    config.num_hidden_layers = 16
    short, cut = shorten(config)
    assert cut == {"num_hidden_layers": Depth(traced=8, full=16, period=2, head=2)}
    assert short.kinds[-1] == config.kinds[-1]


def test_layers_that_differ_are_not_replicated() -> None:
    trace = Trace(stacks={"layers": 4})
    for index, size in enumerate((10, 20, 21, 10)):
        moment = Moment(Phase.FORWARD, "layer", Layer("layers", index))
        trace.born(Allocation(size, Category.ACTIVATIONS, f"layers.{index}", "op", moment.layer), moment)
    with pytest.raises(NotPeriodic, match="layers 1 and 2"):
        deepen(trace, {"layers": Depth(traced=4, full=8, period=1, head=1)})


def test_a_layer_that_does_not_repeat_is_traced_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Trace:
        raise NotPeriodic("never")

    monkeypatch.setattr(tracing, "deepen", refuse)
    run = tracing.trace_training(_deep_config("llama"), TrainingSetup(method="full", seq_len=8), Gpu())
    assert run.layers_traced == {"model.layers": 9}


def test_releases_of_all_layers_at_once_are_replicated() -> None:
    """As where a graph is dropped: within the last stretch, after its last birth, layer by layer."""
    trace = _kept_until_the_end(released=(3, 2, 1, 0))
    deep = deepen(trace, {"layers": Depth(traced=4, full=8, period=1, head=1)})
    released = [deep.allocations[~event].owner for event in deep.events if event < 0]
    assert released == [f"layers.{index}" for index in range(7, -1, -1)]


def test_a_release_that_no_replica_has_is_told() -> None:
    with pytest.raises(NotPeriodic, match="a release was lost"):
        deepen(_kept_until_the_end(released=(3, 2, 0, 1)), {"layers": Depth(traced=4, full=8, period=1, head=1)})


def _kept_until_the_end(released: tuple[int, ...]) -> Trace:
    """Each layer allocates in forward; in the last one all of it is released."""
    trace = Trace(stacks={"layers": 4})
    moments = [Moment(Phase.FORWARD, "layer", Layer("layers", index)) for index in range(4)]
    born = [
        trace.born(Allocation(10, Category.ACTIVATIONS, f"layers.{index}", "op", moment.layer), moment)
        for index, moment in enumerate(moments)
    ]
    for index in released:
        trace.released(born[index], moments[-1])
    return trace
