"""How fast the terminal app answers: from a key press to the repainted screen, and from the command to the first one.

    python benchmarks/tui.py                        # about a minute
    python benchmarks/tui.py --presses 400 --size 200x60

The keys go through the app's own messages, on the path of the shipped formulas; a repaint counts when its escape
sequences are made. ``rapid`` presses are those of a key held down, ``paused`` ones come when advice and map are done.
"""

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import time
from itertools import cycle
from typing import Any

from textual import events
from textual._compositor import CompositorUpdate

from fitplan.devices.detect import Machine
from fitplan.tui.app import FitplanApp
from fitplan.tui.screens.plan import PlanScreen
from fitplan.tui.state import Question

SIZES = ((80, 24), (120, 40), (200, 60))
AIMS = {"median": 50, "p99": 150, "start": 1000}
QUESTION = Question("llama-70b", "H100")
KEYS = (
    *("down", "right", "right", "left", "left"),  # batch
    *("down", "right", "left", "left", "right"),  # length
    *("down", "right", "left", "down", "right", "left"),  # accumulation, rank
    *("u", "u", "r", "r"),
    *("home", "down", "down", "right", "right", "right"),  # method
)
"""One round, which ends where it begins."""

PAUSES = {"rapid": 0.03, "paused": 0.4}
"""Seconds between presses: a key held down; and until advice and map are done."""

LONGEST = 0.3
"""Seconds after which a key asked nothing."""

START = """
import sys, time
from fitplan.devices.detect import Machine
from fitplan.tui.app import FitplanApp
from fitplan.tui.state import Question
class App(FitplanApp):
    def _display(self, screen, renderable):
        super()._display(screen, renderable)
        if renderable is not None:
            self.exit()
App(Question("llama-70b", "H100"), Machine()).run(headless=True, size=(120, 40))
assert "torch" not in sys.modules
"""


class Timed(FitplanApp):
    """Remembers when it painted which question."""

    painted: tuple[float, Question] = (0.0, QUESTION)

    def _display(self, screen: Any, renderable: Any) -> None:
        if isinstance(renderable, CompositorUpdate):
            renderable.render_segments(self.console)  # as for a terminal, which a headless app has not
        if renderable is not None and isinstance(screen, PlanScreen):
            self.painted = (time.perf_counter(), screen.history.now)


async def press(app: Timed, key: str) -> float | None:
    """Seconds from a key to the repaint of the question that it asks; ``None`` if it asks none."""
    screen = app.screen
    assert isinstance(screen, PlanScreen)
    before, began = screen.history.now, time.perf_counter()
    app.post_message(events.Key(key, key if len(key) == 1 else None))
    while app.is_running and (screen.history.now is before or app.painted[1] is not screen.history.now):
        await asyncio.sleep(0.0005)
        if screen.history.now is before and time.perf_counter() - began > LONGEST:
            return None
    return app.painted[0] - began


async def times(size: tuple[int, int], presses: int, pause: float) -> list[float]:
    """The seconds of each press that asks another question."""
    app = Timed(QUESTION, Machine())
    async with app.run_test(size=size) as pilot:
        await pilot.pause(1)
        gc.freeze()  # as the app does at a terminal
        found: list[float] = []
        keys = cycle(KEYS)
        while app.is_running and len(found) < presses:
            if (spent := await press(app, next(keys))) is not None:
                found.append(spent)
                await asyncio.sleep(pause)
        return found


def start_time(runs: int) -> float:
    """The median wall time of a process that starts the app and ends at the first paint."""
    spent = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", START], check=True, capture_output=True)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def row(name: str, seconds: list[float]) -> str:
    """One line of the table, in milliseconds."""
    ordered = sorted(1000 * one for one in seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"| {name} | {len(ordered)} | {statistics.median(ordered):.0f} | {p99:.0f} | {ordered[-1]:.0f} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=100)
    parser.add_argument("--size", help="only this one: 120x40")
    options = parser.parse_args()
    sizes = (tuple(map(int, options.size.split("x"))),) if options.size else SIZES
    print("| key press to repaint, ms | presses | median | p99 | most |\n| --- | ---: | ---: | ---: | ---: |")
    for width, height in sizes:
        for name, pause in PAUSES.items():
            print(
                row(f"{width}x{height}, {name}", asyncio.run(times((width, height), options.presses, pause))),
                flush=True,
            )
    print(f"\naim: median {AIMS['median']}, p99 {AIMS['p99']}")
    print(f"start to first paint: {1000 * start_time(5):.0f} ms (aim {AIMS['start']}), without torch")


if __name__ == "__main__":
    main()
