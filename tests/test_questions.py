"""The page of questions is what is said today."""

from pathlib import Path

import pytest
from families import first_difference
from scripts import loaded

from fitplan.tracer import installed_versions


def test_the_page_of_questions_is_what_is_said_today(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no record of another test
    questions = loaded("docs/questions.py")
    monkeypatch.setitem(__import__("sys").modules, "schemas", loaded("docs/schemas.py"))
    told = questions.PAGE.read_text(encoding="utf-8")
    moved = {name: one for name, one in installed_versions().items() if f"{name} {one}".partition("+")[0] not in told}
    if moved:
        pytest.skip(f"the page was made with other versions than {moved}")
    assert len(questions.QUESTIONS) == 30
    assert first_difference(questions.page().splitlines(), told.splitlines()) is None
