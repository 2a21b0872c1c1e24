"""What every screen looks like, at every size and in both themes, as text: ``screens/*.txt``.

``pytest tests/tui --update-screens`` takes them as they are now; the difference is then to be read. Text is kept, and
not pictures: it can be read in a review, and does not change with how Textual draws an SVG. The colours are tested for
what they are for: that everything can be read.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from canned import BAD, UNKNOWN, Canned, Runs, run_document
from driver import drive, press, settled, strips, text
from textual.pilot import Pilot
from textual.screen import ModalScreen

from fitplan.devices.detect import Machine, Reason
from fitplan.setup import Method
from fitplan.tui.look import DARK, LIGHT, SIGNS
from fitplan.tui.screens import plan as plan_module
from fitplan.tui.screens import validate as validate_module
from fitplan.tui.state import Question
from fitplan.verdict import Fit

SIZES = ((80, 24), (120, 40), (200, 60))
FITS = Question("canned-8b", "canned", settings=(("batch_size", 2),))
SCREENS: dict[str, tuple[Question, Sequence[str]]] = {
    "fits": (FITS, []),
    "tight": (FITS.change("batch_size", 5), []),
    "does-not-fit": (FITS.change("method", Method.FULL), []),
    "tracing": (Question(UNKNOWN, "canned"), []),
    "no-answer": (Question(BAD, "canned"), []),
    "moments": (FITS, ["2"]),
    "advice": (FITS.change("batch_size", 8), ["3"]),
    "map": (FITS, ["4", "down", "right"]),
    "compare": (FITS, ["c"]),
    "held": (FITS, ["h", "down", "right", "c"]),
    "models": (FITS, ["m", *"qwen3"]),
    "gpus": (FITS, ["g", *"h100"]),
    "values": (FITS, ["end", "up", "up", "up", "enter"]),
    "command": (FITS, ["y"]),
    "python": (FITS, ["Y"]),
    "help": (FITS, ["question_mark"]),
    "save": (FITS, ["s"]),
    "validate-cpu": (FITS, ["v"]),
    "validate-gpu": (FITS, ["v"]),
    "validate-running": (FITS, ["v", "enter"]),
    "validate-holds": (FITS, ["v", "enter"]),
    "validate-peaks": (FITS, ["v", "enter", "2"]),
    "validate-missed": (FITS, ["v", "enter"]),
    "validate-differences": (FITS, ["v", "enter", "3"]),
    "validate-out-of-memory": (FITS, ["v", "enter"]),
    "validate-failed": (FITS, ["v", "enter"]),
    "validate-help": (FITS, ["v", "question_mark"]),
}
RUNS: dict[str, Any] = {
    "validate-holds": run_document(1.001),
    "validate-peaks": run_document(1.001),
    "validate-missed": run_document(1.1),
    "validate-differences": run_document(1.1),
    "validate-out-of-memory": run_document(1.1, out_of_memory=True),
    "validate-failed": "the run was killed by SIGKILL after forward of step 1; the machine may be out of memory",
}
NO_GPU = Machine(reason=Reason.NO_DRIVER, error="Library not found")
TEXT, MARK = 4.5, 1.6
"""Contrast: of words as in WCAG 2.1 (1.4.3); of the marks in a bar, whose pattern also tells them apart."""


@pytest.fixture(autouse=True)
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(arguments: Sequence[str], progress: Callable[[str], None]) -> Any:
        import asyncio

        await asyncio.sleep(60)

    monkeypatch.setattr(plan_module, "ask", ask)
    monkeypatch.setattr(plan_module, "TELL_EVERY", 3600.0)
    monkeypatch.setattr(validate_module, "monotonic", lambda: 0.0)


def _watched(name: str, watch: Callable[[Pilot[None]], Any]) -> None:
    """Bring the screen up, and watch it."""
    from test_detect import machine

    question, keys = SCREENS[name]
    here = machine("one_h100") if name.startswith("validate-") and name != "validate-cpu" else NO_GPU

    async def script(pilot: Pilot[None]) -> Any:
        if question.model not in (BAD, UNKNOWN):
            await settled(pilot)
        for part in (keys[:1], keys[1:]):
            await press(pilot, part)
        await watch(pilot)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(validate_module, "ask", Runs(RUNS.get(name)).ask)
        drive(script, question, size=SIZES[0], answers=Canned(), machine=here)


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is_as_it_was(name: str, request: pytest.FixtureRequest) -> None:
    async def watch(pilot: Pilot[None]) -> None:
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            file = Path(__file__).parent / "screens" / f"{name}-{width}x{height}.txt"
            shown = text(pilot) + "\n"
            assert all(len(line) <= width for line in shown.splitlines())
            if request.config.getoption("--update-screens"):
                file.write_text(shown, encoding="utf-8")
            assert shown == file.read_text(encoding="utf-8")

    _watched(name, watch)


def _contrasts(pilot: Pilot[None]) -> Iterator[tuple[str, float]]:
    """Every piece of text on the screen with its contrast (WCAG 2.1, "contrast ratio")."""
    for strip in strips(pilot):
        for segment in strip:
            style = segment.style
            if style is None or not segment.text.strip() or style.color is None or style.bgcolor is None:
                continue
            light, dark = sorted(map(_luminance, (style.color, style.bgcolor)), reverse=True)
            yield segment.text.strip(), (light + 0.05) / (dark + 0.05)


def _luminance(colour: Any) -> float:
    parts = [one / 255 for one in colour.get_truecolor()]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", ["fits", "map", "compare", "models", "help", "save", "validate-missed"])
def test_a_tiny_terminal_breaks_nothing(name: str) -> None:
    async def watch(pilot: Pilot[None]) -> None:
        for width, height in ((60, 15), (20, 5), (2, 2), (1, 1), SIZES[0]):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
        assert text(pilot) + "\n" == (Path(__file__).parent / "screens" / f"{name}-80x24.txt").read_text("utf-8")

    _watched(name, watch)


@pytest.mark.parametrize("name", SCREENS)
def test_both_themes_show_the_same_and_everything_can_be_read(name: str) -> None:
    async def watch(pilot: Pilot[None]) -> None:
        dialog = isinstance(pilot.app.screen, ModalScreen)  # what lies behind one is pale on purpose
        shown = []
        for theme in (DARK.name, LIGHT.name):
            pilot.app.theme = theme
            await pilot.pause()
            shown.append(text(pilot))
            for words, contrast in () if dialog else _contrasts(pilot):
                least = TEXT if any(c.isalnum() for c in words) else MARK
                assert contrast >= least, f"{words!r} has a contrast of {contrast:.1f} in {theme}"
        assert shown[0] == shown[1]

    _watched(name, watch)


@pytest.mark.parametrize(
    ("name", "fit"), [("fits", Fit.FITS), ("tight", Fit.TIGHT), ("does-not-fit", Fit.DOES_NOT_FIT)]
)
def test_without_colour_every_verdict_is_told(name: str, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def watch(pilot: Pilot[None]) -> None:
        assert pilot.app.ansi_color  # so that no colour is sent at all, not even grey
        assert f"{SIGNS[fit].mark} {SIGNS[fit].word.upper()}" in text(pilot)

    _watched(name, watch)
