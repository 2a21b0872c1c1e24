"""Will this fine-tune fit on this GPU, and where does the memory go?

The public names are loaded when they are first used, so that ``import fitplan`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitplan.advice import AdviceReport as AdviceReport
    from fitplan.api import advise as advise
    from fitplan.api import check as check
    from fitplan.api import estimate as estimate
    from fitplan.api import explain as explain
    from fitplan.api import fit_map as fit_map
    from fitplan.api import gpus as gpus
    from fitplan.api import models as models
    from fitplan.api import rehearse as rehearse
    from fitplan.api import validate as validate
    from fitplan.audit import ParameterGroup as ParameterGroup
    from fitplan.callback import Guard as Guard
    from fitplan.configs.resolve import ModelConfig as ModelConfig
    from fitplan.devices.device import Device as Device
    from fitplan.difference import Difference as Difference
    from fitplan.difference import diff as diff
    from fitplan.emit import emit_script as emit_script
    from fitplan.errors import DeviceNotFound as DeviceNotFound
    from fitplan.errors import DoesNotFit as DoesNotFit
    from fitplan.errors import FitplanError as FitplanError
    from fitplan.errors import InputError as InputError
    from fitplan.errors import LibraryMoved as LibraryMoved
    from fitplan.errors import MissingDependency as MissingDependency
    from fitplan.errors import ModelNotFound as ModelNotFound
    from fitplan.errors import ModelNotSupported as ModelNotSupported
    from fitplan.errors import NoUsableGpu as NoUsableGpu
    from fitplan.errors import RehearsalImpossible as RehearsalImpossible
    from fitplan.errors import SetupConflict as SetupConflict
    from fitplan.errors import TraceFailed as TraceFailed
    from fitplan.errors import ValidationFailed as ValidationFailed
    from fitplan.explanation import Explanation as Explanation
    from fitplan.fitmap import FitMap as FitMap
    from fitplan.fitting import Fitting as Fitting
    from fitplan.fitting import Matrix as Matrix
    from fitplan.fitting import matrix as matrix
    from fitplan.memory import MemoryEstimate as MemoryEstimate
    from fitplan.memory import MemoryMoment as MemoryMoment
    from fitplan.plan import CheckReport as CheckReport
    from fitplan.plan import Plan as Plan
    from fitplan.postmortem import Autopsy as Autopsy
    from fitplan.postmortem import autopsy as autopsy
    from fitplan.rehearsal.report import RehearsalReport as RehearsalReport
    from fitplan.setup import Attention as Attention
    from fitplan.setup import Dtype as Dtype
    from fitplan.setup import Method as Method
    from fitplan.setup import MixedPrecision as MixedPrecision
    from fitplan.setup import Optim as Optim
    from fitplan.setup import Padding as Padding
    from fitplan.setup import Quant as Quant
    from fitplan.setup import Task as Task
    from fitplan.setup import TrainingSetup as TrainingSetup
    from fitplan.trace.events import Category as Category
    from fitplan.tracer import tracing_here as tracing_here
    from fitplan.validation.report import ValidationReport as ValidationReport
    from fitplan.verdict import Fit as Fit
    from fitplan.verdict import Verdict as Verdict

_HOMES = {
    "AdviceReport": "fitplan.advice",
    "Attention": "fitplan.setup",
    "Autopsy": "fitplan.postmortem",
    "Category": "fitplan.trace.events",
    "CheckReport": "fitplan.plan",
    "Device": "fitplan.devices.device",
    "DeviceNotFound": "fitplan.errors",
    "Difference": "fitplan.difference",
    "Dtype": "fitplan.setup",
    "DoesNotFit": "fitplan.errors",
    "Explanation": "fitplan.explanation",
    "Fit": "fitplan.verdict",
    "FitMap": "fitplan.fitmap",
    "Fitting": "fitplan.fitting",
    "FitplanError": "fitplan.errors",
    "Guard": "fitplan.callback",
    "InputError": "fitplan.errors",
    "LibraryMoved": "fitplan.errors",
    "Matrix": "fitplan.fitting",
    "MemoryEstimate": "fitplan.memory",
    "MemoryMoment": "fitplan.memory",
    "Method": "fitplan.setup",
    "MissingDependency": "fitplan.errors",
    "MixedPrecision": "fitplan.setup",
    "ModelConfig": "fitplan.configs.resolve",
    "ModelNotFound": "fitplan.errors",
    "ModelNotSupported": "fitplan.errors",
    "NoUsableGpu": "fitplan.errors",
    "Optim": "fitplan.setup",
    "Padding": "fitplan.setup",
    "ParameterGroup": "fitplan.audit",
    "Plan": "fitplan.plan",
    "Quant": "fitplan.setup",
    "Reading": "fitplan.readers.reading",
    "RehearsalImpossible": "fitplan.errors",
    "RehearsalReport": "fitplan.rehearsal.report",
    "SetupConflict": "fitplan.errors",
    "Task": "fitplan.setup",
    "TraceFailed": "fitplan.errors",
    "TrainingSetup": "fitplan.setup",
    "ValidationFailed": "fitplan.errors",
    "ValidationReport": "fitplan.validation.report",
    "Verdict": "fitplan.verdict",
    "advise": "fitplan.api",
    "autopsy": "fitplan.postmortem",
    "check": "fitplan.api",
    "diff": "fitplan.difference",
    "emit_script": "fitplan.emit",
    "estimate": "fitplan.api",
    "explain": "fitplan.api",
    "fit_map": "fitplan.api",
    "gpus": "fitplan.api",
    "matrix": "fitplan.fitting",
    "models": "fitplan.api",
    "read_training_file": "fitplan.readers.recognise",
    "read_training_objects": "fitplan.readers.objects",
    "rehearse": "fitplan.api",
    "tracing_here": "fitplan.tracer",
    "validate": "fitplan.api",
    "write_config": "fitplan.writers",
}

__all__ = list(_HOMES)  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fitplan")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fitplan' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
