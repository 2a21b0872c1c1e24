"""A question becomes a job once, and the job is the same for every command."""

from typing import Any

import pytest
from test_detect import machine

import fitplan
from fitplan.allocator.settings import EXPANDABLE, PLAIN, AllocatorSettings, from_environment
from fitplan.devices import detect
from fitplan.devices.device import find_device
from fitplan.errors import InputError, SetupConflict
from fitplan.footprint.recipe import recipe_of, shape_of
from fitplan.question import Question
from fitplan.setup import Method, TrainingSetup

MODEL = "llama-3.2-1b"


def test_a_job_knows_what_follows_from_it() -> None:
    job = Question(MODEL, "h100", method="lora", settings=(("lora_r", 8),)).job()
    assert job.model.name == MODEL
    assert job.device is find_device("h100")
    assert job.capability == (9, 0)
    assert job.shape == shape_of(job.setup)
    assert job.recipe == recipe_of(job.setup)
    assert (job.kernels, Question(MODEL, "t4").job().kernels) == ("sm80", "sm50")
    other = job.with_setup(TrainingSetup(method="full"))
    assert other.recipe != job.recipe
    assert other.device is job.device


def test_without_a_device_the_capability_counts() -> None:
    assert Question(MODEL).job((7, 5)).setup.dtype == "float16"
    assert Question(MODEL, "h100").job((7, 5)).capability == (9, 0)
    with pytest.raises(InputError, match="capability must be two numbers"):
        Question(MODEL).job("9.0")  # type: ignore[arg-type]


def test_a_question_without_a_method_is_one_for_each() -> None:
    settings = (("quant", "fp4"), ("lora_r", 8))
    jobs = {method: asked.job().setup for method, asked in Question(MODEL, settings=settings).by_method()}
    assert list(jobs) == [Method.QLORA, Method.LORA, Method.FULL]
    assert (jobs[Method.QLORA].quant, jobs[Method.LORA].quant) == ("fp4", None)
    assert (jobs[Method.LORA].lora_r, jobs[Method.FULL].lora_r) == (8, None)
    ((method, asked),) = Question(MODEL, method="full", settings=settings).by_method()
    assert method is Method.FULL
    with pytest.raises(SetupConflict):
        asked.job()


@pytest.mark.parametrize(
    ("text", "settings", "left_out"),
    [
        ("", PLAIN, ()),
        ("expandable_segments:True", EXPANDABLE, ()),
        ("expandable_segments:True,max_split_size_mb:128", EXPANDABLE, ("max_split_size_mb:128",)),
        ("garbage_collection_threshold:0.8", PLAIN, ("garbage_collection_threshold:0.8",)),
        ("backend:native, expandable_segments:True", EXPANDABLE, ()),
        ("backend:cudaMallocAsync,expandable_segments:True", PLAIN, ("backend:cudaMallocAsync",)),
        (
            "roundup_power2_divisions:[256:1,512:2],expandable_segments:True",
            EXPANDABLE,
            ("roundup_power2_divisions:[256:1,512:2]",),
        ),
        ("pinned_use_background_threads:True", PLAIN, ()),
        ("no_such_thing:1", PLAIN, ("no_such_thing:1",)),
    ],
)
def test_what_the_environment_says_is_minded_or_told(
    text: str, settings: AllocatorSettings, left_out: tuple[str, ...]
) -> None:
    assert from_environment(text) == (settings, left_out)


def _asked(ask: Any, gpu: str, **settings: Any) -> tuple[TrainingSetup, tuple[str, ...]]:
    found = ask(MODEL, gpu=gpu, method="lora", seq_len=512, **settings)
    setup = getattr(found, "setup", None)
    if setup is None:
        setup = found.plans[0].setup if hasattr(found, "plans") else found.advice.asked.setup
    return setup, found.warnings


@pytest.mark.parametrize("ask", [fitplan.check, fitplan.advise, fitplan.explain, fitplan.fit_map])
def test_the_allocator_of_this_machine_counts_everywhere_alike(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "detect", lambda: machine("one_h100"))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64")
    setup, warnings = _asked(ask, "auto")
    assert setup.expandable_segments
    assert any("PYTORCH_CUDA_ALLOC_CONF says max_split_size_mb:64" in warning for warning in warnings)
    setup, warnings = _asked(ask, "auto", expandable_segments=False)
    assert not setup.expandable_segments, "what was asked for comes first"
    setup, warnings = _asked(ask, "h100")
    assert not setup.expandable_segments, "that GPU is not the one of this machine"
    assert not any("max_split_size_mb" in warning for warning in warnings)
