"""The pictures of the terminal app in the README, drawn by the app itself: ``python docs/pictures.py``."""

import asyncio
from pathlib import Path

from fitplan.devices.detect import Machine
from fitplan.tui.app import FitplanApp
from fitplan.tui.state import Question

SIZE = (120, 40)
QUESTION = Question("llama-70b", "H100", settings=(("seq_len", 4096),))


async def picture() -> str:
    """The screen once everything is on it, as SVG."""
    app = FitplanApp(QUESTION, Machine())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(2)
        return app.export_screenshot(title="fitplan tui llama-70b --gpu H100 --seq-len 4096")


if __name__ == "__main__":
    Path(__file__).with_name("tui.svg").write_text(asyncio.run(picture()) + "\n", encoding="utf-8")
