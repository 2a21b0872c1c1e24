"""The same job, run by another stack: what it takes there, where that is known."""

from dataclasses import dataclass
from typing import Any

from fitplan.estimator import known_estimate
from fitplan.footprint.job import TrainingJob
from fitplan.setup import Adapter, Stack, Task, TrainingSetup
from fitplan.stacks import STACKS, as_run_by, shown
from fitplan.verdict import DeviceMemory, Fit, device_memory, judge


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What the same job takes with another stack, which does other things to it.

    Attributes:
        title: the stack, as people call it.
        version: its version.
        bytes: of device memory.
        fit: what the device says to that; ``None`` where there is none.

    """

    title: str
    version: str
    bytes: int
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"stack": self.title, "version": self.version, "device_bytes": self.bytes, "verdict": self.fit}


NOTICEABLE = 0.02
"""Of the memory: less is within what the stacks' versions differ by."""


def elsewhere(job: TrainingJob, memory: DeviceMemory) -> tuple[Elsewhere, ...]:
    """What a job of ``transformers.Trainer`` takes with the stacks that differ, where that is known without a trace."""
    setup = job.setup
    others_know = setup.adapter in (None, Adapter.LORA, Adapter.DORA) and not setup.use_liger_kernel
    if setup.stack is not Stack.TRAINER or setup.task is not Task.CAUSAL_LM or not others_know:
        return ()
    found = []
    for stack in (Stack.TRL,):
        version = shown(STACKS[stack].newest)
        changes = as_run_by(stack, setup.method)
        if any(getattr(setup, name) != getattr(TrainingSetup(method=setup.method), name) for name in changes):
            continue  # what the stack would do was decided otherwise
        other = job.with_setup(setup.with_(stack=stack, stack_version=version, **changes))
        if (estimate := known_estimate(other)) is None:
            continue
        verdict = judge(estimate, job.device) if job.device else None
        needs = verdict.memory if verdict else device_memory(estimate, None)
        if abs(needs.bytes - memory.bytes) > NOTICEABLE * memory.bytes:
            fit = verdict.fit if verdict else None
            found.append(Elsewhere(title=STACKS[stack].title, version=version, bytes=needs.bytes, fit=fit))
    return tuple(found)
