"""What was kept and cannot be read back costs itself only, and is told once, by every command that reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import FAMILIES

import fitplan
from fitplan import shipping
from fitplan.cli.main import main
from fitplan.configs.resolve import resolve_model
from fitplan.devices.context import context_on, own_contexts
from fitplan.devices.device import find_device
from fitplan.footprint import store
from fitplan.setup import Method, TrainingSetup
from fitplan.validation import records
from fitplan.validation.calibration import Calibration, keep
from fitplan.whole import left_out_if_damaged, read_whole, told_to

SHAPE = ["--method", "lora", "--seq-len", "32", "--batch-size", "1"]
Told = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What a command says that it left out; it answers all the same."""

    def run(*typed: str) -> list[str]:
        assert main([*typed]) in (0, 1)
        said = capsys.readouterr()
        assert said.out
        return [line for line in said.err.splitlines() if "is left out: " in line]

    return run


def _tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(FAMILIES["llama"]))
    return str(path)


def _damaged_contexts() -> Path:
    own_contexts().parent.mkdir(parents=True, exist_ok=True)
    own_contexts().write_text('[{"gpu": "H100 80GB HBM3", "bytes": 7e999}]')
    return own_contexts()


def _damaged_record(model: str) -> Path:
    path = records.own_records() / f"{model}--lora--1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"model": ')
    return path


@pytest.mark.parametrize("command", ["check", "advise", "map", "explain", "report"])
def test_a_damaged_calibration_and_record_are_told_once(command: str, told: Told, tmp_path: Path) -> None:
    contexts, record = _damaged_contexts(), _damaged_record("gpt2")
    typed = [command, "gpt2", "--gpu", "h100", "--method", "lora"]
    typed += ["--out", str(tmp_path / "page.html")] if command == "report" else []
    read = [contexts, record] if command in ("check", "report") else [contexts]
    lines = told(*typed)
    assert sorted(map(_path_in, lines)) == sorted(map(str, read))
    assert all(line.startswith("fitplan: note: ") for line in lines)


def test_a_damaged_row_costs_itself_only() -> None:
    keep(Calibration("H100 80GB HBM3", 700 * 2**20, (), {}, {"torch": "2.13", "driver": "580"}, "2026-01-01"))
    rows = json.loads(own_contexts().read_text())
    for bad in (None, {}, {**rows[0], "bytes": -1}, {**rows[0], "bytes": True}, {**rows[0], "gpu": []}, "x"):
        own_contexts().write_text(json.dumps([bad, *rows, bad]))
        said: list[str] = []
        with told_to(said.append):
            assert context_on(find_device("h100")).bytes == 700 * 2**20
            context_on(find_device("h100"))
        assert len(said) == 1


def test_a_calibration_that_is_kept_beside_damaged_ones_says_so() -> None:
    own_contexts().parent.mkdir(parents=True, exist_ok=True)
    own_contexts().write_text("[" * 100_000)
    said: list[str] = []
    with told_to(said.append):
        keep(Calibration("H100 80GB HBM3", 700 * 2**20, (), {}, {}, "2026-01-01"))
    assert len(said) == 1
    assert context_on(find_device("h100")).bytes == 700 * 2**20


@pytest.mark.parametrize("command", ["check", "advise", "explain", "map", "report"])
def test_a_damaged_cache_entry_is_told_once_and_made_again(command: str, told: Told, tmp_path: Path) -> None:
    typed = [command, _tiny(tmp_path), *SHAPE, *([] if command == "explain" else ["--gpu", "h100"])]
    typed += ["--out", str(tmp_path / "page.html")] if command == "report" else []
    assert told(*typed) == []
    entries = sorted(store.cache_folder().glob("*.json"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-9])
    assert [_path_in(line) for line in sorted(told(*typed))] == list(map(str, entries))
    assert told(*typed) == []


def _path_in(line: str) -> str:
    return line.partition(" in ")[2].partition(" is left out")[0]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships of one model, damaged."""
    path = tmp_path / "footprints.json.xz"
    path.write_bytes(b"\xfd7zXZ")
    real = store._shipped_path
    caches = (store._shipped, store._header, store._stored, store._footprint, store._optimizers)
    for one in caches:
        one.cache_clear()
    monkeypatch.setattr(store, "_shipped_path", lambda name, *rest: path if name == "gpt2" else real(name, *rest))
    return path


def test_a_damaged_shipped_file_is_told_once_and_done_without(shipped: Path, told: Told) -> None:
    try:
        (line,) = told("check", "gpt2", "--gpu", "h100", *SHAPE)
        assert str(shipped) in line
    finally:
        store._header.cache_clear()


def test_a_damaged_file_of_another_model_does_not_stop_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "common_setups", lambda _: iter([TrainingSetup(method=Method.FULL)]))
    model = resolve_model(_tiny(tmp_path))
    others = [tmp_path / "out" / name / "footprints.json.xz" for name in ("other", model.name)]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"rubbish")
    said: list[str] = []
    with told_to(said.append):
        shipping.ship(model, tmp_path / "out", lambda _: None)
    assert [str(path) in line for path, line in zip(sorted(others), sorted(said), strict=True)] == [True, True]
    assert store.read_if_of(others[1], None) is not None


def test_in_python_it_is_a_warning() -> None:
    path = _damaged_record("gpt2")
    with pytest.warns(UserWarning, match="left out") as seen:
        fitplan.check("gpt2", gpu="h100", method="lora")
    assert [str(path) in str(one.message) for one in seen] == [True]


def test_what_is_not_there_is_nothing_to_tell(tmp_path: Path) -> None:
    said: list[str] = []
    with told_to(said.append), left_out_if_damaged(tmp_path / "none", "the record"):
        read_whole(tmp_path / "none")
    assert said == []


def test_a_defect_within_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), left_out_if_damaged(tmp_path / "x", "the record"):
        raise AssertionError
