"""What an answer says beside its numbers, and what it takes where nothing is said."""

from dataclasses import replace

from families import FAMILIES

import fitplan
from fitplan.configs.resolve import ModelConfig, resolve_model
from fitplan.devices.device import find_device
from fitplan.units import MIB


def test_a_gpu_without_bfloat16_is_given_float16() -> None:
    """T4 and V100: float16 autocast, and trained weights in float32, which the gradient scaler asks for."""
    report = fitplan.check("llama-3.2-1b", gpu="t4")
    assert [str(plan.setup.dtype) for plan in report.plans] == ["float16", "float16", "float32"]
    assert {str(plan.setup.mixed_precision) for plan in report.plans} == {"fp16"}
    assert not any("bfloat16" in note for note in report.warnings)
    assert report.source == "shipped"
    told = fitplan.check("llama-3.2-1b", gpu="t4", method="lora", dtype="bfloat16").warnings
    assert any("Tesla T4 does not multiply bfloat16" in note for note in told)
    assert not fitplan.check("llama-3.2-1b", gpu="a10", method="lora", dtype="bfloat16").warnings


def test_a_model_that_sees_is_answered_for_its_text() -> None:
    eyes = {"model_type": "clip_vision_model"}
    settings = {"model_type": "llava", "text_config": FAMILIES["llama"], "vision_config": eyes}
    model = ModelConfig("see", "file", settings)
    plain = fitplan.check("llama-3.2-1b", method="lora")
    assert any("more than text" in note for note in replace(plain, model=model).warnings)
    assert not any("more than text" in note for note in plain.warnings)
    shipped = resolve_model("google/gemma-3-4b-it")
    assert any("more than text" in note for note in replace(plain, model=shipped).warnings)


def test_what_the_driver_keeps_is_not_promised() -> None:
    """RTX A4000, capability 8.6: of such GPUs the driver keeps most of an A40, 46068 - 45416 MiB."""
    gpu = find_device("a4000")
    assert gpu.total_bytes - gpu.usable_bytes == 652 * MIB
    assert any("652.0 MiB" in note for note in fitplan.check("llama-3.2-1b", method="lora", gpu="a4000").warnings)
    assert fitplan.check("llama-3.2-1b", method="lora", gpu="4090").warnings == ()
