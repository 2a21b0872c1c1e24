"""Advice: what an expert would try first, and every figure from the same estimator."""

from typing import Any

import pytest
from rich.console import Console

import fitplan
from benchmarks import advice as advice_scenarios
from fitplan.advice import LEVERS, AdviceReport, Advisor, advise_on, smallest_devices
from fitplan.cli.main import main
from fitplan.cli.parser import make_parser
from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import device_of_size, find_device, known_devices
from fitplan.memory import MemoryEstimate, MemoryMoment
from fitplan.report.advice import print_advice
from fitplan.report.command import flags
from fitplan.setup import Method, TrainingSetup
from fitplan.trace.events import Category
from fitplan.units import GIB
from fitplan.verdict import IN_DOUBT, Fit, judge


def _estimate(size: int) -> MemoryEstimate:
    moment = MemoryMoment("forward", dict.fromkeys(Category, 0) | {Category.ACTIVATIONS: size})
    return MemoryEstimate(moment, (moment,), 0)


def _made_up(setup: TrainingSetup) -> MemoryEstimate:
    """A gibibyte a row, twice that without checkpointing; 16, 4 and 1 gibibytes for the methods."""
    rows = setup.batch_size * (1 if setup.gradient_checkpointing else 2)
    return _estimate((rows + {Method.FULL: 16, Method.LORA: 4, Method.QLORA: 1}[setup.method]) * GIB)


def _fix(asked: dict[str, Any], gibibytes: int, fixed: set[str] | None = None) -> dict[str, Any] | None:
    setup = TrainingSetup(**asked)
    found = Advisor(setup, frozenset(fixed or ()), _made_up, device_of_size(gibibytes * GIB)).smallest_fix()
    if found is None:
        return None
    before = setup.to_dict()
    return {name: value for name, value in found.setup.to_dict().items() if value != before[name]}


def test_what_fits_needs_no_change() -> None:
    assert _fix({"method": "lora"}, 8) == {}


def test_a_smaller_batch_hurts_less_than_checkpointing() -> None:
    asked = {"method": "lora", "batch_size": 2, "gradient_checkpointing": False}
    assert _fix(asked, 8) == {"batch_size": 1, "gradient_accumulation_steps": 2}
    assert _fix(asked, 8, {"batch_size"}) == {"gradient_checkpointing": True}
    assert _fix(asked, 8, {"gradient_accumulation_steps"}) == {"gradient_checkpointing": True}
    twice = {"batch_size": 1, "gradient_accumulation_steps": 4}
    assert _fix(asked | {"batch_size": 4}, 8) == twice


def test_the_effective_batch_is_kept() -> None:
    for rows in (2, 3, 5, 8, 12):
        changes = _fix({"method": "lora", "batch_size": rows}, 7)
        assert changes is not None
        assert changes["batch_size"] * changes["gradient_accumulation_steps"] >= rows
        assert changes["batch_size"] == 1


def test_another_method_only_where_it_may_change() -> None:
    changes = _fix({"method": "lora"}, 4)
    assert changes is not None
    assert changes["method"] == "qlora"
    assert changes["quant"] == "nf4"
    assert _fix({"method": "lora"}, 4, {"method"}) is None


def test_nothing_helps_on_no_memory() -> None:
    assert _fix({"method": "full"}, 1) is None


def test_levers_come_in_the_order_of_their_pain() -> None:
    assert [lever.pain for lever in LEVERS] == sorted(lever.pain for lever in LEVERS)


@pytest.mark.parametrize(("asked", "newer"), [("h100", True), ("t4", False)])
def test_the_smallest_device_runs_the_same_kernels(asked: str, newer: bool) -> None:
    gpu = find_device(asked)
    alike = [d for d in known_devices() if (d.capability >= (8, 0)) is newer]
    found = smallest_devices(_estimate(20 * GIB), gpu, known_devices())
    assert found
    assert set(found) <= set(alike)
    assert all(judge(_estimate(20 * GIB), one).fit is Fit.FITS for one in found)
    assert len({round(one.total_bytes / GIB) for one in found}) == 1
    smaller = [d for d in alike if d.total_bytes < min(one.total_bytes for one in found)]
    assert smaller
    assert all(judge(_estimate(20 * GIB), d).fit is not Fit.FITS for d in smaller)
    assert smallest_devices(_estimate(10_000 * GIB), gpu, known_devices()) == ()


@pytest.mark.parametrize("number", range(12))
def test_the_first_proposal_is_an_experts(number: int) -> None:
    scenario = advice_scenarios.SCENARIOS[number]
    assert advice_scenarios.first_levers(scenario)[1] == scenario.first
    assert len(advice_scenarios.SCENARIOS) == 12


def _advised(asked: dict[str, Any], usable: int, fixed: set[str]) -> Any:
    device = device_of_size(usable)
    return advise_on(TrainingSetup(**asked), frozenset(fixed), _made_up, device, known_devices())


def test_what_is_only_made_tight_does_not_end_the_search() -> None:
    """Without the context 6 GiB are needed as asked, 5 with one row; with QLoRA, which lets go of the method, 3."""
    fixed = {"method", "gradient_checkpointing"}
    needed = judge(_estimate(5 * GIB), device_of_size(99 * GIB)).memory.bytes
    advice = _advised({"method": "lora", "batch_size": 2}, needed, fixed)
    assert advice.fix.verdict.fit is Fit.FITS
    assert [step.name for step in advice.fix.steps] == ["QLoRA instead of LoRA"]
    assert advice.let_go == ("method",)


def test_a_length_that_is_shortened_is_the_longest_that_fits() -> None:
    def by_length(setup: TrainingSetup) -> MemoryEstimate:
        return _estimate(setup.seq_len * GIB // 1024)

    device = device_of_size(judge(_estimate(5 * GIB), device_of_size(99 * GIB)).memory.bytes + 2 * GIB)
    found = Advisor(TrainingSetup(method="lora", seq_len=8192), frozenset(), by_length, device).smallest_fix()
    assert found is not None
    assert found.verdict.fit is Fit.FITS
    assert [(step.name, dict(step.changes)) for step in found.steps] == [
        ("shorter sequences", {"seq_len": found.setup.seq_len})
    ]
    assert judge(by_length(found.setup.with_(seq_len=found.setup.seq_len + 64)), device).fit is not Fit.FITS


def test_what_there_is_room_for_is_the_most() -> None:
    report = fitplan.advise("llama-70b", gpu="h100", method="qlora")
    assert set(report.advice.largest) == {"batch_size", "seq_len", "lora_r"}
    for name, most in report.advice.largest.items():
        step = {"batch_size": 1, "seq_len": 64, "lora_r": 8}[name]
        for value, fits in ((most, True), (most + step, False)):
            asked = report.advice.asked.setup.with_(**{name: value})
            verdict = judge(fitplan.estimate("llama-70b", gpu="h100", **asked.to_dict()), report.gpu)
            assert (verdict.fit is Fit.FITS) is fits, (name, value)


def test_what_is_tight_already_is_made_to_fit() -> None:
    needed = judge(_estimate(5 * GIB), device_of_size(99 * GIB)).memory.bytes
    advice = _advised({"method": "lora"}, needed, {"method"})
    assert advice.asked.verdict.fit is Fit.TIGHT
    assert advice.fix.verdict.fit is Fit.FITS
    assert advice.let_go == ("method",)


# --- with shipped models ----------------------------------------------------------------------------------------------

FIRST: list[tuple[str, str, dict[str, Any], dict[str, Any] | None]] = [
    ("llama-8b", "4090", {"method": "full", "seq_len": 2048}, None),
    ("llama-8b", "a100-80gb", {"method": "full", "optim": "adamw_torch"}, None),
    ("llama-8b", "4090", {"seq_len": 4096, "batch_size": 8}, None),
    ("llama-70b", "a100-80gb", {"method": "lora"}, None),
]


@pytest.mark.parametrize(("model", "gpu", "settings"), [row[:3] for row in FIRST])
def test_proposals_are_what_check_says_of_them(model: str, gpu: str, settings: dict[str, Any]) -> None:
    report = fitplan.advise(model, gpu=gpu, **settings)
    proposals = [report.advice.asked, report.advice.fix, report.advice.best, *report.advice.levers[:2]]
    for proposal in [p for p in proposals if p is not None]:
        (plan,) = fitplan.check(model, gpu=gpu, **proposal.setup.to_dict()).plans
        if proposal.verdict.fit in IN_DOUBT:
            continue  # which check decides by a trace
        assert plan.estimate == proposal.estimate
        assert plan.verdict == proposal.verdict
        saved = report.advice.asked.verdict.memory.bytes - proposal.verdict.memory.bytes
        assert proposal.saved_bytes == saved


def test_what_is_fixed_is_kept_and_letting_go_is_told() -> None:
    report = fitplan.advise("llama-8b", gpu="4090", batch_size=32, seq_len=4096)
    assert report.advice.let_go == ("batch_size",)
    assert report.advice.fix is not None
    assert report.advice.fix.setup.seq_len == 4096
    assert report.advice.fix.setup.batch_size * report.advice.fix.setup.gradient_accumulation_steps == 32
    assert all(lever.setup.batch_size == 32 for lever in report.advice.levers)


def test_the_best_settings_train_most_of_the_model() -> None:
    best = fitplan.advise("llama-8b", gpu="a100-80gb").advice.best
    assert best is not None
    assert best.setup.method is Method.FULL
    assert best.verdict.fit is Fit.FITS
    larger = best.setup.with_(batch_size=best.setup.batch_size + 1)
    (plan,) = fitplan.check("llama-8b", gpu="a100-80gb", **larger.to_dict()).plans
    assert plan.verdict is not None
    assert plan.verdict.fit is not Fit.FITS


def test_check_ends_with_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["check", "llama-8b", "--gpu", "4090", "--method", "lora", "--no-gradient-checkpointing"]
    settings: dict[str, Any] = {"gpu": "4090", "method": "lora", "gradient_checkpointing": False}
    (advice,) = fitplan.check("llama-8b", **settings).to_dict()["advice"]
    assert advice["plan"] == 0
    assert advice["verdict"] == "fits"
    assert advice["setup"]["gradient_checkpointing"] is False
    main(plain)
    assert "to make it fit" in capsys.readouterr().out
    main([*plain, "--optim", "sgd", "--seq-len", "8192"])
    assert "to make it fit" not in capsys.readouterr().out


def test_steps_are_told_as_the_flags_that_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["advise", "llama-8b", "--gpu", "4090", "--batch-size", "32", "--seq-len", "4096"])
    text = capsys.readouterr().out
    assert "  smaller batch, accumulated: --batch-size 1 --gradient-accumulation-steps 32 (price:" in text
    assert "expandable segments: --expandable-segments  " in text
    assert "no k-bit preparation: --no-kbit-prepare" in text
    main(["check", "llama-8b", "--gpu", "4090", "--method", "lora", "--no-gradient-checkpointing"])
    assert "to make it fit: shorter sequences: --seq-len " in capsys.readouterr().out


def test_flags_are_what_the_command_takes() -> None:
    settings: dict[str, Any] = {
        "method": "qlora", "seq_len": 4096, "target_modules": ("q_proj", "v_proj"), "kbit_prepare": False,
        "double_quant": True, "lora_dropout": 0.5,
    }  # fmt: skip
    typed = vars(make_parser().parse_args(["check", "llama-8b", *flags(settings)]))
    assert TrainingSetup(**{name: typed[name] for name in settings}) == TrainingSetup(**settings)


def test_what_only_comes_closest_is_not_said_to_fit(capsys: pytest.CaptureFixture[str]) -> None:
    device = device_of_size(judge(_estimate(2 * GIB), device_of_size(99 * GIB)).memory.bytes)
    for asked, words in (
        ({"method": "qlora", "batch_size": 2}, "No known change makes it fit; what comes closest:"),
        ({"method": "qlora", "batch_size": 2, "gradient_checkpointing": False}, "what comes closest:"),
    ):
        advice = advise_on(TrainingSetup(**asked), frozenset({"method"}), _made_up, device, ())
        report = AdviceReport(model=ModelConfig("m", "given", {}), gpu=device, advice=advice, source="shipped")
        print_advice(report, Console(width=120))
        text = capsys.readouterr().out
        assert words in text
        assert "tight" in text.split(words)[1].split("\n\n")[0]
        assert "that makes it fit" not in text


def test_what_fits_is_told_without_a_gap(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "llama-8b", "--gpu", "h100"]) == 0
    text = capsys.readouterr().out
    assert "\n\n\n" not in text
    assert "as asked: qlora (the default), batch 1" in text
    main(["advise", "llama-8b", "--gpu", "h100", "--method", "qlora"])
    assert "(the default)" not in capsys.readouterr().out


def test_nothing_to_emit_is_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("python", "json"):
        assert main(["advise", "llama-8b", "--vram", "2GiB", "--emit", form]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert "none are emitted" in told.err
        assert len(told.err.splitlines()) == 1


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "llama-70b", "--gpu", "a100-80gb", "--method", "lora"]) == 1
    text = capsys.readouterr().out
    assert "QLoRA instead of LoRA" in text
    assert "if method may change" in text
    assert main(["advise", "llama-70b"]) == 2
    assert "needs a device" in capsys.readouterr().err
