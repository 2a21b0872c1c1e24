"""What the allocator adds, between the shapes at which it was replayed."""

import pytest
from families import FAMILIES

from fitplan.allocator.replay import replay
from fitplan.allocator.settings import EXPANDABLE, PLAIN
from fitplan.configs.resolve import ModelConfig
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.overhead import OverheadSample, overhead_at
from fitplan.footprint.size import Shape
from fitplan.memory import AllocatorOverhead
from fitplan.setup import TrainingSetup
from fitplan.surveyor import survey_of
from fitplan.tracer import trace_job
from fitplan.units import MIB

A100 = (8, 0)

SAMPLES = tuple(
    OverheadSample(1, tokens, AllocatorOverhead(unsplit * MIB, cached * MIB), AllocatorOverhead(0, cached * MIB // 2))
    for tokens, unsplit, cached in ((512, 2, 100), (1024, 4, 300), (4096, 4, 1200))
)


@pytest.mark.parametrize(
    ("tokens", "unsplit", "cached"),
    [(1, 2, 100), (512, 2, 100), (768, 3, 200), (1024, 4, 300), (2560, 4, 750), (4096, 4, 1200)],
)
def test_between_samples_it_is_a_straight_line(tokens: int, unsplit: int, cached: int) -> None:
    found = overhead_at(SAMPLES, Shape(1, tokens), expandable=False)
    assert found == AllocatorOverhead(unsplit * MIB, cached * MIB, (unsplit + cached) * MIB // 2)
    other = overhead_at(SAMPLES, Shape(1, tokens), expandable=True)
    assert other is not None
    assert other.cached_bytes == cached * MIB // 2


def test_beyond_the_last_sample_nothing_is_said() -> None:
    assert overhead_at(SAMPLES, Shape(2, 2049), expandable=False) is None
    assert overhead_at((), Shape(1, 1), expandable=False) is None


def test_a_single_shape_is_exact() -> None:
    found = overhead_at(SAMPLES[:1], Shape(1, 512), expandable=False)
    assert found == AllocatorOverhead(2 * MIB, 100 * MIB, 0)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_sample_is_the_replay_of_its_own_trace(method: str) -> None:
    """The survey replays the sizes that its formula gives: the same as tracing the shape and replaying that."""
    model = ModelConfig("tiny", "file", FAMILIES["llama"])
    setup = TrainingSetup(method=method)
    footprint, _ = survey_of(TrainingJob(model=model, setup=setup, capability=A100), lambda _: None).footprint({})
    one_row, several = footprint.pieces[0].overheads, footprint.pieces[1].overheads
    assert several[: len(one_row)] == one_row
    rank = {"lora_r": 16} if method == "qlora" else {}
    for sample in (one_row[3], several[-1]):
        shaped = setup.with_(batch_size=sample.batch_size, seq_len=sample.seq_len, **rank)
        trace = trace_job(model, shaped, A100, lambda _: None).trace
        assert sample.plain == replay(trace, PLAIN).peaks.overhead
        assert sample.expandable == replay(trace, EXPANDABLE).peaks.overhead
