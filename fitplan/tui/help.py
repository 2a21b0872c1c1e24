"""What the help says, screen by screen."""

from fitplan.tui.look import EDGE, FREE, MEASURED, SIGNS, TAKEN
from fitplan.tui.screens.dialogs import Keys
from fitplan.tui.widgets.fitmap import ASKED, CURSOR, NEAR
from fitplan.verdict import Fit

_SIGNS: Keys = (
    (SIGNS[Fit.FITS].mark, "fits, with what the estimate may be off"),
    (SIGNS[Fit.TIGHT].mark, "tight: what is left is less than that"),
    (SIGNS[Fit.ONLY_IF].mark, "only if the allocator can give back some of its cache"),
    (SIGNS[Fit.DOES_NOT_FIT].mark, "does not fit"),
)
_BAR: Keys = (
    (EDGE, "where the memory that a job can have ends"),
    (FREE, "left"),
    (TAKEN, "taken: by the driver, or by what else runs on the GPU now"),
)

PLAN_HELP: tuple[tuple[str, Keys], ...] = (
    (
        "Setup",
        (
            ("↑ ↓", "choose a row"),
            ("← →", "change it: the next value, twice or half the number"),
            ("Shift ← →", "change a number in small steps"),
            ("Enter", "choose from a list, or type any value"),
            ("m  g", "choose the model, the GPU"),
            ("u  r", "undo a change, redo it"),
        ),
    ),
    (
        "Panels",
        (
            ("1 2 3 4", "memory, moments, advice, map; Tab goes round"),
            ("Enter", "in the advice: make that change"),
            ("↑ ↓ ← → Enter", "in the map: go to a point, ask about it"),
            (f"{ASKED} {NEAR} {CURSOR}", "in the map: asked, nearest to it, cursor"),
        ),
    ),
    (
        "Beside each other",
        (
            ("c", "compare: methods, GPUs, or held setups"),
            ("h", "hold this setup, to compare others with it"),
        ),
    ),
    (
        "Take it away",
        (
            ("y", "copy the command line that gives this answer"),
            ("Y", "copy the Python call"),
            ("s", "save the report: all of it on one page (HTML)"),
        ),
    ),
    (
        "Was it right?",
        (("v", "validate: run the step for real, and compare"),),
    ),
    (
        "App",
        (
            ("t", "light or dark"),
            ("q", "quit"),
        ),
    ),
    ("Verdicts", _SIGNS),
    ("Bars", _BAR),
    (
        "Where the numbers come from",
        (
            ("shipped", "from the formula of the step that ships with fitplan"),
            ("cache", "from what was traced on this machine before"),
            ("… tracing", "the real step is run without memory, in another process"),
        ),
    ),
)

COMPARE_HELP: tuple[tuple[str, Keys], ...] = (
    (
        "Compare",
        (
            ("1 2 3", "the methods, the GPUs, the held setups; Tab goes round"),
            ("← →", "choose a column"),
            ("Enter", "ask about it"),
            ("Delete", "let a held setup go"),
            ("Esc", "back"),
        ),
    ),
    ("Verdicts", _SIGNS),
    ("Bars", (*_BAR, ("", "all on one scale"))),
)

VALIDATE_HELP: tuple[tuple[str, Keys], ...] = (
    (
        "Validate",
        (
            ("Enter", "run it, or run it again"),
            ("Esc  q", "end the run; where none runs, back"),
            ("1 2 3", "the phases, the peaks, the differences; Tab goes round"),
            ("y", "copy the command line of the run"),
            ("t", "light or dark"),
        ),
    ),
    (
        "What is compared",
        (
            (MEASURED, "the most memory that a phase of the step held"),
            (EDGE, "what was predicted for it"),
            ("allocated", "as torch.cuda.max_memory_allocated() tells"),
            ("requested", "what the program asked for; all that the CPU tells"),
            ("reserved", "what PyTorch took from the driver"),
            ("device", "what nvidia-smi shows of the process"),
        ),
    ),
    (
        "Verdicts",
        (
            ("✓ holds", "the peak is as predicted, within the tolerance"),
            ("✗ missed", "it is not"),
            ("out of memory", "✓ if that was predicted, ✗ if not"),
        ),
    ),
)
