"""A few of the hostile and damaged inputs of ``benchmarks/fuzz.py``, and that its judge sees what is wrong."""

from typing import Any

import pytest
from scripts import loaded

PLANS = '{{"plans": [{{"estimate": {{"peak_reserved_bytes": {}, "breakdown": {{"gradients": {}}}}}}}]}}'


@pytest.fixture(scope="module")
def fuzz() -> Any:
    return loaded("benchmarks/fuzz.py")


@pytest.mark.parametrize("tens", range(6))
def test_hostile_and_damaged_inputs_end_in_an_answer_or_a_sentence(fuzz: Any, tens: int) -> None:
    verdicts = {seed: fuzz.judged(seed) for seed in range(500 + 10 * tens, 510 + 10 * tens)}
    assert {seed: one.fault for seed, one in verdicts.items() if one.fault} == {}
    assert {one.outcome for one in verdicts.values()} > {"refused"}, "not all of them are refused"


@pytest.mark.parametrize(
    ("code", "out", "err", "fault"),
    [
        (70, "", "fitplan: error: a defect", "exit code 70"),
        ("ZeroDivisionError: x", "", "", "exit code Zero"),
        (2, "", "", "0 lines of error"),
        (2, "", "fitplan: error: a\nfitplan: error: b", "2 lines of error"),
        (0, "{}", "Traceback (most recent call last):", "traceback"),
        (2, "", "fitplan: error: " + "x" * 5000, "a long echo"),
        (0, "{}", "\x1b[2J", "acts on a terminal"),
        (0, PLANS.format(2, -1), "", "a size that cannot be"),
        (0, PLANS.format(0, 1), "", "a size that cannot be"),
        (0, PLANS.format("NaN", 1), "", "JSON: NaN"),
        (0, "{", "", "JSON"),
        (0, PLANS.format(2, 1), "", ""),
        (2, "", "fitplan: error: a", ""),
    ],
)
def test_the_judge_sees_what_is_wrong(fuzz: Any, code: Any, out: str, err: str, fault: str) -> None:
    found = fuzz._fault(code, out, err, is_json=True)
    assert fault in found
    assert bool(fault) == bool(found)
