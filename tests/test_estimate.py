"""From events to peaks, moments and verdicts, by hand-made traces."""

from dataclasses import replace

import pytest

from fitplan.configs.resolve import ModelConfig
from fitplan.devices.context import context_on
from fitplan.devices.device import Device, _entries, device_of_size, find_device, known_devices
from fitplan.errors import DeviceNotFound, InputError
from fitplan.memory import AllocatorOverhead, MemoryEstimate, MemoryMoment, estimate_trace
from fitplan.phase import Phase
from fitplan.plan import CheckReport
from fitplan.question import device_named
from fitplan.trace.events import Allocation, Category, Layer, Moment, Trace, layer_of_path
from fitplan.units import GIB, MIB, count, gib, parse_size
from fitplan.verdict import Fit, device_memory, judge


def _trace() -> Trace:
    trace = Trace(stacks={"model.layers": 2})
    load, forward = Moment(Phase.LOAD), Moment(Phase.FORWARD, "layer", Layer("model.layers", 1))
    backward = Moment(Phase.BACKWARD, "loss")
    trace.born(Allocation(1000, Category.BASE_WEIGHTS, "model", "empty"), load)
    activation = trace.born(Allocation(3 * MIB, Category.ACTIVATIONS, "model.layers.1", "mm"), forward)
    trace.born(Allocation(1, Category.LOGITS_AND_LOSS, "loss", "nll"), backward)
    trace.released(activation, backward)
    trace.born(Allocation(2 * MIB, Category.GRADIENTS, "model", "mm"), backward)
    return trace


def test_blocks_are_rounded_up_and_the_peak_is_found() -> None:
    estimate = estimate_trace(_trace())
    assert estimate.peak_allocated_bytes == 1024 + 3 * MIB + 512
    assert estimate.peak_moment == "backward of the loss"
    assert estimate.breakdown[Category.ACTIVATIONS] == 3 * MIB
    assert estimate.breakdown[Category.BASE_WEIGHTS] == 1024
    assert estimate.breakdown[Category.LOGITS_AND_LOSS] == 512
    assert estimate.large_blocks == 1


def test_breakdowns_sum_to_their_moments() -> None:
    estimate = estimate_trace(_trace())
    assert [moment.name for moment in estimate.moments] == [
        "loading the model", "forward of layer 1", "backward of the loss",
    ]  # fmt: skip
    assert [moment.bytes for moment in estimate.moments] == [1024, 1024 + 3 * MIB, 1024 + 3 * MIB + 512]
    assert all(sum(moment.breakdown.values()) == moment.bytes for moment in estimate.moments)


def test_a_coarser_granule_rounds_more() -> None:
    assert estimate_trace(_trace(), granule=1).peak_allocated_bytes == 1000 + 3 * MIB + 1


def _estimate(size: int, large_blocks: int = 0) -> MemoryEstimate:
    moment = MemoryMoment("forward", {Category.BASE_WEIGHTS: size})
    return MemoryEstimate(moment, (moment,), large_blocks)


LARGEST_CONTEXT, RTX_3090_CONTEXT = 758 * MIB, 256 * MIB
A_CONTEXT_WITHOUT_KERNELS = 504_658_657
SPREAD = LARGEST_CONTEXT - RTX_3090_CONTEXT


@pytest.mark.parametrize(
    ("spare", "expected"),
    [(SPREAD + 100 * MIB, Fit.FITS), (SPREAD + 100 * MIB - 1, Fit.TIGHT), (0, Fit.TIGHT), (-1, Fit.DOES_NOT_FIT)],
)
def test_the_verdict_turns_where_it_says(spare: int, expected: Fit) -> None:
    estimate = _estimate(10 * GIB, large_blocks=100)
    verdict = judge(estimate, Device("test", 99 * GIB, 10 * GIB + LARGEST_CONTEXT + spare, (8, 0), "test"))
    assert verdict.fit is expected
    assert verdict.slack_bytes == spare
    assert verdict.uncertainty_bytes == SPREAD + 100 * MIB


@pytest.mark.parametrize(
    ("usable", "expected", "words"),
    [
        (14 * GIB + LARGEST_CONTEXT + SPREAD + 300 * MIB, Fit.FITS, "leave enough"),
        (14 * GIB + LARGEST_CONTEXT + SPREAD + 300 * MIB - 1, Fit.TIGHT, "less than the uncertainty"),
        (14 * GIB + LARGEST_CONTEXT - 512 * MIB, Fit.ONLY_IF, "512.0 MiB of 3.00 GiB cached can be given back"),
        (11 * GIB + LARGEST_CONTEXT, Fit.ONLY_IF, "3.00 GiB of 3.00 GiB cached"),
        (11 * GIB + LARGEST_CONTEXT - 1, Fit.DOES_NOT_FIT, "exceed"),
    ],
)
def test_what_the_allocator_keeps_makes_it_tight(usable: int, expected: Fit, words: str) -> None:
    estimate = replace(_estimate(10 * GIB), allocator=AllocatorOverhead(GIB, 3 * GIB, 300 * MIB))
    verdict = judge(estimate, Device("test", 99 * GIB, usable, (8, 0), "test"))
    assert (verdict.fit, words in verdict.reason) == (expected, True), verdict.reason
    assert verdict.memory.bytes == 14 * GIB + LARGEST_CONTEXT == usable - verdict.slack_bytes
    assert estimate.peak_reserved_bytes == 14 * GIB


@pytest.mark.parametrize(
    ("short", "kept", "expected", "words"),
    [
        (2 * GIB, GIB, Fit.TIGHT, "2.00 GiB of 3.00 GiB cached must be given back while it runs, and can be"),
        (2 * GIB + 1, GIB, Fit.DOES_NOT_FIT, "1.00 GiB of 3.00 GiB cached lie in pieces, and cannot be given back"),
        (3 * GIB, 0, Fit.TIGHT, "3.00 GiB of 3.00 GiB"),
        (3 * GIB + 1, 0, Fit.DOES_NOT_FIT, "exceed the device"),
    ],
)
def test_a_replay_with_less_decides_what_fits_only_if(short: int, kept: int, expected: Fit, words: str) -> None:
    allocator = AllocatorOverhead(GIB, 3 * GIB, 0, kept_bytes=kept)
    usable = 14 * GIB + LARGEST_CONTEXT - short
    verdict = judge(replace(_estimate(10 * GIB), allocator=allocator), Device("t", 99 * GIB, usable, (8, 0), "t"))
    assert (verdict.fit, verdict.slack_bytes) == (expected, -short)
    assert words in verdict.reason


def test_paged_states_stay_where_there_is_room() -> None:
    estimate = replace(_estimate(10 * GIB), allocator=AllocatorOverhead(0, 0), paged_bytes=4 * GIB)
    room = Device("test", 99 * GIB, 13 * GIB + LARGEST_CONTEXT + SPREAD, (8, 0), "test")
    verdict = judge(estimate, room)
    assert verdict.fit is Fit.FITS
    assert verdict.memory.paged_bytes == 3 * GIB
    assert verdict.reason.endswith("3.00 GiB of paged optimizer states take what is free, 1.00 GiB move to the host")
    assert device_memory(estimate, None).bytes == verdict.memory.bytes == 10 * GIB + LARGEST_CONTEXT


def test_a_context_is_that_of_the_gpu_where_it_was_measured() -> None:
    assert context_on(find_device("3090")).bytes == RTX_3090_CONTEXT
    assert context_on(find_device("h100")).bytes == 758 * MIB
    assert context_on(find_device("h200")).bytes == 758 * MIB
    assert context_on(find_device("a100-80gb")).bytes == A_CONTEXT_WITHOUT_KERNELS
    assert context_on(find_device("4090")).measured_on == context_on(None).measured_on == "H100 80GB HBM3"
    assert "after training steps" in context_on(None).source


@pytest.mark.parametrize(
    ("spelling", "mib"),
    [
        ("H100", 81559), ("h100_80gb", 81559), ("NVIDIA H100 80GB HBM3", 81559), ("a100-40gb", 40960), ("4090", 24564),
        ("GeForce RTX 4090", 24564), ("rtx4090", 24564), ("t4", 15360), ("Tesla T4", 15360), ("v100-32gb", 32768),
        ("L40S", 46068), ("a10g", 23028), ("h200", 143771), ("RTX 6000 Ada", 49140), ("5090", 32607),
        ("A100-SXM", 81920), ("a100-40", 40960), ("A100 80 GB", 81920), ("V100-PCIE", 16384), ("5060ti", 16311),
        ("RTX 4090 24GB", 24564), ("gtx1080", 8192), ("2080", 8192), ("3070ti", 8192), ("5060", 8151), ("a4500", 20470),
        ("Tesla P40", 23040), ("TITAN RTX", 24576), ("4090D", 24564), ("h20", 97871), ("h800", 81559), ("a800", 81920),
        ("L20", 46068),
    ],
)  # fmt: skip
def test_gpus_are_found_by_the_names_people_use(spelling: str, mib: int) -> None:
    assert find_device(spelling).total_bytes == mib * MIB


def test_every_gpu_has_a_source_and_plausible_figures() -> None:
    devices = known_devices()
    assert len(devices) >= 40
    for device in devices:
        assert device.source
        assert device.usable_bytes < device.total_bytes
        assert device.usable_bytes > 0.9 * device.total_bytes or not device.is_usable_known
        assert device.total_bytes - device.usable_bytes <= 870 * MIB  # of an A100 with 80 GB, the most that is known
        assert (6, 0) <= device.capability <= (13, 0)


def test_no_two_gpus_share_a_name() -> None:
    names = [name for _, _, spellings in _entries() for name in spellings]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("2x4090", "without the count: 4090"),
        ("8 x H100", "without the count: H100"),
        ("H100x8", "without the count: H100"),
        ("MI300X", "only GPUs by NVIDIA are known"),
        ("AMD Instinct MI250", "an amount of vram such as 24GiB"),
        ("M3 Max", "only GPUs by NVIDIA are known"),
        ("Gaudi2", "only GPUs by NVIDIA are known"),
        ("24GiB", "an amount of memory (24.00 GiB), not the name of a GPU; give it as vram"),
        ("RTX 4091", "did you mean rtx-4090 or "),
        ("voodoo", "see fitplan gpus; an amount of vram such as 24GiB can be given instead"),
        ("RTX 3090 48GB", "no GPU is known"),
    ],
)
def test_why_a_gpu_is_not_known(name: str, hint: str) -> None:
    with pytest.raises(DeviceNotFound) as refused:
        find_device(name)
    assert hint in str(refused.value)
    assert "profiles/" not in str(refused.value)


def test_a_number_names_a_gpu() -> None:
    found = device_named(4090, None)
    assert found is not None
    assert found.name == "RTX 4090"
    with pytest.raises(InputError, match="GPU"):
        device_named(999, None)


def test_an_unknown_gpu_suggests_the_nearest() -> None:
    with pytest.raises(DeviceNotFound, match="h100"):
        find_device("h1000")
    assert device_of_size(24 * GIB).usable_bytes == 24 * GIB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB), ("24GB", 24 * 10**9), ("24g", 24 * 10**9), ("1.5 GiB", 1536 * MIB),
        ("500KiB", 500 * 2**10), ("25769803776", 24 * GIB), (24 * GIB, 24 * GIB),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "meant"), [("24", "24GiB"), (" 24 ", "24GiB"), (24, "24GiB"), ("24564", "24564MiB")])
def test_a_size_without_its_unit_is_asked_about(text: str | int, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        parse_size(text)
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        device_named(None, text)


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "24 parsecs", "1e3", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no memory size"):
        parse_size(text)


def test_sizes_and_counts_are_written() -> None:
    assert gib(6 * GIB + GIB // 2) == "6.50 GiB"
    assert gib(64 * MIB) == "64.0 MiB"
    assert gib(GIB // 2) == "512.0 MiB"
    assert gib(GIB) == "1.00 GiB"
    assert count(8_030_261_248) == "8.03 B"
    assert count(41_943_040) == "41.94 M"


def test_layers_are_read_off_paths() -> None:
    assert layer_of_path("model.layers.3.mlp.up_proj") == Layer("model.layers", 3)
    assert layer_of_path("encoder.block.0.layer.1.wo") == Layer("encoder.block", 0)
    assert layer_of_path("lm_head.weight") is None


def test_a_quantised_checkpoint_is_told_of() -> None:
    stored = {"quant_method": "gptq", "bits": 4}
    for settings, told in (({"quantization_config": stored}, True), ({}, False)):
        model = ModelConfig("m", "file", {"model_type": "llama", **settings})
        warnings = CheckReport(model=model, gpu=None, plans=(), installed={}).warnings
        assert [("gptq" in text) for text in warnings] == [True] * told
