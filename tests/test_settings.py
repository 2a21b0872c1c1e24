"""The list of settings, and everything that is made from it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from mypy.api import run as mypy_run
from scripts import loaded

import fitplan
from fitplan.cli.parser import make_parser
from fitplan.emit import emit_script
from fitplan.errors import InputError
from fitplan.footprint.recipe import recipe_of, shape_of
from fitplan.given import GivenSettings, OtherSettings
from fitplan.report.command import flags
from fitplan.report.terminal import describe_recipe
from fitplan.settings import ByName, Decides, Names, Numbers, Pattern, Setting, Version
from fitplan.setup import SETTINGS, Strategy, TrainingSetup
from fitplan.tui.knobs import KNOBS

DOCS = Path(__file__).parent.parent / "docs"


def _page() -> Any:
    return loaded("docs/settings.py").page()


def test_the_page_is_current() -> None:
    assert (DOCS / "settings.md").read_text() == _page(), "python docs/settings.py makes it"


def base_for(one: Setting) -> dict[str, Any]:
    """A setup in which the setting means something."""
    base: dict[str, Any] = {"method": "qlora"}
    base |= {only.other: only.values[0] for only in one.only if only.other != "method"}
    return base | NEEDED.get(one.name, {})


NEEDED: dict[str, dict[str, Any]] = {
    "init_lora_weights": {"method": "lora"},
    "objective": {"loss": "fused"},
    "beta": {"objective": "grpo", "loss": "fused"},
    "layers_to_transform": {"target_modules": ("k_proj",)},
    "gpus": {"gpus": 2},
    "strategy": {"gpus": 2, "strategy": "fsdp2", "method": "lora"},
    "reshard_after_forward": {"gpus": 2, "strategy": "fsdp2"},
    "use_orig_params": {"gpus": 2, "strategy": "fsdp1", "method": "lora"},
    "backward_prefetch": {"gpus": 2, "strategy": "fsdp1", "method": "lora"},
    "gradient_as_bucket_view": {"gpus": 2, "strategy": "ddp"},
}
"""What some settings want besides."""
OTHERS: dict[Any, Any] = {Names: ("q_proj",), Pattern: ("q_proj",), Numbers: (3,), ByName: (("q_proj", 3),)}


def another(one: Setting, value: Any) -> Any:
    """A value that ``value`` is not."""
    if one.is_enum:
        if one.name == "strategy":
            return Strategy.DDP
        return next(word for word in reversed(one.kind) if word != value)  # nf4 and fp4 take the same bytes
    if one.kind is bool:
        return not value
    if one.kind is Version:
        return "1.6"
    if one.kind in OTHERS:
        return OTHERS[one.kind]
    return 0.25 if one.kind is float else (value or 1) + 2


def changed(one: Setting) -> tuple[TrainingSetup, TrainingSetup]:
    """Two setups that differ in one setting, and in what follows from it."""
    base = base_for(one)
    before = TrainingSetup(**base)
    return before, TrainingSetup(**{**base, one.name: another(one, getattr(before, one.name))})


@pytest.mark.parametrize("one", SETTINGS.values(), ids=SETTINGS)
def test_each_setting_has_a_flag_that_sets_it(one: Setting) -> None:
    _, setup = changed(one)
    value = getattr(setup, one.name)
    typed = vars(make_parser().parse_args(["check", "llama-8b", *flags({one.name: value})]))
    assert getattr(TrainingSetup(**{**base_for(one), one.name: typed[one.name]}), one.name) == value


@pytest.mark.parametrize("one", SETTINGS.values(), ids=SETTINGS)
def test_what_a_setting_decides_is_what_moves_with_it(one: Setting) -> None:
    before, after = changed(one)
    assert (recipe_of(before) != recipe_of(after)) == (one.decides is Decides.RECIPE or one.name == "method")
    if one.name not in ("method", "adapter"):  # with which the rank comes and goes
        assert (shape_of(before) != shape_of(after)) == (one.decides is Decides.SHAPE)


OF_OTHER_STACKS = (
    "stack",
    "stack_version",
    "adapter_dtype",
    "kbit_cast_back",
    "loss",
    "objective",
    "precompute_ref_log_probs",
    "completion_len",
    "beta",
    "activation_offloading",
    "gradient_as_bucket_view",
)
"""What a script for ``transformers.Trainer`` does not have."""


def _script(setup: TrainingSetup) -> str:
    report = fitplan.check("llama-8b", method="qlora")
    task = setup.task or report.plans[0].setup.task
    plan = replace(report.plans[0], setup=replace(setup, task=task, attn=setup.attn or "sdpa"))
    return emit_script(replace(report, plans=(plan,)))


@pytest.mark.parametrize(
    "one", [one for one in SETTINGS.values() if one.name not in OF_OTHER_STACKS], ids=lambda one: one.name
)
def test_each_setting_stands_in_the_script(one: Setting) -> None:
    before, after = changed(one)
    if one.name == "padding":
        after = after.with_(padding="longest")
    assert _script(before) != _script(after)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "fused"},
        {"adapter_dtype": "bfloat16"},
        {"kbit_cast_back": "all"},
        {"padding": "packed"},
        {"completion_len": 100},
        {"activation_offloading": True},
    ],
)
def test_what_another_stack_does_is_no_script_for_a_trainer(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"has no .*; emit json instead, or choose stack trainer"):
        _script(TrainingSetup(method="qlora", **settings))


def test_type_checkers_know_each_setting() -> None:
    assert set(GivenSettings.__annotations__) == set(SETTINGS)
    assert set(GivenSettings.__annotations__) - set(OtherSettings.__annotations__) == {"method"}
    for name, hint in get_type_hints(GivenSettings).items():
        one, allowed = SETTINGS[name], get_args(hint)
        assert type(None) in allowed
        assert not one.is_enum or {one.kind, str} <= set(allowed), name
        assert one.kind not in (int, float, bool) or set(allowed) == {one.kind, type(None)}, name


def _told_by_mypy(program: str, folder: Path) -> str:
    script = folder / "program.py"
    script.write_text(program)
    told, _, _ = mypy_run(["--strict", "--follow-imports=silent", str(script)])
    return told


def test_mypy_knows_the_program_in_the_readme_and_refuses_a_slip(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), re.DOTALL)
    assert "Success" in _told_by_mypy(program, tmp_path)
    told = _told_by_mypy(
        'import fitplan\n\nfitplan.check("gpt2", seq_length=1)\nfitplan.advise("gpt2", lora_r="8")', tmp_path
    )
    assert 'Unexpected keyword argument "seq_length"' in told
    assert 'Argument "lora_r"' in told


def test_each_row_of_the_app_is_a_setting_that_has_one() -> None:
    assert {knob.name for knob in KNOBS} == {one.name for one in SETTINGS.values() if one.row is not None}


def test_what_goes_on_with_the_words_before_has_no_comma() -> None:
    told = describe_recipe(TrainingSetup(method="qlora", gradient_accumulation_steps=2, attn="sdpa"))
    assert told.startswith("accumulated 2 times, r=16 on all linear layers, nf4 with double quantisation, k-bit prep")
    assert describe_recipe(TrainingSetup(method="full")).startswith("bfloat16, bf16 autocast")
