"""Every adapter: the trace equals a real run, and its parameters are counted and saved as peft does."""

from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, first_difference
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from real_runs import CPU, our_run, traced, training_events

import fitplan
from fitplan.errors import InputError, SetupConflict
from fitplan.footprint.recipe import recipe_of, shape_of
from fitplan.setup import ADAPTER_NAMES, SETTINGS, Adapter, LoraInit, Quant, TrainingSetup
from fitplan.step.adapters import KINDS, is_adapter, is_saved, names_single_layers
from fitplan.step.architecture import load_config
from fitplan.step.model import build_skeleton, load_model
from fitplan.trace.events import Category
from fitplan.trace.tracing import fresh_process, trace_training

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora-only-values": {"target_modules": r".*\.v_proj", "use_rslora": True},
    "lora-head": {"modules_to_save": ("lm_head",), "lora_r": 4},
    "lora-patterns": {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"q_proj": 4}},
    "lora-one-layer": {"layers_to_transform": (1,), "target_modules": "q_proj,up_proj", "exclude_modules": "up_proj"},
    "dora": {"adapter": "dora", "lora_r": 4},
    "adalora": {"adapter": "adalora", "lora_r": 4},
    "loha": {"adapter": "loha", "lora_r": 4},
    "lokr": {"adapter": "lokr", "lora_r": 4},
    "ia3": {"adapter": "ia3"},
    "ia3-all": {"adapter": "ia3", "target_modules": "all-linear", "feedforward_modules": "down_proj"},
    "vera": {"adapter": "vera", "lora_r": 8},
    "boft": {"adapter": "boft", "boft_block_size": 8},
    "oft": {"adapter": "oft", "oft_block_size": 8},
    "prefix": {"adapter": "prefix", "num_virtual_tokens": 5},
    "prompt": {"adapter": "prompt", "num_virtual_tokens": 5},
    "p-tuning": {"adapter": "p-tuning", "num_virtual_tokens": 5, "encoder_hidden_size": 32},
}
PLAIN_ONLY: dict[str, dict[str, Any]] = {
    "lora-olora": {"init_lora_weights": "olora"},
    "lora-pissa": {"init_lora_weights": "pissa"},
    "lora-orthogonal": {"init_lora_weights": "orthogonal"},
}
PACKED = ("loha", "lokr")
"""Not on 4-bit weights."""
CAST_IN_FORWARD = "bitfit"
"""In 4 bits: bitsandbytes casts the bias of a layer to the type of its input (``Linear4bit.forward``)."""
LLAMA = FAMILIES["llama"]


def _cases() -> list[tuple[str, str, dict[str, Any]]]:
    found = [("llama", name, {"method": "lora", **more}) for name, more in (ADAPTERS | PLAIN_ONLY).items()]
    found += [("llama", name, {"method": "qlora", **more}) for name, more in ADAPTERS.items() if name not in PACKED]
    found += [("llama", name, {"method": "qlora", "quant": "int8", **ADAPTERS[name]}) for name in PACKED]
    found += [("gpt2", "bitfit", {"method": method, "adapter": "bitfit"}) for method in ("lora", "qlora")]
    found += [("t5", name, {"method": "lora", **ADAPTERS[name]}) for name in ("dora", "prompt", "ia3")]
    return found


CASES = [pytest.param(*case, id="-".join([*case[:2], case[2]["method"]])) for case in _cases()]


def _setup(settings: dict[str, Any]) -> TrainingSetup:
    return TrainingSetup(batch_size=2, seq_len=16, **settings)


def _model(family: str, setup: TrainingSetup) -> Any:
    config = load_config(FAMILIES[family])
    with fresh_process():
        return load_model(build_skeleton(config, setup, CPU), config, setup, CPU, lambda *_: None)


@pytest.mark.parametrize(("family", "name", "settings"), CASES)
def test_the_trace_is_the_real_run(family: str, name: str, settings: dict[str, Any]) -> None:
    """Event by event (but for int8, whose products are others on the CPU), each thing under its own name."""
    setup = _setup(settings)
    trace = traced(FAMILIES[family], setup)
    events = training_events(trace)
    assert len(events) > 200
    if setup.quant is not Quant.INT8:
        assert first_difference(events, training_events(our_run(FAMILIES[family], setup).trace)) is None
    model = _model(family, setup)
    sizes = dict.fromkeys(Category, 0)
    for allocation in trace.allocations:
        sizes[allocation.category] += allocation.size
    own = [*model.named_parameters(), *model.named_buffers()]
    adapters = sum(tensor.nbytes for path, tensor in own if is_adapter(path))
    assert sizes[Category.ADAPTER_WEIGHTS] == adapters
    assert (adapters > 0) == (setup.adapter is not Adapter.BITFIT)
    trained = [param for _, param in model.named_parameters() if param.requires_grad]
    if name != CAST_IN_FORWARD or setup.method != "qlora":
        assert sizes[Category.OPTIMIZER_STATES] == sum(2 * param.nbytes + 4 for param in trained), (
            "AdamW: two, and a step"
        )


@pytest.mark.parametrize(("family", "name", "settings"), CASES)
def test_parameters_are_counted_and_saved_as_peft_does(family: str, name: str, settings: dict[str, Any]) -> None:
    """Traced at the depth that the trace chooses."""
    setup = _setup(settings)
    model = _model(family, setup)
    run = trace_training(load_config(FAMILIES[family]), setup, None)
    trained = sum(group.parameters for group in run.parameters if group.trainable)
    saved = sum(group.bytes for group in run.parameters if group.is_saved_with_adapter)
    if setup.adapter is Adapter.BITFIT:
        biases = [param for path, param in model.named_parameters() if path.endswith("bias")]
        assert trained == sum(param.numel() for param in biases) > 0
        assert setup.method == "qlora" or saved == sum(param.nbytes for param in biases)
        return
    count, total = model.get_nb_trainable_parameters()
    assert trained == count
    if setup.method != "qlora" or setup.quant == "int8":
        assert sum(group.parameters for group in run.parameters) == total
    assert saved == sum(tensor.nbytes for tensor in peft.get_peft_model_state_dict(model).values())


def test_prefixes_are_those_of_peft() -> None:
    for adapter, kind in KINDS.items():
        config = getattr(peft, kind.config)
        theirs = PEFT_TYPE_TO_PREFIX_MAPPING[
            config(**{"total_step": 1} if adapter is Adapter.ADALORA else {}).peft_type
        ]
        assert kind.is_prompt or kind.prefix == theirs
        assert set(kind.fields.values()) <= set(config.__dataclass_fields__)


def test_the_list_of_settings_and_the_adapters_agree() -> None:
    """A setting means something with those adapters whose config has it."""
    assert set(KINDS) == set(Adapter) - {Adapter.BITFIT}
    assert set(ADAPTER_NAMES) == set(Adapter)
    for one in SETTINGS.values():
        named = [set(only.values) for only in one.only if only.other == "adapter"]
        if named and one.name != "adapter_dtype":  # which is cast afterwards, not a field of peft's
            assert named == [{adapter for adapter, kind in KINDS.items() if one.name in kind.fields}], one.name


@pytest.mark.parametrize(
    ("path", "adapter", "saved"),
    [
        ("model.layers.0.q_proj.lora_A.default.weight", True, True),
        ("model.layers.0.q_proj.base_layer.weight", False, True),
        ("lm_head.modules_to_save.default.weight", True, True),
        ("lm_head.original_module.weight", False, True),
        ("prompt_encoder.default.embedding.weight", True, True),
        ("prompt_encoder.default.mlp_head.0.weight", True, False),
        ("model.layers.0.q_proj.ranknum.default", True, False),
        ("model.layers.0.explora_gate.weight", False, True),
    ],
)
def test_what_belongs_to_an_adapter(path: str, adapter: bool, saved: bool) -> None:
    assert is_adapter(path) is adapter
    assert is_saved(path) is saved


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"method": "full", "adapter": "ia3"}, ("adapter", "method")),
        ({"method": "full", "use_dora": True}, ("adapter", "method")),
        ({"method": "lora", "adapter": "ia3", "lora_r": 8}, ("lora_r", "adapter")),
        ({"method": "lora", "adapter": "bitfit", "target_modules": "q_proj"}, ("target_modules", "adapter")),
        ({"method": "lora", "num_virtual_tokens": 8}, ("num_virtual_tokens", "adapter")),
        ({"method": "lora", "adapter": "ia3", "use_dora": True}, ("use_dora", "adapter")),
        ({"method": "lora", "adapter": "dora", "use_dora": False}, ("use_dora", "adapter")),
        (
            {"method": "lora", "adapter": "prefix", "gradient_checkpointing": True},
            ("adapter", "gradient_checkpointing"),
        ),
        ({"method": "qlora", "adapter": "loha"}, ("adapter", "quant")),
        ({"method": "qlora", "adapter": "lokr", "quant": "fp4"}, ("adapter", "quant")),
        ({"method": "lora", "layers_to_transform": "1"}, ("layers_to_transform", "target_modules")),
        ({"method": "qlora", "init_lora_weights": "pissa"}, ("init_lora_weights", "method")),
    ],
)
def test_contradictions_name_both_and_a_way_out(settings: dict[str, Any], fields: tuple[str, str]) -> None:
    with pytest.raises(SetupConflict) as caught:
        TrainingSetup(**settings)
    assert (caught.value.first, caught.value.second) == fields
    assert any(word in str(caught.value) for word in ("choose", "drop"))


@pytest.mark.parametrize("adapter", PACKED)
def test_what_is_refused_on_4_bit_weights_fails_in_peft(adapter: str) -> None:
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[adapter](r=4, target_modules=["q_proj"])
    setup = _setup({"method": "qlora", "kbit_prepare": False})
    skeleton_setup = setup.with_(target_modules=("v_proj",))
    model = _model("llama", skeleton_setup).unload()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        peft.get_peft_model(model, config)(input_ids=ids)


def test_one_adapter_has_one_name() -> None:
    by_flag, by_name = TrainingSetup(use_dora=True), TrainingSetup(adapter="dora")
    assert by_flag == by_name
    assert by_flag.adapter is Adapter.DORA
    assert TrainingSetup.from_dict(by_flag.to_dict()) == by_flag


def test_settings_of_peft_are_taken_in_every_spelling() -> None:
    one = TrainingSetup(rank_pattern={"q_proj": 8}, layers_to_transform=[0, 2], target_modules=["q_proj"])
    other = TrainingSetup(rank_pattern="q_proj=8", layers_to_transform="0,2", target_modules="q_proj")
    assert one == other
    assert hash(one) == hash(other)
    assert TrainingSetup.from_dict(one.to_dict()) == one
    assert one.to_dict()["rank_pattern"] == {"q_proj": 8}
    assert TrainingSetup(target_modules="q_proj, v_proj").target_modules == ("q_proj", "v_proj")
    assert TrainingSetup(target_modules=r".*\.(q|v)_proj").target_modules == r".*\.(q|v)_proj"
    assert TrainingSetup(layers_to_transform=3, target_modules="q_proj").layers_to_transform == (3,)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "(q_proj"},
        {"rank_pattern": "q_proj"},
        {"rank_pattern": {"q_proj": 0}},
        {"layers_to_transform": "x"},
        {"layers_to_transform": -1},
        {"adapter": "loar"},
        {"init_lora_weights": "eva"},
    ],
)
def test_what_is_no_value_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        TrainingSetup(**settings)


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("llama", {"adapter": "bitfit"}, "no biases"),
        ("gpt2", {"adapter": "oft", "oft_block_size": 8}, "cannot be adapted"),
        ("llama", {"target_modules": r".*\.nothing"}, "cannot be adapted"),
        ("roberta", {"adapter": "prompt"}, "no prompts"),
        ("mixtral", {"target_parameters": ("experts.gate_up_proj",), "lora_dropout": 0.1}, "cannot be adapted"),
    ],
)
def test_what_peft_refuses_is_one_sentence(family: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        trace_training(load_config(FAMILIES[family]), _setup({"method": "lora", **settings}), None)


def test_experts_get_adapters_by_their_parameters() -> None:
    settings = {"method": "lora", "target_parameters": ("experts.gate_up_proj", "experts.down_proj"), "lora_r": 2}
    setup = _setup({**settings, "target_modules": "q_proj"})
    count, _ = _model("mixtral", setup).get_nb_trainable_parameters()
    run = trace_training(load_config(FAMILIES["mixtral"]), setup, None)
    assert sum(group.parameters for group in run.parameters if group.trainable) == count


def test_single_layers_are_traced_as_they_are() -> None:
    """The adapters of layer 30 are not in a model that is shortened for the trace."""
    config = load_config(LLAMA | {"num_hidden_layers": 12})
    names: list[dict[str, Any]] = [
        {"layers_to_transform": (9,), "target_modules": ("up_proj",)},
        {"target_modules": "layers.9.mlp.up_proj"},
    ]
    for more in names:
        setup = _setup({"method": "lora", "lora_r": 4, **more})
        assert names_single_layers(setup)
        run = trace_training(config, setup, None)
        assert sum(group.parameters for group in run.parameters if group.trainable) > 0
        assert run.layers_traced == {"model.layers": 12}
    assert not names_single_layers(TrainingSetup(target_modules=("fc1", "w2")))
    deep = trace_training(config, _setup({"method": "lora", "adapter": "prefix"}), None)
    assert sum(g.parameters for g in deep.parameters if g.adapter) == 20 * 12 * 2 * 2 * 16


def test_the_rank_is_a_length_where_all_grows_with_it() -> None:
    assert shape_of(TrainingSetup(lora_r=8)).lora_r == 8
    assert shape_of(TrainingSetup(adapter="dora", lora_r=8)).lora_r == 8
    vera, larger = TrainingSetup(adapter="vera", lora_r=8), TrainingSetup(adapter="vera", lora_r=16)
    assert shape_of(vera).lora_r == 0
    assert recipe_of(vera) != recipe_of(larger)


def test_what_decides_nothing_is_answered_as_shipped() -> None:
    plain = fitplan.check("llama-8b", method="lora").plans[0]
    for settings in ({"use_rslora": True}, {"alpha_pattern": {"q_proj": 8}}, {"adapter": "lora"}):
        plan = fitplan.check("llama-8b", method="lora", **settings).plans[0]
        assert plan.source == "shipped"
        assert plan.estimate == plain.estimate


def test_every_beginning_is_peft_s() -> None:
    for init in LoraInit:
        peft.LoraConfig(init_lora_weights=True if init is LoraInit.TRUE else str(init))
