"""The phases of a training run, named once for the step that goes through them and for whoever watches it."""

from enum import StrEnum


class Phase(StrEnum):
    """What the training program is doing."""

    LOAD = "load"
    PREPARE = "prepare"
    FORWARD = "forward"
    BACKWARD = "backward"
    CLIP = "clip"
    OPTIMIZER = "optimizer"
    ZERO_GRAD = "zero_grad"
    EVALUATION = "evaluation"


STEP_ENDS = (Phase.ZERO_GRAD, Phase.EVALUATION)
"""After which a forward pass begins the next optimizer step."""
