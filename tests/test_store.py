"""Where answers come from: shipped, the user's cache, a trace; and what becomes of damaged or contested files."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

import fitplan
from fitplan import api, estimator
from fitplan.configs.resolve import ModelConfig, resolve_model
from fitplan.footprint import store
from fitplan.footprint.footprint import Footprint, piece_at_point
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.recipe import shape_of
from fitplan.memory import MemoryEstimate, MemoryMoment
from fitplan.plan import CheckReport
from fitplan.setup import Optim, TrainingSetup
from fitplan.trace.events import Category
from fitplan.tracer import installed_versions

A100 = (8, 0)


def _job(model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int] = A100) -> TrainingJob:
    return TrainingJob(model=model, setup=setup, capability=capability)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(FAMILIES["llama"]))
    return str(path)


def _document(model: str, **settings: Any) -> Any:
    document = api.check(model, gpu="a100-40gb", **settings).to_dict()
    return document["provenance"]["source"], document["plans"]


def test_the_second_answer_is_the_first_from_the_cache(tiny: str) -> None:
    settings = {"method": "lora", "seq_len": 32, "gradient_accumulation_steps": 3}
    source, plans = _document(tiny, **settings)
    again, same = _document(tiny, **settings)
    assert (source, again) == ("trace", "cache")
    for plan in (*plans, *same):
        del plan["source"]
    assert same == plans
    assert _document(tiny, **settings, trace=True)[0] == "trace"
    assert _document(tiny, **(settings | {"seq_len": 33}))[0] == "trace"
    assert _document(tiny, **(settings | {"lora_r": 17}))[0] == "trace"
    assert _document(tiny, **(settings | {"optim": "sgd"}))[0] == "trace"
    assert _document(tiny, **(settings | {"lora_alpha": 99}))[0] == "cache"


def test_ranks_share_a_file_and_keep_their_own_parameters(tiny: str, own_cache: Path) -> None:
    counts = {}
    for _ in range(2):
        for rank in (4, 8):
            plan = _document(tiny, method="lora", seq_len=32, lora_r=rank)[1][0]
            counts.setdefault(rank, set()).add(plan["trainable_parameters"])
    assert len(list(own_cache.iterdir())) == 1
    assert all(len(found) == 1 for found in counts.values())
    assert counts[8] == {2 * n for n in counts[4]}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"pieces": 3}', b"[]", b"\xff\xfe", b'{"pieces": [], "attention": "sdpa"}']
)
def test_a_damaged_entry_is_replaced(tiny: str, own_cache: Path, damage: bytes) -> None:
    _document(tiny, method="full", seq_len=32)
    (entry,) = own_cache.iterdir()
    entry.write_bytes(damage)
    assert _document(tiny, method="full", seq_len=32)[0] == "trace"
    assert _document(tiny, method="full", seq_len=32)[0] == "cache"


def _point(size: int, seq_len: int) -> tuple[TrainingSetup, Footprint]:
    setup = TrainingSetup(method="full", seq_len=seq_len)
    moment = MemoryMoment("forward", dict.fromkeys(Category, 0) | {Category.BASE_WEIGHTS: size})
    piece = piece_at_point(MemoryEstimate(moment, (moment,), 0), (), shape_of(setup), A100)
    return setup, Footprint((piece,), "sdpa", "causal-lm", installed_versions())


def test_writers_at_the_same_time_leave_a_whole_file(own_cache: Path) -> None:
    model = ModelConfig("tiny", "file", FAMILIES["llama"])
    points = [_point(512 * n, n) for n in range(1, 30)]
    threads = [threading.Thread(target=store.keep, args=(_job(model, setup), found)) for setup, found in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (entry,) = own_cache.iterdir()
    assert store._read(entry), "what is not whole is read as nothing"
    store.keep(_job(model, points[0][0]), points[0][1])
    found = store.find_cached(_job(model, points[0][0]), installed_versions())
    assert found is not None
    assert found.footprint.pieces[0] == points[0][1].pieces[0]


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setattr(store, "cache_folder", lambda: blocked)
    assert _document(tiny, method="full", seq_len=32)[0] == "trace"


def test_an_interrupted_write_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    setup, found = _point(512, 8)
    with pytest.raises(KeyboardInterrupt):
        store.keep(_job(ModelConfig("tiny", "file", FAMILIES["llama"]), setup), found)
    assert list(own_cache.iterdir()) == []


# --- shipped ----------------------------------------------------------------------------------------------------------


def test_shipped_and_traced_are_the_same_bytes() -> None:
    settings: dict[str, Any] = {"method": "qlora", "seq_len": 1000, "batch_size": 3, "gpu": "A100"}
    shipped, traced = (fitplan.check("smollm2-135m", **settings, trace=fresh).to_dict() for fresh in (False, True))
    assert shipped["provenance"].pop("source") == "shipped"
    assert traced["provenance"].pop("source") == "trace"
    reserved = []
    for document in (shipped, traced):
        (plan,) = document["plans"]
        del plan["source"], plan["slack_bytes"], document["warnings"], document["provenance"]["versions"]
        reserved.append((plan["estimate"].pop("peak_reserved_bytes"), plan.pop("uncertainty_bytes")))
        for name in ("unsplit_bytes", "cached_bytes", "kept_bytes", "spread_bytes"):
            del plan["estimate"]["device"][name]
        del plan["estimate"]["device_bytes"], plan["estimate"]["ask_for_bytes"]
    assert shipped == traced
    (estimated, within), (replayed, _) = reserved
    assert abs(estimated - replayed) <= within


@pytest.mark.parametrize(
    ("settings", "ships"),
    [
        ({}, True),
        ({"attn": "sdpa", "task": "causal-lm"}, True),
        ({"attn": "flash_attention_2"}, True),
        ({"quant": "fp4", "lora_alpha": 5, "lora_r": 33, "batch_size": 7, "gradient_accumulation_steps": 9}, True),
        ({"lora_dropout": 0.3}, True),
        ({"optim": "paged_adamw_8bit"}, True),
        ({"optim": "paged_adamw_8bit", "lora_r": 33}, False),
        ({"attn": "eager"}, False),
        ({"padding": "longest"}, False),
        ({"target_modules": ("q_proj",)}, False),
        ({"lora_r": 1}, False),
        ({"quant": "int8"}, False),
    ],
)
def test_what_ships(settings: dict[str, Any], ships: bool) -> None:
    setup = TrainingSetup(method="qlora", **settings)
    stored = store.find_shipped(_job(resolve_model("llama-3.2-1b"), setup))
    assert (stored is not None and stored.piece(shape_of(setup)) is not None) is ships


def test_gpus_before_ampere_have_footprints_of_their_own() -> None:
    model = resolve_model("llama-3.2-1b")
    setup = TrainingSetup(method="lora", dtype="float16")
    shape = shape_of(setup)
    found = [store.find_shipped(_job(model, setup, capability)) for capability in ((7, 0), (7, 5), A100)]
    assert found[0] == found[1]
    assert found[2] is None
    assert found[0] is not None
    assert found[0].piece(shape) is not None


@pytest.mark.parametrize(
    ("name", "settings", "capability", "said"),
    [
        ("llama-3.2-1b", {"target_modules": ("q_proj", "k_proj")}, A100, "ships for target_modules q_proj,k_proj"),
        ("llama-3.2-1b", {"quant": "int8"}, A100, "ships for quant int8"),
        ("llama-3.2-1b", {"optim": "adamw_8bit", "lora_r": 33}, A100, "ships for optim adamw_8bit, lora_r 33"),
        ("gpt3-175b", {}, (7, 0), "no formulas ship for gpt3-175b and GPUs before Ampere"),
    ],
)
def test_what_does_not_ship_is_named(
    name: str, settings: dict[str, Any], capability: tuple[int, int], said: str
) -> None:
    assert said in store.why_not_shipped(_job(resolve_model(name), TrainingSetup(**settings), capability))
    other = ModelConfig("mine", "file", {})
    assert store.why_not_shipped(_job(other, TrainingSetup())) == "mine is no shipped model"


def test_other_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = installed_versions() | {"transformers": "9.9.9"}
    monkeypatch.setattr(api, "installed_versions", lambda _: installed)
    monkeypatch.setattr(estimator, "installed_versions", lambda _: installed)
    report: CheckReport = api.check("llama-3.2-1b", method="lora")
    (warning,) = report.warnings
    assert "transformers" in warning and "9.9.9" in warning and "--trace" in warning  # noqa: PT018
    assert report.to_dict()["warnings"] == [warning]


def test_what_the_libraries_choose_is_kept_once(tiny: str) -> None:
    """What is left open and what names the choice are one step, whichever is asked first."""
    settings = {"method": "lora", "seq_len": 32}
    assert _document(tiny, **settings)[0] == "trace"
    assert _document(tiny, **settings, attn="sdpa", task="causal-lm")[0] == "cache"
    assert _document(tiny, **settings, attn="sdpa")[0] == "trace", "nobody said yet which task that is"
    other = settings | {"optim": "sgd"}
    assert _document(tiny, **other, attn="sdpa")[0] == "trace"
    assert _document(tiny, **other)[0] == "cache"
    assert _document(tiny, **settings, attn="eager")[0] == "trace"
    assert _document(tiny, **settings)[1][0]["setup"]["attn"] == "sdpa"


def test_installed_versions_are_those_of_importlib() -> None:
    from importlib.metadata import version

    assert installed_versions() == {library: version(library) for library in installed_versions()}
    assert set(installed_versions()) >= {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}


HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "textual")


@pytest.mark.parametrize(
    "command", ["check llama-3.2-1b --gpu H100", "map llama-3.2-1b --gpu H100", "explain llama-3.2-1b"]
)
def test_the_shipped_path_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    program = (
        "import sys; from fitplan.cli.main import main; code = main(sys.argv[1].split());"
        f"print([name for name in {HEAVY} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.stderr.strip().endswith("[] 0")
    assert "GiB" in done.stdout


@pytest.mark.parametrize("optim", list(Optim))
def test_the_formula_tells_how_the_peak_of_each_optimizer_moves(optim: Optim) -> None:
    """Also where the optimizer treats the small parameters of another rank differently."""
    setup = {"method": "lora", "optim": optim, "lora_r": 16, "batch_size": 1, "seq_len": 64}
    found = api.explain("llama-3.2-1b", **setup)
    assert {change.name for change in found.changes} >= {"batch_size", "seq_len", "lora_r"}
    for change in found.changes:
        further = setup | {change.name: setup.get(change.name, 1) + change.by}
        assert api.estimate("llama-3.2-1b", **further).peak_allocated_bytes == found.peak_bytes + change.bytes
    by_rank = optim in (Optim.ADAMW_8BIT, Optim.PAGED_ADAMW_8BIT, Optim.PAGED_ADAMW_32BIT, Optim.LION_8BIT)
    assert found.is_for_one_rank is by_rank
    reach = {found.reach(term) for term in found.terms if term.category is Category.OPTIMIZER_STATES}
    assert reach <= {"at rank 16" if by_rank else "whatever the shape"}
    weights = next(term for term in found.terms if term.category is Category.BASE_WEIGHTS)
    assert found.reach(weights) == "whatever the shape"


def test_an_optimizer_that_differs_by_rank_has_a_formula_for_each(tiny: str) -> None:
    setup: dict[str, Any] = {"method": "lora", "optim": Optim.ADAMW_8BIT}
    for rank in (16, 24):
        found = api.explain(tiny, **setup, lora_r=rank, seq_len=32)
        assert found.is_for_one_rank
        for length in (32, 96):
            known, traced = (api.estimate(tiny, **setup, lora_r=rank, seq_len=length, trace=t) for t in (False, True))
            assert (known.peak, known.moments) == (traced.peak, traced.moments)
    assert _document(tiny, **setup, lora_r=24, seq_len=64)[0] == "cache"
    assert _document(tiny, **setup, lora_r=25, seq_len=64)[0] == "trace"
