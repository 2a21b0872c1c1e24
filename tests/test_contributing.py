"""The map for newcomers shows every room, and none that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_map_is_complete() -> None:
    drawn, beside = (ROOT / "CONTRIBUTING.md").read_text().partition("```\n")[2].partition("```")[::2]
    beside = beside.partition("Beside them:")[2].partition("\n\n")[0]
    rooms = {path.stem for path in (ROOT / "fitplan").iterdir() if not path.name.startswith(("__", "py."))}
    on_the_way = {re.split(r"[/ ,]", line)[0] for line in drawn.splitlines()}
    aside = set(re.findall(r"`([a-z]+)`", beside))
    assert on_the_way | aside <= rooms
    assert on_the_way & aside == set()
    assert rooms <= on_the_way | aside | set(re.findall(r"[a-z_]+", drawn))


def test_the_words_of_our_own_are_explained() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    for word in ("footprint", "piece", "region", "corner", "summit", "block", "recipe", "survey", "rehearsal"):
        assert f"| {word} |" in page
