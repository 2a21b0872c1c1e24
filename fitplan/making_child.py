"""The process in which footprints are made: ``python -m fitplan.making_child``, asked in lines of JSON on stdin.

On stdout goes ``{"doing": …}`` as it works, then ``{"footprint": …}`` or ``{"failed": {"kind": …, "arguments": […]}}``.
"""

import sys
import traceback
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.errors import FitplanError, LibraryMoved, SetupConflict
from fitplan.footprint.document import footprint_to_dict
from fitplan.footprint.job import TrainingJob
from fitplan.making import MAKERS, Made
from fitplan.process import Say, serve
from fitplan.setup import TrainingSetup


def main() -> int:
    """Make what is asked for until nobody asks."""
    return serve(_answer, again=True)


def _answer(question: dict[str, Any], say: Say) -> None:
    try:
        job = TrainingJob(
            model=ModelConfig(**question["model"]),
            setup=TrainingSetup.from_dict(question["setup"]),
            capability=tuple(question["capability"]),
        )
        footprint = MAKERS[Made(question["what"])](job, lambda doing: say(doing=doing))
    except FitplanError as error:
        say(failed={"kind": type(error).__name__, "arguments": _arguments(error)})
    except Exception:
        say(failed={"kind": "defect", "arguments": [traceback.format_exc()]})
    else:
        say(footprint=footprint_to_dict(footprint))


def _arguments(error: FitplanError) -> list[str]:
    match error:
        case SetupConflict():
            return [error.first, error.second, str(error)]
        case LibraryMoved():
            return [error.library, str(error)]
    return [str(error)]


if __name__ == "__main__":
    sys.exit(main())
