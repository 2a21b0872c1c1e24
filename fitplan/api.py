"""Will this fine-tune fit? The way through the house, stage by stage."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fitplan.devices.device import DEFAULT_CAPABILITY, Device, device_of_size, find_device
from fitplan.errors import FitplanError, MissingDependency, ModelNotSupported, SetupConflict
from fitplan.memory import MemoryEstimate, estimate_trace
from fitplan.models.resolve import ModelConfig, resolve_model
from fitplan.plan import CheckReport, Plan
from fitplan.setup import DEFAULT_SEQ_LEN, Method, TrainingSetup, settings_for
from fitplan.units import parse_size
from fitplan.verdict import judge

if TYPE_CHECKING:
    from fitplan.trace.tracing import TracedRun

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")

Progress = Callable[[str], None]


def check(
    model: Any,
    *,
    gpu: str | Device | None = None,
    vram: str | int | None = None,
    method: Method | str | None = None,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> CheckReport:
    """Predict the memory of fine-tuning ``model`` and judge it against a GPU.

    Args:
        model: alias, hub id, folder, ``config.json`` or ``PretrainedConfig``.
        gpu: a GPU's name, or a :class:`Device`.
        vram: an amount of memory instead of a known GPU: ``"24GiB"`` or bytes.
        method: one of ``full``, ``lora``, ``qlora``; all three if left out.
        progress: is told what is being done.
        settings: fields of :class:`TrainingSetup`.

    Raises:
        InputError: model, GPU or settings make no sense.
        MissingDependency: the answer needs packages that are not installed.

    """
    device = _device(gpu, vram)
    config = resolve_model(model)
    setups = _setups(method, _with_length(config, settings))
    plans = tuple(_plan(config, setup, device, progress) for setup in setups)
    return CheckReport(config, device, plans, "trace", installed_versions())


def estimate(
    model: Any,
    *,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    progress: Progress = lambda _: None,
    **settings: Any,
) -> MemoryEstimate:
    """Predict the memory of fine-tuning ``model`` with one setup, on a GPU of that compute capability.

    Raises:
        As :func:`check`.

    """
    config = resolve_model(model)
    setup = TrainingSetup.from_dict(_with_length(config, settings))
    return _traced(config, setup, capability, progress)[0]


def installed_versions() -> dict[str, str]:
    """The versions of the libraries that decide the numbers, without importing them."""
    found = {}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def _device(gpu: str | Device | None, vram: str | int | None) -> Device | None:
    if gpu is not None and vram is not None:
        raise SetupConflict("gpu", "vram", "gpu and vram both name a device; drop one of them")
    if vram is not None:
        return device_of_size(vram if isinstance(vram, int) else parse_size(vram))
    return gpu if isinstance(gpu, Device) or gpu is None else find_device(gpu)


def _with_length(model: ModelConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings; where no length is given and the model knows fewer positions than the default, what it can take.

    Rounded down to whole 64s: tables of positions hold a few that are not for tokens.
    """
    known = [model.settings.get(name) for name in ("max_position_embeddings", "n_positions")]
    limit = min((n for n in known if isinstance(n, int) and n > 0), default=DEFAULT_SEQ_LEN)
    if "seq_len" in settings or limit >= DEFAULT_SEQ_LEN:
        return settings
    return {**settings, "seq_len": limit // 64 * 64 or limit}


def _setups(method: Method | str | None, settings: dict[str, Any]) -> list[TrainingSetup]:
    if method is not None:
        return [TrainingSetup.from_dict({**settings, "method": method})]
    return [TrainingSetup.from_dict(settings_for(one, settings)) for one in (Method.QLORA, Method.LORA, Method.FULL)]


def _plan(config: ModelConfig, setup: TrainingSetup, device: Device | None, progress: Progress) -> Plan:
    capability = device.capability if device else DEFAULT_CAPABILITY
    memory, run = _traced(config, setup, capability, progress)
    resolved = setup.with_(attn=run.attention, task=run.task)
    return Plan(resolved, memory, run.parameters, judge(memory, device) if device else None)


def _traced(
    model: ModelConfig, setup: TrainingSetup, capability: tuple[int, int], progress: Progress
) -> tuple[MemoryEstimate, "TracedRun"]:
    progress(f"{setup.method}: importing torch and transformers")
    with _quiet():
        try:
            from fitplan.step.architecture import load_config
            from fitplan.trace.kernels import Gpu
            from fitplan.trace.tracing import trace_training
        except ImportError as error:
            raise MissingDependency(
                f"tracing a model needs {error.name or 'torch'}, which is not installed; pip install 'fitplan[torch]'"
            ) from error
        try:
            run = trace_training(
                load_config(model.settings),
                setup,
                Gpu(capability),
                progress=lambda what: progress(f"{setup.method}: {what}"),
            )
        except FitplanError:
            raise
        except Exception as error:  # what a contradictory config does depends on the code of each model
            text = " ".join(str(error).split())[:240]
            raise ModelNotSupported(
                f"the training step of {model.name} cannot be run as its config and the setup say: "
                f"{type(error).__name__}: {text}; check the config's dimensions against each other"
            ) from error
    return estimate_trace(run.trace), run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries' remarks about a GPU that is not there, and about weights that are not real, help nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
