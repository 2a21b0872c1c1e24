"""The runs on GPUs that are kept, and the section of ``docs/accuracy.md`` that is made from them."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, loaded

MIB = 2**20


@pytest.fixture
def measured() -> Any:
    return loaded("benchmarks/measured.py")


def test_the_page_has_the_section_as_it_is_made(measured: Any) -> None:
    assert measured.section() in (ROOT / "docs/accuracy.md").read_text()


def test_a_context_is_the_latest_that_was_calibrated_by_then(measured: Any) -> None:
    found = {day: measured.context("H200", day) // MIB for day in ("2026-11-25", "2026-11-26", "2026-11-27", "~")}
    assert found == {"2026-11-25": 742, "2026-11-26": 742, "2026-11-27": 758, "~": 758}


def test_records_are_kept_once_beside_those_of_earlier_runs(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((measured.MEASURED / "smollm2-135m.jsonl").read_text().splitlines()[-1])
    calibration = measured.calibrations()[-1]
    run, kept = tmp_path / "run", tmp_path / "kept"
    for folder in (run, kept):
        folder.mkdir()
    (kept / "smollm2-135m.jsonl").write_text('{"an": "earlier run"}\n')
    (kept / "calibrations.json").write_text("[]")
    document["measurement"]["phases"] = [{"phase": "load"}]
    (run / "smollm2-135m--qlora--a.json").write_text(json.dumps(document))
    (run / "calibration.json").write_text(json.dumps(calibration))
    monkeypatch.setattr(measured, "MEASURED", kept)
    monkeypatch.setattr(measured, "CALIBRATIONS", kept / "calibrations.json")
    measured.calibrations.cache_clear()
    for _ in range(2):
        measured.collect(run)
    first, second = map(json.loads, (kept / "smollm2-135m.jsonl").read_text().splitlines())
    assert first == {"an": "earlier run"}
    assert second == document | {"measurement": document["measurement"] | {"phases": []}}
    assert json.loads((kept / "calibrations.json").read_text()) == [calibration]


def test_the_tables_of_trl_are_as_they_are_made() -> None:
    made = loaded("benchmarks/trl_matrix.py").section()
    assert made in (ROOT / "docs/stacks.md").read_text()
    assert "| lora, bfloat16 | 3.965 / 4.068 | 3.965 / 4.254 | -0.001 / +4.561 |" in made
