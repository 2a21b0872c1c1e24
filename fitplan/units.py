"""Bytes as text, and text as bytes. Nothing else in fitplan writes or reads a size."""

import re

from fitplan.errors import InputError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_FACTORS = {
    "": 1,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": KIB, "mi": MIB, "gi": GIB, "ti": 2**40,
}  # fmt: skip


def gib(size: int) -> str:
    """``size`` bytes as text in GiB (2**30 bytes), below 1 GiB in MiB, below 0.1 MiB in KiB: ``"6.50 GiB"``."""
    if 0 < abs(size) < MIB // 10:
        return f"{size / KIB:.1f} KiB"
    if abs(size) < GIB:
        return f"{size / MIB:.1f} MiB"
    return f"{size / GIB:.2f} GiB"


def count(number: int) -> str:
    """A number of parameters as text, in powers of ten: ``"8.03 B"``, ``"41.94 M"``."""
    for limit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.2f} {suffix}"
    return str(number)


def counted(number: float, noun: str) -> str:
    """A number of things: ``"1 layer"``, ``"2 layers"``, ``"0.5 seconds"``."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def parse_size(text: str | int) -> int:
    """Bytes of memory from ``"24GiB"`` (24 * 2**30), ``"24GB"`` (24 * 10**9), ``"24G"`` (as GB), or a number of bytes.

    Raises:
        InputError: the text is no size, or a number of bytes that no GPU has: its unit was forgotten.

    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(text), flags=re.IGNORECASE)
    size = float(match[1]) * _FACTORS[(match[2] or "").lower()] if match else 0.0
    if match and not match[2] and 1 <= size < MIB:
        unit = "GiB" if size < 1024 else "MiB"
        raise InputError(f"{text!r} is {match[1]} bytes; did you mean {match[1]}{unit}?")
    if not 1 <= size < 2**63:
        raise InputError(f"{text!r} is no memory size; write it like 24GiB or 24GB")
    return round(size)
