"""The report as plain JSON values: one shape for the command line, the API and files."""

from typing import Any

from fitplan.audit import unquantised_share
from fitplan.check import CheckReport, Plan
from fitplan.estimate import MemoryEstimate
from fitplan.verdict import device_bytes

SCHEMA = "fitplan.check/1"


def check_document(report: CheckReport) -> dict[str, Any]:
    """The ``fitplan.check/1`` document. Keys are added, never renamed; sizes are bytes."""
    gpu = report.gpu
    return {
        "schema": SCHEMA,
        "model": {
            "name": report.model.name,
            "source": report.model.source,
            "architecture": report.model.architecture,
            "parameters": report.plans[0].base_parameters if report.plans else None,
        },
        "gpu": None
        if gpu is None
        else {"name": gpu.name, "total_bytes": gpu.total_bytes, "usable_bytes": gpu.usable_bytes},
        "plans": [_plan(plan) for plan in report.plans],
        "advice": [],
        "provenance": {"source": report.source, "versions": report.versions},
    }


def _plan(plan: Plan) -> dict[str, Any]:
    verdict = plan.verdict
    return {
        "setup": plan.setup.to_dict(),
        "trainable_parameters": plan.trainable_parameters,
        "estimate": _estimate(plan.estimate),
        "verdict": verdict.fit if verdict else None,
        "slack_bytes": verdict.slack_bytes if verdict else None,
        "uncertainty_bytes": verdict.uncertainty_bytes if verdict else None,
        "reason": verdict.reason if verdict else None,
        "adapter_checkpoint_bytes": plan.adapter_checkpoint_bytes,
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


def _estimate(estimate: MemoryEstimate) -> dict[str, Any]:
    return {
        "peak_allocated_bytes": estimate.peak_allocated_bytes,
        "peak_reserved_bytes": estimate.peak_reserved_bytes,
        "device_bytes": device_bytes(estimate),
        "peak_moment": estimate.peak_moment,
        "breakdown": dict(estimate.breakdown),
        "moments": [
            {"name": moment.name, "bytes": moment.bytes, "breakdown": dict(moment.breakdown)}
            for moment in estimate.moments
        ],
    }
