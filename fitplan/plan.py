"""The answer: one plan for each setup asked about, and the JSON document made from it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fitplan.advice import Proposal, proposal_document
from fitplan.audit import ParameterGroup, unquantised_share
from fitplan.configs.resolve import ModelConfig
from fitplan.devices.device import Device
from fitplan.elsewhere import Elsewhere
from fitplan.memory import MemoryEstimate
from fitplan.notes import notes
from fitplan.setup import Method, TrainingSetup
from fitplan.units import gib
from fitplan.validation.records import Record
from fitplan.verdict import DeviceMemory, Verdict

if TYPE_CHECKING:
    from fitplan.readers import Reading

SCHEMA = "fitplan.check/1"


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """One setup, answered.

    Attributes:
        setup: every setting, resolved.
        estimate: what it needs.
        memory: what it takes of the GPU, or of any GPU where none was given.
        parameters: the model's parameters by how they are stored.
        verdict: whether it fits; ``None`` where no GPU was given.
        undecided: what is known of a verdict in doubt, and why no trace of this very job decides it.
        source: where the numbers come from: ``"shipped"``, ``"cache"`` or ``"trace"``.
        versions: the libraries that were traced.
        fix: the changes that hurt least and make it fit; ``None`` where it fits, or where none are known.
        smallest_gpus: the smallest known GPUs on which it fits as it is; none where it fits the one asked about.
        elsewhere: what the same job takes with other stacks, where that is known and differs.
        evidence: what a run of much the same job measured, if there is a record of one.

    """

    setup: TrainingSetup
    estimate: MemoryEstimate
    memory: DeviceMemory
    parameters: tuple[ParameterGroup, ...]
    verdict: Verdict | None
    source: str
    versions: dict[str, str]
    undecided: str | None = None
    fix: Proposal | None = None
    smallest_gpus: tuple[Device, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    evidence: Record | None = None

    @property
    def trainable_parameters(self) -> int:
        """Parameters that receive gradients."""
        return sum(group.parameters for group in self.parameters if group.trainable)

    @property
    def base_parameters(self) -> int:
        """Parameters of the model without adapters, tied ones once."""
        return sum(group.parameters for group in self.parameters if not group.adapter)

    @property
    def adapter_checkpoint_bytes(self) -> int | None:
        """Size of the adapter's weights on disk; ``None`` for full fine-tuning."""
        if self.setup.method is Method.FULL:
            return None
        return sum(group.bytes for group in self.parameters if group.is_saved_with_adapter)

    @property
    def ask_for_bytes(self) -> int:
        """The device memory to ask a scheduler for: what it takes, and what it may take more."""
        return self.memory.bytes + self.memory.spread_bytes

    def __repr__(self) -> str:
        """What a notebook shows: the verdict, not every number."""
        fit = f", {self.verdict.fit.replace('_', ' ')}" if self.verdict else ""
        return f"<Plan: {self.setup.method}, {gib(self.memory.bytes)}{fit}>"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; sizes are bytes."""
        return _plan(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckReport:
    """The answer of :func:`check`.

    Attributes:
        model: the model that was asked about.
        gpu: the device; ``None`` where none was given.
        plans: one for each method asked for.
        installed: versions of the libraries that are installed here.
        left_out: methods among all of them that have no answer, and why.
        remarks: what of the question could not be minded.
        reading: what was read in a training file, if one was asked about.

    """

    model: ModelConfig
    gpu: Device | None
    plans: tuple[Plan, ...]
    installed: dict[str, str]
    left_out: dict[Method, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    reading: "Reading | None" = None

    def __repr__(self) -> str:
        """What a notebook shows: the verdicts, not every number."""
        on = f" on {self.gpu.name}" if self.gpu else ""
        return f"<CheckReport: {self.model.name}{on}: {'; '.join(repr(plan)[7:-1] for plan in self.plans)}>"

    @property
    def source(self) -> str:
        """Where the numbers come from; of several plans, where the least settled does."""
        return max((plan.source for plan in self.plans), key=("shipped", "cache", "trace").index)

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that the least settled numbers were traced with."""
        return next(plan.versions for plan in self.plans if plan.source == self.source)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader should know of the numbers, and which methods have none."""
        setups = [plan.setup for plan in self.plans]
        versions = self.plans[0].versions if self.plans else {}
        left_out = [f"{method} is left out: {why}" for method, why in self.left_out.items()]
        return (*left_out, *notes(self.model, self.gpu, setups, versions, self.installed, self.remarks))

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.check/1`` document. Keys are added, never renamed; sizes are bytes."""
        return _document(self)


def _document(report: CheckReport) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": {
            "name": report.model.name,
            "source": report.model.source,
            "architecture": report.model.architecture,
            "parameters": report.plans[0].base_parameters if report.plans else None,
        },
        "gpu": report.gpu and report.gpu.to_dict(),
        "plans": [plan.to_dict() for plan in report.plans],
        "advice": [
            {"plan": number, **proposal_document(plan.fix)}
            for number, plan in enumerate(report.plans)
            if plan.fix is not None
        ],
        "provenance": {"source": report.source, "versions": report.versions, "installed": report.installed},
        "left_out": {str(method): why for method, why in report.left_out.items()},
        "warnings": list(report.warnings),
        "file": report.reading and report.reading.to_dict(),
    }


def _plan(plan: Plan) -> dict[str, Any]:
    verdict = plan.verdict
    return {
        "setup": plan.setup.to_dict(),
        "source": plan.source,
        "trainable_parameters": plan.trainable_parameters,
        "estimate": {
            **plan.estimate.to_dict(),
            "device_bytes": plan.memory.bytes,
            "ask_for_bytes": plan.ask_for_bytes,
            "device": _device(plan.memory),
        },
        "verdict": verdict.fit if verdict else None,
        "slack_bytes": verdict.slack_bytes if verdict else None,
        "uncertainty_bytes": verdict.uncertainty_bytes if verdict else None,
        "reason": verdict.reason if verdict else None,
        "undecided": plan.undecided,
        "smallest_gpus": [device.name for device in plan.smallest_gpus],
        "adapter_checkpoint_bytes": plan.adapter_checkpoint_bytes,
        "elsewhere": [one.to_dict() for one in plan.elsewhere],
        "evidence": plan.evidence.to_dict() if plan.evidence else None,
        "quantisation": {
            "unquantised_share": unquantised_share(plan.parameters),
            "groups": [
                {
                    "storage": group.storage,
                    "why": group.why,
                    "trainable": group.trainable,
                    "adapter": group.adapter,
                    "parameters": group.parameters,
                    "bytes": group.bytes,
                    "example": group.example,
                }
                for group in plan.parameters
            ],
        },
    }


def _device(memory: DeviceMemory) -> dict[str, Any]:
    return {
        "allocated_bytes": memory.allocated_bytes,
        "unsplit_bytes": memory.unsplit_bytes,
        "cached_bytes": memory.cached_bytes,
        "kept_bytes": memory.kept_bytes,
        "paged_bytes": memory.paged_bytes,
        "context_bytes": memory.context.bytes,
        "context_source": memory.context.source,
        "context_measured_on": memory.context.measured_on,
        "nccl_bytes": memory.nccl_bytes,
        "spread_bytes": memory.spread_bytes,
    }
