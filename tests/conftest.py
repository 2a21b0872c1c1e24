"""Settings that hold for every test."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitplan.tracer import tracing_here

os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "100"
sys.path.insert(0, str(Path(__file__).parent))
logging.disable(logging.WARNING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--installed", help="an environment in which the wheel is installed without torch")
    parser.addoption("--update-screens", action="store_true", help="take the terminal app's screens as they are now")
    parser.addoption("--wheel", help="the folder of the wheel")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user's folders hold is not the tests' business; commands that tests start inherit this."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    """What a test exchanges, it exchanges in this process; ``test_making`` asks the other one."""
    with tracing_here():
        yield
