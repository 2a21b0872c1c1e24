"""What people say fits, as verdicts: each with the settings that make it so, or the reason why not."""

from typing import Any

import pytest

import fitplan
from fitplan import estimator
from fitplan.setup import Optim
from fitplan.trace.events import Category
from fitplan.verdict import Fit

QLORA_PAPER = {"method": "qlora", "seq_len": 512, "lora_r": 64, "optim": "paged_adamw_32bit"}


@pytest.mark.parametrize(
    ("model", "gpu", "settings", "expected"),
    [
        ("llama-1-65b", "a6000", QLORA_PAPER, Fit.FITS),
        ("llama-2-70b", "a100-80gb", {"method": "qlora"}, Fit.FITS),
        ("llama-2-70b", "a100-80gb", {"method": "lora"}, Fit.DOES_NOT_FIT),
        ("llama-2-13b", "4090", {"method": "qlora"}, Fit.FITS),
        ("llama-2-7b", "3090", {"method": "qlora"}, Fit.FITS),
        ("llama-2-7b", "3090", {"method": "full"}, Fit.DOES_NOT_FIT),
        ("llama-2-7b", "3090", {"method": "full", "seq_len": 512, "optim": "paged_adamw_8bit"}, Fit.DOES_NOT_FIT),
    ],
)  # fmt: skip
def test_the_popular_claims(model: str, gpu: str, settings: dict[str, Any], expected: Fit) -> None:
    (plan,) = fitplan.check(model, gpu=gpu, **settings).plans
    assert plan.verdict is not None
    assert plan.verdict.fit is expected


def test_why_not() -> None:
    """16-bit weights alone exceed the card: 70 B at 2 bytes; 7 B with gradients at 4."""
    for model, gpu, method in (("llama-2-70b", "a100-80gb", "lora"), ("llama-2-7b", "3090", "full")):
        (plan,) = fitplan.check(model, gpu=gpu, method=method).plans
        breakdown = plan.estimate.breakdown
        assert plan.verdict is not None
        held = breakdown[fitplan.Category.BASE_WEIGHTS] + breakdown[fitplan.Category.GRADIENTS]
        assert held > plan.verdict.slack_bytes + plan.memory.bytes


def test_the_paged_states_of_65b_are_what_makes_it_fit() -> None:
    asked = {"method": "qlora", "seq_len": 512, "lora_r": 64, "gpu": "a6000"}
    (paged,) = fitplan.check("llama-1-65b", **asked, optim="paged_adamw_32bit").plans
    (plain,) = fitplan.check("llama-1-65b", **asked).plans
    trained = paged.trainable_parameters
    assert plain.memory.least_bytes > paged.memory.least_bytes + 7.9 * trained
    assert paged.estimate.paged_bytes == pytest.approx(8 * trained, rel=0.01)


@pytest.mark.parametrize(("optim", "bytes_each"), [(Optim.PAGED_ADAMW_32BIT, 8), (Optim.PAGED_ADAMW_8BIT, 2)])
def test_paged_states_without_a_twin_are_counted(
    optim: Optim, bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is known of the optimizer that does not page: two states, of four bytes or of one."""
    monkeypatch.setattr(estimator, "known_estimate", lambda *_: None)
    (plan,) = fitplan.check("llama-3.2-1b", gpu="h100", method="full", seq_len=512, optim=optim).plans
    held = plan.estimate.peak.breakdown.get(Category.OPTIMIZER_STATES, 0)
    assert plan.estimate.paged_bytes == bytes_each * plan.trainable_parameters - held
    assert 0 < held < plan.trainable_parameters
