"""The worked examples at the head of modules are true."""

import doctest
from types import ModuleType

import pytest

from fitplan.trace import recorder


@pytest.mark.parametrize("module", [recorder])
def test_the_examples_of_a_module(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
