"""Put fitplan's answers beside figures that many people quote, and say which assumption makes the difference.

    python benchmarks/popular_figures.py            # print the page
    python benchmarks/popular_figures.py --write    # write docs/popular-figures.md

Popular figures are typed here, with where they come from. Every other number on the page comes from the run.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fitplan.api import check, installed_versions
from fitplan.devices.context import context_on
from fitplan.devices.device import find_device
from fitplan.memory import MemoryEstimate
from fitplan.plan import Plan
from fitplan.setup import Method
from fitplan.trace.events import Category
from fitplan.units import GIB

PAGE = Path(__file__).parent.parent / "docs" / "popular-figures.md"
GB = 10**9
WEIGHTS_ONLY = (Category.BASE_WEIGHTS,)
STATIC = (Category.BASE_WEIGHTS, Category.ADAPTER_WEIGHTS, Category.GRADIENTS, Category.OPTIMIZER_STATES)
NAMES: Mapping[Category, str] = {
    Category.BASE_WEIGHTS: "base weights",
    Category.ADAPTER_WEIGHTS: "adapters",
    Category.GRADIENTS: "gradients",
    Category.OPTIMIZER_STATES: "optimizer states",
    Category.ACTIVATIONS: "activations",
    Category.LOGITS_AND_LOSS: "logits and loss",
    Category.TEMPORARIES: "temporaries",
    Category.WORKSPACES: "cuBLAS workspaces",
}
NEGLIGIBLE = 0.002
"""Parts of the peak below this share are not listed."""


@dataclass(frozen=True)
class Figure:
    """A figure that people quote, and the job that it is about.

    Attributes:
        model: fitplan's name of the model.
        settings: of the job; what is left out takes fitplan's default.
        gigabytes: the popular figure, in GB.
        assumption: what the popular figure counts, in words.
        covers: the categories of the breakdown that it stands for.

    """

    model: str
    settings: Mapping[str, Any]
    gigabytes: float
    assumption: str
    covers: tuple[Category, ...] = WEIGHTS_ONLY


FULL_RULE = "8 bytes a parameter: weights, gradients and both AdamW states in bfloat16, of a rounded parameter count"
LORA_RULE = "2 bytes a parameter for the frozen weights, and little or nothing for the rest"
QLORA_RULE = "half a byte a parameter and a margin"

TABLE = tuple(
    Figure(model, {"method": method}, gigabytes, rule, covers)
    for method, rule, covers, row in (
        ("full", FULL_RULE, STATIC, (56, 104, 560)),
        ("lora", LORA_RULE, WEIGHTS_ONLY, (16, 28, 140)),
        ("qlora", QLORA_RULE, WEIGHTS_ONLY, (6, 10, 48)),
    )
    for model, gigabytes in zip(("llama-2-7b", "llama-2-13b", "llama-2-70b"), row, strict=True)
)
QV = {"lora_r": 8, "target_modules": ("q_proj", "v_proj")}
WORKED = (
    Figure("llama-2-7b", {"method": "full"}, 56, "14 GB weights + 14 GB gradients + 28 GB AdamW states", STATIC),
    Figure("llama-2-7b", {"method": "lora", **QV}, 14.5, "14 GB weights and 0.5 GB for everything else"),
    Figure("llama-2-7b", {"method": "qlora", **QV}, 4, "half a byte a parameter and 0.5 GB for everything else"),
)


@cache
def _answer(model: str, settings: tuple[tuple[str, Any], ...]) -> Plan:
    return check(model, **dict(settings)).plans[0]


def answer(model: str, **settings: Any) -> Plan:
    return _answer(model, tuple(sorted(settings.items())))


# --- numbers as text --------------------------------------------------------------------------------------------------


def gb(size: float) -> str:
    return f"{size / GB:.2f} GB"


def both(size: int) -> str:
    return f"{gb(size)} ({size / GIB:.2f} GiB)"


def setting_names(plan: Plan) -> str:
    """The settings that decide the answer, as they were resolved."""
    setup = plan.setup
    parts = [str(setup.method)]
    if setup.method is not Method.FULL:
        targets = setup.target_modules
        parts.append(f"r={setup.lora_r} on {targets if isinstance(targets, str) else ', '.join(targets or ())}")
    if setup.method is Method.QLORA:
        parts.append(f"{setup.quant}{', double quantisation' if setup.double_quant else ''}")
        parts.append(f"k-bit preparation {'on' if setup.kbit_prepare else 'off'}")
    checkpointing = "gradient checkpointing" if setup.gradient_checkpointing else "no gradient checkpointing"
    parts += [f"{setup.batch_size} x {setup.seq_len} tokens", str(setup.dtype), str(setup.optim), checkpointing]
    return ", ".join(parts)


def parts_of(estimate: MemoryEstimate, categories: Iterable[Category]) -> str:
    """``"13.48 GB base weights, 0.57 GB activations"``, largest first."""
    breakdown, total = estimate.breakdown, estimate.peak_allocated_bytes
    listed = sorted((c for c in categories if breakdown[c] > NEGLIGIBLE * total), key=lambda c: -breakdown[c])
    return ", ".join(f"{gb(breakdown[c])} {NAMES[c]}" for c in listed)


# --- what makes the difference ----------------------------------------------------------------------------------------


def difference(figure: Figure, plan: Plan) -> str:
    """One sentence from the plan's own breakdown: what the figure stands for here, and what comes on top."""
    estimate = plan.estimate
    covered = sum(estimate.breakdown[category] for category in figure.covers)
    rest = estimate.peak_allocated_bytes - covered
    what = "weights, gradients and optimizer states" if figure.covers == STATIC else "the base weights"
    text = f"Counts {figure.assumption}. With {plan.base_parameters:,} parameters {what} are {gb(covered)}"
    if plan.setup.method is Method.QLORA:
        text += f" ({storage_split(plan)})"
    if plan.setup.kbit_prepare:
        bare = answer(figure.model, **{**figure.settings, "kbit_prepare": False}).estimate.peak_allocated_bytes
        tail = f" Without k-bit preparation the same job peaks at {gb(bare)}."
    else:
        tail = ""
    text += f"; the other {gb(rest)} at the peak ({estimate.peak_moment})"
    listed = parts_of(estimate, tuple(category for category in Category if category not in figure.covers))
    return f"{text} are {listed or 'workspaces and temporaries'}.{tail}"


def storage_split(plan: Plan) -> str:
    """How the base weights of a quantised model are stored."""
    packed = sum(group.bytes for group in plan.parameters if group.quantised)
    upcast = sum(g.bytes for g in plan.parameters if g.storage == "float32" and not g.adapter and not g.trainable)
    plain = sum(group.bytes for group in plan.parameters if not group.quantised and not group.adapter) - upcast
    parts = [f"{gb(packed)} in 4 bits with their scales"]
    if plain:
        parts.append(f"{gb(plain)} never quantised: embedding, output head, norms")
    if upcast:
        parts.append(f"{gb(upcast)} never quantised and cast to float32 by prepare_model_for_kbit_training")
    return "; ".join(parts)


# --- sections ---------------------------------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures_section(figures: tuple[Figure, ...]) -> str:
    rows = []
    for figure in figures:
        plan = answer(figure.model, **figure.settings)
        peak = plan.estimate.peak_allocated_bytes
        rows.append(
            (
                figure.model,
                f"{figure.gigabytes:g} GB",
                both(peak),
                f"{peak / GB / figure.gigabytes - 1:+.0%}",
                setting_names(plan),
                difference(figure, plan),
            )
        )
    return table(("model", "popular", "fitplan, allocated at the peak", "differs by", "settings", "why"), rows)


def variants_section(model: str, base: Mapping[str, Any], steps: tuple[tuple[str, Mapping[str, Any]], ...]) -> str:
    """The same job with one assumption changed after another."""
    rows = []
    for name, changes in steps:
        plan = answer(model, **{**base, **changes})
        estimate = plan.estimate
        rows.append(
            (name, both(estimate.peak_allocated_bytes), estimate.peak_moment, parts_of(estimate, tuple(Category)))
        )
    return table((model, "allocated at the peak", "peaks in", "of which"), rows)


CARD_SIZE = find_device("a6000")
QLORA_65B: Mapping[str, Any] = {"method": "qlora", "lora_r": 64, "gpu": "a6000"}
SHORT: Mapping[str, Any] = {"seq_len": 512}
PAGED: Mapping[str, Any] = {**SHORT, "optim": "paged_adamw_32bit"}
PAGED_BARE: Mapping[str, Any] = {**PAGED, "kbit_prepare": False}
STEPS_65B: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("A: fitplan's defaults", {}),
    ("B: A with 512 tokens", SHORT),
    ("C: B without k-bit preparation", {**SHORT, "kbit_prepare": False}),
    ("D: B with paged_adamw_32bit", PAGED),
    ("E: D without k-bit preparation", PAGED_BARE),
    ("F: E with paged_adamw_8bit", {**PAGED_BARE, "optim": "paged_adamw_8bit"}),
    ("G: E without double quantisation", {**PAGED_BARE, "double_quant": False}),
)


def section_65b() -> str:
    rows = []
    for name, changes in STEPS_65B:
        plan = answer("llama-1-65b", **{**QLORA_65B, **changes})
        assert plan.verdict is not None
        rows.append(
            (
                name,
                both(plan.estimate.peak_allocated_bytes),
                str(plan.verdict.fit).replace("_", " "),
                gb(plan.verdict.slack_bytes),
                parts_of(plan.estimate, tuple(Category)),
            )
        )
    return table(("llama-1-65b, r=64 on all linear layers", "allocated", "verdict", "left", "of which"), rows)


def needs_65b() -> str:
    """Which of the steps fit, in words."""
    fits: dict[str, list[str]] = {"fits": [], "tight": [], "does_not_fit": []}
    for name, changes in STEPS_65B:
        verdict = answer("llama-1-65b", **{**QLORA_65B, **changes}).verdict
        assert verdict is not None
        fits[str(verdict.fit)].append(name.partition(":")[0])
    return "; ".join(f"{', '.join(names)}: {fit.replace('_', ' ')}" for fit, names in fits.items() if names)


def paging_note() -> str:
    """Which steps fit, and what the trained part of the job has to do with it."""
    held = answer("llama-1-65b", **{**QLORA_65B, **SHORT}).estimate.breakdown
    states = held[Category.OPTIMIZER_STATES]
    trained = states + held[Category.ADAPTER_WEIGHTS] + held[Category.GRADIENTS]
    return (
        f"{needs_65b()}. In B the adapters of r=64, their gradients and their AdamW states take {gb(trained)}, "
        f"of which "
        f"paging takes the {gb(states)} of states off the GPU. The states of a paged optimizer lie in memory "
        f"that CPU and "
        "GPU share, and the driver moves them to the CPU when the GPU is full; PyTorch's allocator does not "
        "hold them, so "
        "they are not in these figures, and a step that has to move them is slower."
    )


def bits(model: str, double_quant: bool) -> tuple[int, int]:
    """Numbers and bytes of the 4-bit layers."""
    plan = answer(model, method="qlora", seq_len=8, double_quant=double_quant)
    packed = [group for group in plan.parameters if group.quantised]
    return sum(group.parameters for group in packed), sum(group.bytes for group in packed)


def section_bits() -> str:
    rows = []
    for model in ("llama-2-7b", "llama-2-70b", "llama-1-65b"):
        numbers, plain = bits(model, False)
        _, double = bits(model, True)
        rows.append(
            (
                model,
                f"{numbers:,}",
                f"{plain * 8 / numbers:.4f}",
                f"{double * 8 / numbers:.4f}",
                f"{(plain - double) * 8 / numbers:.4f}",
                gb(plain - double),
            )
        )
    header = ("model", "numbers in 4 bits", "bits each, plain", "bits each, double", "saved bits", "saved")
    return table(header, rows)


# --- counts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """A published number of trained parameters.

    Attributes:
        model: fitplan's name of the model.
        rank: of LoRA.
        targets: the modules.
        published: as the source prints it.
        source: where, in words.
        why: what connects it with ours; ``{...}`` are filled from the plan.
        settings: further settings.

    """

    model: str
    rank: int
    targets: tuple[str, ...]
    published: str
    source: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=lambda: {"method": "lora"})


LORA_PAPER = "LoRA paper (arXiv:2106.09685)"
FUSED = (
    "query, key and value are one matrix [d, 3d] in the GPT-2 layout: r(d + 3d) a layer is the same number as two "
    "matrices of r(d + d)"
)
GPT2_WHY = FUSED + "; for the rest of the difference see below"
COUNTS = (
    Count("roberta-base", 8, ("query", "value"), "0.3 M", LORA_PAPER + ", table 2", "the same, to the parameter"),
    Count("roberta-large", 8, ("query", "value"), "0.8 M", LORA_PAPER + ", table 2", "the same, to the parameter"),
    Count("deberta-v2-xxlarge", 16, ("query_proj", "value_proj"), "4.7 M", LORA_PAPER + ", table 2", "the same"),
    Count("gpt3-175b", 1, ("c_attn",), "4.7 M", LORA_PAPER + ", table 4", FUSED),
    Count("gpt3-175b", 8, ("c_attn",), "37.7 M", LORA_PAPER + ", table 4", FUSED),
    Count("gpt2-medium", 4, ("c_attn",), "0.35 M", LORA_PAPER + ", table 3", GPT2_WHY),
    Count("gpt2-large", 4, ("c_attn",), "0.77 M", LORA_PAPER + ", table 3", GPT2_WHY),
    Count(
        "gpt-neox-20b",
        8,
        ("query_key_value",),
        "8,650,752",
        "Hugging Face's example of 4-bit training",
        "the same, to the parameter",
        {"method": "qlora", "kbit_prepare": False},
    ),
)


def counted(row: Count) -> Plan:
    return answer(row.model, seq_len=8, lora_r=row.rank, target_modules=row.targets, **row.settings)


def section_counts() -> str:
    rows = [
        (
            row.model,
            f"r={row.rank} on {', '.join(row.targets)}",
            row.published,
            row.source,
            f"{counted(row).trainable_parameters:,}",
            row.why,
        )
        for row in COUNTS
    ]
    return table(("model", "adapters", "published", "source", "fitplan", "why"), rows)


def gpt2_note() -> str:
    """Why no rank and no choice of matrices explains the two published GPT-2 counts."""
    medium, large = (next(row for row in COUNTS if row.model == name) for name in ("gpt2-medium", "gpt2-large"))
    ours = [counted(row).trainable_parameters for row in (medium, large)]
    sizes = [counted(row).base_parameters for row in (medium, large)]
    published = [float(row.published.removesuffix(" M")) for row in (medium, large)]
    return (
        f"**GPT-2 in the LoRA paper.** The paper prints {medium.published} and {large.published} for GPT-2 medium and "
        f"large. Any LoRA on the attention layers has a count that is a multiple of layers x width, whatever the rank "
        f"and the matrices, so the counts of the two models stand in the ratio "
        f"{ours[0] / ours[1]:.3f} (ours: {ours[0]:,} and {ours[1]:,}); the printed ones stand in the ratio "
        f"{published[0] / published[1]:.3f}. No setting gives both: ours is "
        f"{ours[0] / 1e6 / published[0] - 1:+.0%} and {ours[1] / 1e6 / published[1] - 1:+.0%} away. "
        f"A thousandth of the models' own {sizes[0]:,} and {sizes[1]:,} "
        f"parameters is {sizes[0] / 1e9:.2f} M and {sizes[1] / 1e9:.2f} M, which are the printed figures; "
        'that they are a rounded "0.1 % of the model" is our reading, not the paper\'s statement.'
    )


def neox_note() -> str:
    row = next(row for row in COUNTS if row.model == "gpt-neox-20b")
    plan = counted(row)
    quantised = sum(group.parameters for group in plan.parameters if group.quantised)
    rest = sum(group.parameters for group in plan.parameters if not group.quantised)
    return (
        f'**GPT-NeoX-20B "all params".** The same example prints 10597552128 for the whole model, though it has '
        f"{plan.base_parameters:,} parameters. bitsandbytes packs two 4-bit numbers into a byte, and `numel()` counts "
        f"bytes: {quantised:,} / 2 for the linear layers, and {rest:,} for embedding, output head, norms, biases and "
        f"adapters, together {quantised // 2 + rest:,}."
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> str:
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    short = {"seq_len": 512}
    bare = {**short, "kbit_prepare": False}
    sections = (
        "# Popular figures, and what they assume",
        "Made by `python benchmarks/popular_figures.py --write`. The popular figures are quoted; every other "
        f"number is fitplan's, traced with {versions}.",
        'GB are 10^9 bytes, GiB 2^30. "Allocated" is what `torch.cuda.max_memory_allocated()` would say: the CUDA '
        f"context ({gb(context_on(None).bytes)} where nothing better is known) and what the allocator holds in "
        "reserve come on top. Where a figure names no GPU, kernels are those of compute capability 8.0.",
        "## 7B, 13B, 70B",
        "A table repeated in many fine-tuning guides and calculators, often without settings; its usual "
        "reading, r=16 on all linear layers and 2048 tokens, is taken here. Its first source is not known to us. "
        "Sizes are those of Llama 2.",
        figures_section(TABLE),
        "The part of the QLoRA figures that is a choice, not a need:",
        variants_section(
            "llama-2-7b",
            {"method": "qlora"},
            (
                ("defaults", {}),
                ("no k-bit preparation", {"kbit_prepare": False}),
                ("512 tokens", short),
                ("both", bare),
            ),
        ),
        "## A worked example for 7B",
        "Repeated in guides as 14 + 14 + 28 = 56 GB for full fine-tuning, about 14.5 GB for LoRA with r=8 and "
        "about 4 GB for QLoRA; its first source is not known to us either. "
        "LoRA is put on query and value, as in the LoRA paper.",
        figures_section(WORKED),
        "What it takes to come near the 4 GB, and near the 14.5 GB:",
        variants_section(
            "llama-2-7b",
            {"method": "qlora", **QV},
            (("512 tokens", short), ("512 tokens, no k-bit preparation", bare)),
        ),
        variants_section("llama-2-7b", {"method": "lora", **QV}, (("2048 tokens", {}), ("512 tokens", short))),
        "## LLaMA-65B on one 48 GB card",
        "The QLoRA paper (arXiv:2305.14314) says that a 65B model can be fine-tuned on a single 48 GB GPU, with "
        f"NF4, double quantisation, paged optimizers and r=64 on all linear layers. Judged here for "
        f"{CARD_SIZE.name} with {both(CARD_SIZE.usable_bytes)} usable:",
        section_65b(),
        paging_note(),
        "## Double quantisation",
        "The QLoRA paper: 0.37 bits a parameter, from 0.5 bits of scales to 0.127. That is about 3 GB for a 65B "
        "model. Counted on the traced bytes of the "
        "4-bit layers, scales, code tables and offsets included:",
        section_bits(),
        "## Trained parameters",
        section_counts(),
        gpt2_note(),
        neox_note(),
    )
    return "\n\n".join(re.sub(r"[ \t]+$", "", section, flags=re.MULTILINE) for section in sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing")
    write = parser.parse_args().write
    text = page()
    if write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
