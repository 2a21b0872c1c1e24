"""A command of the command line, as each is added to the parser."""

import argparse
from collections.abc import Callable

Add = Callable[..., argparse.ArgumentParser]
"""Adds the parser of a command."""


def command(
    add: Add, name: str, run: Callable[..., int], what: str, epilog: str, *, description: str = ""
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        add: of the parser that all commands belong to.
        name: as it is typed.
        run: what it does.
        what: the same in a line, for the list of commands.
        epilog: examples and exit codes, below the flags.
        description: above the flags; ``what`` as a sentence if left out.

    """
    parser = add(
        name,
        allow_abbrev=False,  # else a mistyped flag is taken for the flag that it begins
        help=what,
        description=description or f"{what[0].upper()}{what[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
