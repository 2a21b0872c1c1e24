"""Every requirement is pinned, within what it allows, in what the environments are made with."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
    if not text.startswith("fitplan[")
]
MADE = ("newest", "oldest")


def _lines(name: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints" / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _pins(name: str) -> dict[str, str]:
    found = {}
    for line in _lines(f"{name}.txt"):
        (only,) = line.specifier
        assert only.operator == "==", f"{line} is no pin"
        found[canonicalize_name(line.name)] = only.version
    return found


@pytest.mark.parametrize("name", MADE)
def test_every_requirement_is_pinned_within_its_range(name: str) -> None:
    pins = _pins(name)
    assert len(REQUIRED) > 20
    wrong = [
        f"{one} is {pins.get(canonicalize_name(one.name))}"
        for one in REQUIRED
        if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"), prereleases=True)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", MADE)
def test_what_is_held_is_pinned_there(name: str) -> None:
    pins = _pins(name)
    held = _lines(f"{name}.in")
    assert held
    assert [f"{one} is {pins[one.name]}" for one in held if not one.specifier.contains(pins[one.name])] == []


def test_the_oldest_are_the_floors() -> None:
    pins, held = _pins("oldest"), {one.name for one in _lines("oldest.in")}
    floors: dict[str, set[str]] = {}
    for one in REQUIRED:
        floors.setdefault(canonicalize_name(one.name), set()).update(floor.version for floor in one.specifier)
    wrong = [
        f"{name} is {pins[name]}"
        for name, versions in floors.items()
        if name not in held and not any(f"{pins[name]}.".startswith(f"{floor}.") for floor in versions)
    ]
    assert wrong == []
