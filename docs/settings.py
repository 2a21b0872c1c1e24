"""The page of all settings, made from the list that the program reads: ``python docs/settings.py``."""

from pathlib import Path

from fitplan.settings import Group, Setting, shown
from fitplan.setup import SETTINGS

PAGE = Path(__file__).with_suffix(".md")

_HEADING = """# Settings

Made by `python docs/settings.py` from the fields of `fitplan.TrainingSetup`; a test holds it to them. The flag of
`fitplan check` and of every other command about a setup is the name with dashes; in Python it is a keyword argument
of `fitplan.check` and of `fitplan.TrainingSetup`. What is left out, or `None`, takes its default.

*Decides* says what of a prediction moves with a setting: which operators run (another footprint, or a trace), how large
their tensors are (the same formula at another point), the optimizer, the allocator, or nothing.
"""


def page() -> str:
    """The page."""
    parts = [_HEADING]
    for group in Group:
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n")
        parts.append("| name | values | default | what it is | means something for | decides |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        parts += [_row(one) for one in SETTINGS.values() if one.group is group]
    return "\n".join(parts) + "\n"


def _row(one: Setting) -> str:
    default = one.told_default.removeprefix(":").strip() or shown(one.usual if one.default is None else one.default)
    theirs = f" (`{one.theirs}`)" if one.theirs else ""
    only = "; ".join(f"{o.other} {', '.join(o.values)}" for o in one.only) or "all"
    return f"| `{one.name}` | {_values(one)} | {default or 'open'} | {one.help}{theirs} | {only} | {one.decides} |"


def _values(one: Setting) -> str:
    if one.is_enum:
        also = f"; also {', '.join(one.spellings)}" if one.spellings else ""
        return ", ".join(f"`{value}`" for value in one.kind) + also
    if one.kind is bool:
        return "true or false"
    if one.span is None:
        return "names"
    least, most = one.span
    return f"{least} to {most:,}" + ("" if one.kind is int else ", not reached")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
