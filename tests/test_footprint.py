"""The footprint gives what a trace gives, byte for byte, at shapes that it was not made from."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from fitplan.configs.catalog import catalog
from fitplan.configs.resolve import ModelConfig, resolve_model
from fitplan.footprint.derive import NotAlike
from fitplan.footprint.document import footprint_from_dict, footprint_to_dict
from fitplan.footprint.footprint import Footprint, Piece, piece_at_point
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.size import NoFormula, Numbers, Shape, Size, lengths_of, size_through
from fitplan.footprint.store import find_shipped
from fitplan.memory import MemoryEstimate, estimate_trace
from fitplan.setup import Optim, TrainingSetup
from fitplan.surveyor import surveyed
from fitplan.tracer import trace_job

A100, H100 = (8, 0), (9, 0)

COVERED = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "t5", "roberta", "falcon")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-plain": {"method": "full", "gradient_checkpointing": False, "optim": "adamw_torch"},
    "lora": {"method": "lora", "lora_dropout": 0.1},
    "lora-plain": {"method": "lora", "gradient_checkpointing": False, "optim": "sgd"},
    "qlora": {"method": "qlora"},
    "qlora-plain": {"method": "qlora", "gradient_checkpointing": False, "kbit_prepare": False},
}


def _quiet(_: str) -> None:
    pass


@cache
def _model(family: str) -> ModelConfig:
    return ModelConfig(family, "file", FAMILIES[family])


def _job(model: ModelConfig, setup: TrainingSetup) -> TrainingJob:
    return TrainingJob(model=model, setup=setup, capability=A100)


def _settings(family: str, method: str) -> dict[str, Any]:
    """peft has no dropout for fused experts."""
    return {n: v for n, v in METHODS[method].items() if not (n == "lora_dropout" and family == "mixtral")}


@cache
def _footprint(family: str, method: str) -> Footprint:
    return surveyed(_job(_model(family), TrainingSetup(**_settings(family, method))), _quiet)


def _shapes(piece: Piece) -> st.SearchStrategy[Shape]:
    region = piece.region

    def shape(rows: int, units: int, rank: int, accumulation: int) -> Shape:
        longest = min(region.seq_len[1], region.tokens // rows)
        length = min(units * region.seq_len_step, longest // region.seq_len_step * region.seq_len_step)
        return Shape(rows, max(length, region.seq_len[0]), rank, accumulation)

    return st.builds(
        shape,
        st.integers(region.batch_size[0], min(region.batch_size[1], 40)),
        st.integers(1, 4096 // region.seq_len_step),
        st.integers(*region.lora_r),
        st.integers(1, 5),
    )


def _traced(family: str, method: str, shape: Shape, capability: tuple[int, int]) -> MemoryEstimate:
    rank = {"lora_r": shape.lora_r} if shape.lora_r else {}
    setup = TrainingSetup(
        **_settings(family, method),
        batch_size=shape.batch_size,
        seq_len=shape.seq_len,
        gradient_accumulation_steps=shape.gradient_accumulation_steps,
        **rank,
    )
    return estimate_trace(trace_job(_model(family), setup, capability, _quiet).trace)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", COVERED)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_footprint_equals_the_trace(family: str, method: str, data: st.DataObject) -> None:
    if family == "falcon" and method.startswith("qlora"):
        pytest.skip("bitsandbytes quantises nothing of Falcon, which is no QLoRA")
    footprint = _footprint(family, method)
    assert {piece.region.batch_size[0] for piece in footprint.pieces} == {1, 2}
    shape = data.draw(st.sampled_from(footprint.pieces).flatmap(_shapes))
    capability = data.draw(st.sampled_from([A100, H100]))
    piece = footprint.piece(shape)
    assert piece is not None
    assert piece.estimate(shape, capability) == _traced(family, method, shape, capability)


@pytest.mark.parametrize("optim", [o for o in Optim if o is not Optim.ADAMW_TORCH_FUSED])
def test_an_optimizer_is_added_to_a_shipped_step(optim: Optim) -> None:
    model = resolve_model("llama-3.2-1b")
    for method in ("full", "lora"):
        setup = TrainingSetup(method=method, optim=optim, batch_size=2, seq_len=96)
        shape = Shape(2, 96, setup.lora_r or 0, 1)
        stored = find_shipped(_job(model, setup))
        assert stored is not None
        piece = stored.piece(shape)
        assert piece is not None
        assert piece.estimate(shape, A100) == estimate_trace(trace_job(model, setup, A100, _quiet).trace)


# --- properties of every shipped formula ------------------------------------------------------------------------------


def _shipped(name: str, method: str) -> Piece:
    stored = find_shipped(_job(resolve_model(name), TrainingSetup(method=method)))
    assert stored is not None
    assert stored.optimizer is not None
    return stored.footprint.pieces[-1].with_optimizer(stored.optimizer)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_more_of_anything_never_takes_less(method: str, data: st.DataObject) -> None:
    piece = _shipped("llama-3.2-1b", method)
    shape = data.draw(_shapes(piece))
    before = piece.estimate(shape, A100)
    for name in ("batch_size", "seq_len", "lora_r", "gradient_accumulation_steps"):
        more = replace(shape, **{name: getattr(shape, name) + data.draw(st.integers(1, 8))})
        if more in piece.region:
            assert piece.estimate(more, A100).peak_allocated_bytes >= before.peak_allocated_bytes


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parts_sum_to_their_totals(method: str, data: st.DataObject) -> None:
    piece = _shipped("llama-3.2-1b", method)
    shape = data.draw(_shapes(piece))
    estimate = piece.estimate(shape, H100)
    assert sum(estimate.breakdown.values()) == estimate.peak_allocated_bytes
    assert estimate.peak_allocated_bytes == max(moment.bytes for moment in estimate.moments)
    assert piece.peaks([shape.batch_size], shape, H100) == [estimate.peak_allocated_bytes]
    assert piece.summit(shape, H100).name == estimate.peak_moment


@pytest.mark.parametrize("seq_len", [128, 999, 2048])
def test_many_batch_sizes_at_once(seq_len: int) -> None:
    piece = _shipped("llama-3.2-1b", "qlora")
    shape, batches = Shape(2, seq_len, 16, 1), list(range(2, 60))
    one_by_one = [piece.estimate(replace(shape, batch_size=b), A100).peak_allocated_bytes for b in batches]
    assert piece.peaks(batches, shape, A100) == one_by_one


def test_every_model_ships_with_footprints() -> None:
    without = [
        (entry.name, method)
        for entry in catalog()
        for method in ("full", "lora", "qlora")
        if find_shipped(_job(resolve_model(entry.name), TrainingSetup(method=method))) is None
    ]
    assert without == [("falcon-40b", "qlora"), ("falcon-7b", "qlora")], "bitsandbytes quantises nothing of Falcon"


def test_documents_give_back_the_footprint() -> None:
    footprint = _footprint("llama", "qlora")
    assert footprint_from_dict(footprint_to_dict(footprint)) == footprint


def test_a_point_holds_for_its_shape_only() -> None:
    shape = Shape(2, 96, 8, 3)
    estimate = _footprint("llama", "qlora").pieces[1].estimate(shape, A100)
    piece = piece_at_point(estimate, (), shape, A100)
    assert piece.estimate(shape, A100) == estimate
    grown = 2 * (32 * 2**20 - 8_519_680)
    assert piece.estimate(shape, H100).peak_allocated_bytes == estimate.peak_allocated_bytes + grown
    assert shape in piece.region
    for name in ("batch_size", "seq_len", "lora_r", "gradient_accumulation_steps"):
        assert replace(shape, **{name: getattr(shape, name) + 1}) not in piece.region


# --- formulas ---------------------------------------------------------------------------------------------------------


def _through(*points: tuple[Shape, int]) -> Size:
    return size_through([(lengths_of(shape, A100, Numbers(vocabulary=1000)), size) for shape, size in points])


SMALL, LARGE = Shape(2, 5, 2, 2), Shape(499, 1048, 521, 3)


@pytest.mark.parametrize(
    "lengths",
    [
        (),
        ("b", "s"),
        ("r", "b", "s"),
        ("b", "s", "s"),
        ("b", "s-1"),
        ("b", "s+1"),
        ("b", "s64"),
        ("r",),
        ("nd",),
        ("np",),
        ("g",),
    ],
)
def test_a_formula_is_found_through_two_sizes(lengths: tuple[str, ...]) -> None:
    size = Size(12_288, lengths)
    found = _through(*((shape, size.at(lengths_of(shape, A100, Numbers(vocabulary=1000)))) for shape in (SMALL, LARGE)))
    assert found == size
    assert Size.parse(str(found)) == found


def test_what_is_no_product_has_no_formula() -> None:
    with pytest.raises(NoFormula):
        _through((SMALL, 10 * 8 + 1), (LARGE, 499 * 1048 * 8 + 2))
    with pytest.raises(NoFormula):
        _through((SMALL, 80), (LARGE, 80 * 7))


def test_lengths() -> None:
    values = lengths_of(Shape(3, 1030, 7, 4), H100, Numbers(vocabulary=1000, positions=514, types=2, buckets=32))
    assert values == {
        "b": 3, "s": 1030, "r": 7, "g": 4, "s-1": 1029, "s+1": 1031, "s8": 1032, "s16": 1040, "s32": 1056, "s64": 1088,
        "s128": 1152, "n": 3090, "n10": 309, "nd": 1000, "np": 1309, "k": 0, "f": 0, "w": 2**25,
        "md": 514, "mp": 823, "td": 2, "tp": 311, "q": 1030**2, "q10": 106_090, "qd": 32, "qp": 106_122,
        "p": 64,
    }  # fmt: skip
    assert [lengths_of(Shape(1, 8, gpus=gpus), A100)["p"] for gpus in (2, 8, 64)] == [32, 8, 1]
    for shape, expected in ((Shape(3, 1024), [0] * 4), (Shape(3, 1025), [3075, 308, 3075, 3382])):
        values = lengths_of(shape, A100, Numbers(vocabulary=4000))
        assert [values[name] for name in ("n", "n10", "nd", "np")] == expected


def test_other_operators_are_no_formula() -> None:
    from fitplan.footprint.derive import Corner, derive

    corners = []
    for rows in (1, 2):
        setup = TrainingSetup(method="full", batch_size=rows, seq_len=16, gradient_accumulation_steps=2)
        corners.append(Corner(trace_job(_model("llama"), setup, A100, _quiet).trace, Shape(rows, 16, 0, 2), A100))
    with pytest.raises(NotAlike):
        derive(*corners, _footprint("llama", "full").pieces[0].region)
