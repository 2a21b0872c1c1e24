"""Large models on small devices: two depths are run, and the line through them is drawn to the full one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.errors import InputError
from fitplan.setup import TrainingSetup
from fitplan.trace.depth import DEPTH_FIELDS
from fitplan.tracer import Progress
from fitplan.units import counted
from fitplan.validation.report import ValidationReport
from fitplan.validation.runner import Options, Target, Watch, forecast, validate_job

_DEPTHS = (*DEPTH_FIELDS, "n_layer")
"""As a ``config.json`` may spell them: transformers knows ``n_layer`` of GPT-2 by another name."""


def shortened(model: ModelConfig, layers: int) -> ModelConfig:
    """The model with this many layers in each of its stacks.

    Raises:
        InputError: the config names no number of layers, or fewer than that.

    """
    text = model.settings.get("text_config")
    if isinstance(text, Mapping):  # of a multimodal model the text part is trained
        part = shortened(replace(model, settings=text), layers)
        return replace(part, settings={**model.settings, "text_config": part.settings})
    named = {name: value for name in _DEPTHS if isinstance(value := model.settings.get(name), int)}
    if not named:
        raise InputError(f"the config of {model.name} names no number of layers; leave layers out")
    if not 1 <= layers <= min(named.values()):
        raise InputError(f"layers must lie between 1 and {min(named.values())} for {model.name}, not {layers}")
    full = max(named.values())
    lists = {
        name: value[:layers]
        for name, value in model.settings.items()
        if isinstance(value, list) and len(value) == full and full > 1
    }
    settings = {**model.settings, **dict.fromkeys(named, layers), **lists}
    return replace(model, name=f"{model.name}, {counted(layers, 'layer')}", source="given", settings=settings)


@dataclass(frozen=True)
class DepthReport:
    """The full model, by extrapolation.

    Attributes:
        model: the full model.
        runs: the two runs, from fewer to more layers.
        layers: how many each had, and how many the full model has.
        name: the quantity.
        predicted: of the full model.
        expected: what the full model would measure, if the layers between behave as those of the two runs.
        spread: how far that may be off: the error of a layer's slope, times the layers that were not run.

    """

    model: ModelConfig
    runs: tuple[ValidationReport, ValidationReport]
    layers: tuple[int, int, int]
    name: str
    predicted: int
    expected: int
    spread: int

    @property
    def error(self) -> float:
        """Relative error of the prediction of the full model, in percent."""
        return 100 * (self.predicted - self.expected) / self.expected

    @property
    def within(self) -> bool:
        """Whether the prediction holds, of both runs and of the full model."""
        return all(run.within for run in self.runs) and abs(self.error) <= self.runs[0].tolerance

    def to_dict(self) -> dict[str, Any]:
        """The document of the deeper run, with the extrapolation."""
        return self.runs[1].to_dict() | {
            "extrapolation": {
                "model": self.model.name,
                "layers": list(self.layers),
                "quantity": self.name,
                "predicted": self.predicted,
                "expected": self.expected,
                "spread": self.spread,
                "error_percent": self.error,
            },
            "shallow": self.runs[0].to_dict(),
            "within_tolerance": self.within,
        }


def validate_depths(
    model: ModelConfig,
    setup: TrainingSetup,
    target: Target,
    options: Options,
    layers: Sequence[int],
    progress: Progress,
    watch: Watch = lambda _: None,
) -> DepthReport:
    """Run two depths and extrapolate.

    Raises:
        InputError: ``layers`` are not two different depths of the model, or as :func:`validate_job`.
        ValidationFailed: as :func:`validate_job`.

    """
    few, many = sorted(layers)
    if few == many:
        raise InputError(f"layers must be two different depths, not {few} twice")
    full = _depth(model)
    shallow, deep = (
        validate_job(shortened(model, depth), setup, target, options, progress, watch) for depth in (few, many)
    )
    pair = shallow.judged, deep.judged
    if pair[0] is None or pair[1] is None:
        raise InputError("a run ended out of memory; choose fewer layers or a smaller job")
    low, high = pair[0], pair[1]
    field = high.name.removeprefix("peak_")
    beyond, between = full - many, many - few
    slope = (high.measured - low.measured) / between
    miss = ((high.predicted - high.measured) - (low.predicted - low.measured)) / between
    return DepthReport(
        model,
        (shallow, deep),
        (few, many, full),
        high.name,
        max(getattr(phase, field) or 0 for phase in forecast(model, setup, target, None, progress).phases),
        round(high.measured + slope * beyond),
        round(abs(miss) * beyond),
    )


def _depth(model: ModelConfig) -> int:
    """The number of layers; of an encoder and a decoder, which a line is drawn through together, of each."""
    settings = model.text
    named = {value for name in _DEPTHS if isinstance(value := settings.get(name), int)}
    if len(named) != 1:
        raise InputError(f"the stacks of {model.name} are not equally deep; give one depth")
    return named.pop()
