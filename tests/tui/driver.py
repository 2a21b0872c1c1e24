"""Drive the app without a terminal, and read its screen."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from textual.pilot import Pilot

from fitplan.devices.detect import Machine
from fitplan.tui.answers import Answers
from fitplan.tui.app import FitplanApp
from fitplan.tui.screens.plan import PlanScreen
from fitplan.tui.state import Question
from fitplan.tui.view import View

LLAMA = Question("llama-8b", "4090")
Script = Callable[[Pilot[None]], Awaitable[Any]]


def drive(
    script: Script,
    question: Question = LLAMA,
    *,
    size: tuple[int, int] = (120, 40),
    machine: Machine | None = None,
    answers: Answers | None = None,
    to_choose: tuple[str, ...] = (),
) -> Any:
    """What ``script`` returns, run beside the app."""

    async def run() -> Any:
        app = FitplanApp(question, machine or Machine(), answers=answers, to_choose=to_choose)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            return await script(pilot)

    return asyncio.run(run())


async def press(pilot: Pilot[None], keys: Sequence[str]) -> None:
    """Press keys, one after the other, without the pauses of a person."""
    await pilot.press(*keys)
    await pilot.pause()


async def settled(pilot: Pilot[None]) -> View:
    """The view once advice and map are there."""
    for _ in range(400):
        view = plan_screen(pilot).view
        if view is not None and view.offers is not None and view.fit_map is not None:
            await pilot.pause()
            return view
        await pilot.pause(0.01)
    raise AssertionError(f"advice and map never came: {plan_screen(pilot).view}")


def plan_screen(pilot: Pilot[None]) -> PlanScreen:
    """The main screen, whatever lies on it."""
    return next(screen for screen in pilot.app.screen_stack if isinstance(screen, PlanScreen))


def text(pilot: Pilot[None]) -> str:
    """The characters on the screen, as a person reads them."""
    return "\n".join(strip.text.rstrip() for strip in strips(pilot))


def strips(pilot: Pilot[None]) -> Sequence[Any]:
    """The lines on the screen with their styles."""
    screen = pilot.app.screen
    width, height = screen.size
    return [strip.crop(0, width) for strip in screen._compositor.render_strips()][:height]
