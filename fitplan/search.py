"""The largest number that will do, where what is larger never does if less does not."""

from collections.abc import Callable

LENGTH_STEP = 64
"""The longest sequence is looked for, and told, in multiples of this."""


def largest(does: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number up to ``high`` for which ``does`` holds; ``low``, which is not asked about, if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if does(middle) else (low, middle - 1)
    return low
