"""``--print-completion SHELL``: a script that completes commands, flags, models and GPUs."""

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn

SHELLS = ("bash", "zsh", "tcsh")

_MODELS = "_fitplan_models"


class PrintCompletion(argparse.Action):
    """Prints the script, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, shell: Any, _option: Any = None) -> NoReturn:
        """As argparse asks it; what is imported here is needed for nothing else."""
        import shtab

        from fitplan.cli.console import EXIT_FITS
        from fitplan.configs.catalog import catalog
        from fitplan.devices.device import known_devices
        from fitplan.setup import SETTINGS

        enums = {one.flag: tuple(one.kind) for one in SETTINGS.values() if one.is_enum}
        gpus = ("auto", *(one.name.lower().replace(" ", "-") for one in known_devices()))
        for action in _actions(parser):
            if "--gpu" in action.option_strings:
                action.choices = gpus
            elif enumerated := next((enums[flag] for flag in action.option_strings if flag in enums), ()):
                action.choices = [str(one) for one in enumerated]
            elif action.dest in ("model", "models") and not action.option_strings:
                action.complete = {"bash": _MODELS, "zsh": _MODELS, "tcsh": "f"}  # type: ignore[attr-defined]
        spellings = {name for entry in catalog() for name in (entry.name, *entry.aliases)}
        names = " ".join(sorted(name for name in spellings if "/" not in name))
        preamble = {
            "bash": f'{_MODELS}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f"{_MODELS}() {{ compadd {names}; _files }}",
        }
        print(shtab.complete(parser, shell, preamble=preamble.get(shell, "")))
        parser.exit(EXIT_FITS)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
