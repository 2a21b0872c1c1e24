"""Settings that hold for every test of the app."""

import pytest


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal of whoever runs the tests decides nothing."""
    for name in ("NO_COLOR", "COLORFGBG", "TEXTUAL_THEME", "TEXTUAL_FILTERS", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
