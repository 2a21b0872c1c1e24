"""Runs a job in a process of its own."""

from collections.abc import Callable, Mapping

from fitplan.errors import ValidationFailed
from fitplan.process import Child
from fitplan.validation.job import Job, Measurement, OutOfMemory, PhaseMemory

Watch = Callable[[PhaseMemory], None]

RUNS_JOBS = "fitplan.validation.child"
"""The module of a process that runs a job."""


def child_for_run(module: str, environment: Mapping[str, str]) -> Child:
    """A process for a run on a device, which fails with :class:`fitplan.errors.ValidationFailed`."""
    return Child(module, environment, what="the run", failure=ValidationFailed)


def measure(
    job: Job,
    *,
    timeout: float,
    watch: Watch = lambda _: None,
    environment: Mapping[str, str] | None = None,
    child: Child | None = None,
) -> Measurement:
    """Run ``job`` and hear what it measures; ``watch`` is told of every phase as it ends.

    ``child`` is the process to run it in, with its own environment, where one was started before.

    Raises:
        ValidationFailed: the run failed, was killed, or took longer than ``timeout`` seconds.

    """
    phases: list[PhaseMemory] = []
    failed: OutOfMemory | None = None

    def where() -> str:
        return (
            f"after {phases[-1].phase} of step {phases[-1].step + 1}" if phases else "before its first phase was over"
        )

    with child or child_for_run(RUNS_JOBS, environment or {}) as process:
        process.ask(job.to_dict(), timeout, where)
        while "done" not in (said := process.hear()):
            if "phase" in said:
                phases.append(PhaseMemory(**said["phase"]))
                watch(phases[-1])
            elif "out_of_memory" in said:
                failed = OutOfMemory(**said["out_of_memory"])
    return Measurement(tuple(phases), said["done"]["device"], said["done"]["versions"], failed)
