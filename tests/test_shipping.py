"""How the files that ship are made: what is in them, and what becomes of one that was begun."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from families import FAMILIES

from fitplan import shipping
from fitplan.configs.resolve import ModelConfig, resolve_model
from fitplan.errors import ModelNotSupported
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.recipe import recipe_of
from fitplan.footprint.size import NoFormula, Shape
from fitplan.footprint.store import ShippedFile
from fitplan.memory import estimate_trace
from fitplan.setup import Method, Optim, TrainingSetup
from fitplan.tracer import trace_job

A100 = (8, 0)
FULL, LORA = TrainingSetup(method=Method.FULL), TrainingSetup(method=Method.LORA)


@pytest.fixture
def tiny(tmp_path: Path) -> ModelConfig:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(FAMILIES["llama"]))
    return resolve_model(str(path))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[TrainingSetup]:
    """The setups whose footprints were made; two are wanted."""
    found: list[TrainingSetup] = []
    real = shipping._checked

    def seen(job: TrainingJob, *rest: object) -> object:
        found.append(job.setup)
        return real(job, *rest)

    def two(_: tuple[int, int]) -> Iterator[TrainingSetup]:
        yield from (FULL, LORA)

    monkeypatch.setattr(shipping, "_checked", seen)
    monkeypatch.setattr(shipping, "common_setups", two)
    return found


def _ship(model: ModelConfig, folder: Path, **more: bool) -> ShippedFile:
    assert shipping.ship(model, folder, lambda _: None, **more) == []
    return ShippedFile.read(folder / model.name / "footprints.json.xz")


@pytest.mark.usefixtures("made")
def test_a_file_answers_for_its_setups_with_any_optimizer(tiny: ModelConfig, tmp_path: Path) -> None:
    file = _ship(tiny, tmp_path / "out")
    assert [recipe for recipe, _, _ in file.footprints] == [recipe_of(FULL), recipe_of(LORA)]
    shape = Shape(2, 77, 8, 2)
    assert all(set(file.optimizers[key]) == set(Optim) for _, key, _ in file.footprints)
    _, key, footprint = file.footprints[1]
    piece = footprint.piece(shape)
    assert piece is not None
    for optim in (Optim.ADAFACTOR, Optim.PAGED_ADAMW_8BIT):
        (added,) = [part for (least, most), part in file.optimizers[key][optim] if least <= shape.lora_r <= most]
        job = LORA.with_(optim=optim, batch_size=2, seq_len=77, lora_r=8, gradient_accumulation_steps=2)
        traced = estimate_trace(trace_job(tiny, job, A100, lambda _: None).trace)
        assert piece.with_optimizer(added).estimate(shape, A100) == traced


def test_what_was_begun_is_gone_on_with(
    tiny: ModelConfig, tmp_path: Path, made: list[TrainingSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", shipping._checked

    def interrupted(job: TrainingJob, *rest: object) -> object:
        if job.setup == LORA:
            raise KeyboardInterrupt
        return real(job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shipping, "_checked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ship(tiny, out)
    (path,) = [file for file in out.rglob("*") if file.is_file()]
    (begun,) = ShippedFile.read(path).footprints
    made.clear()
    file = _ship(tiny, out)
    assert made == [LORA]
    assert file.footprints[0] == begun
    path.write_bytes(file.to_bytes())
    assert ShippedFile.read(path) == file

    made.clear()
    assert _ship(tiny, out) == file
    assert made == []
    assert _ship(tiny, out, anew=True) == file
    assert made == [FULL, LORA]


def test_a_file_of_another_step_is_made_anew(tiny: ModelConfig, tmp_path: Path, made: list[TrainingSetup]) -> None:
    file = _ship(tiny, tmp_path / "out")
    file.step = "another"
    path = tmp_path / "out" / tiny.name / "footprints.json.xz"
    path.write_bytes(file.to_bytes())
    made.clear()
    assert _ship(tiny, tmp_path / "out").step != "another"
    assert made == [FULL, LORA]


def test_a_model_without_any_formula_gets_no_file(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise NoFormula("the operators change")

    monkeypatch.setattr(shipping, "_checked", without)
    with pytest.raises(ModelNotSupported, match="the operators change"):
        _ship(tiny, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
