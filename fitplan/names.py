"""Names as people type them: compared without regard to spelling, guessed where one is not known, and safe to print."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what does not show but acts: control characters, formats, half surrogates, separators."""


def printable(text: str) -> str:
    """Text of strangers (a config, a folder's name, a record) for a terminal: what would act on it is spelled out.

    Line breaks stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if one != "\n" and unicodedata.category(one) in _CONTROLS else one
        for one in text
    )


def plain(name: str) -> str:
    """A name without regard to case, to blanks around it, and to what stands between its words: ``" Llama_8B"``."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def did_you_mean(name: str, known: Mapping[str, str] | Iterable[str], most: int = 1) -> str:
    """``"did you mean a or b?"``, or ``""`` where nothing known is like it.

    What the name begins comes first, in the order in which it is known.

    Args:
        name: what was typed.
        known: what could have been meant; in a mapping, by every spelling of it.
        most: so many are named.

    """
    meant = dict(known) if isinstance(known, Mapping) else {one: one for one in known}
    begun = [one for one in meant if name and one.startswith(name)]
    near = [*begun, *get_close_matches(name, meant, n=_SPELLINGS * most)]
    shown = list(dict.fromkeys(meant[one] for one in near))[:most]
    return f"did you mean {' or '.join(shown)}?" if shown else ""


_SPELLINGS = 4
"""So many ways to spell one of them are looked at."""
