"""The process that runs a job: ``python -m fitplan.validation.child`` with the job as one line of JSON on stdin.

It leaves when stdin is closed, as it is when the process that started it ends, whatever way.

On stdout goes one JSON object a line: ``{"phase": …}`` for each phase that is over, and at the end ``{"done": …}``,
``{"out_of_memory": …}`` or ``{"error": …}``.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from fitplan.errors import FitplanError
from fitplan.tracer import installed_versions, needed_for, quiet
from fitplan.validation.job import Job, PhaseMemory

Say = Callable[..., None]


def main() -> int:
    """Run the job; 0 if it ran, ran out of memory included."""
    return answer(lambda question, say: _run(Job.from_dict(question), say))


def answer(run: Callable[[dict[str, Any], Say], None]) -> int:
    """Let ``run`` answer the question on stdin; the exit code."""
    channel, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no part of the answer

    def say(**what: Any) -> None:
        print(json.dumps(what), file=channel, flush=True)

    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        with quiet(), needed_for("a validation run"):
            run(question, say)
    except FitplanError as error:
        say(error=str(error))
        return 1
    except Exception as error:  # whatever a library raises inside the step is the result of this run
        say(error=f"the run failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    return 0


def _leave_with_parent() -> None:
    while os.read(0, 1024):  # not through sys.stdin, whose lock would be held when Python ends
        pass
    os._exit(1)


def _run(job: Job, say: Say) -> None:
    import torch

    from fitplan.step.job import Place
    from fitplan.validation.loop import run
    from fitplan.validation.meter import CpuMeter, CudaMeter, LimitReached, Meter, write_events
    from fitplan.validation.process_memory import ProcessMemory, driver_versions

    def told(phase: PhaseMemory) -> None:
        say(phase=phase.to_dict())

    on_cpu = job.device == "cpu"
    device = torch.device(job.device)
    meter: Meter
    if on_cpu:
        meter = CpuMeter(told, job.limit_bytes)
    else:
        meter = CudaMeter(told, job.limit_bytes, device, job.events is not None, ProcessMemory())
    name = "CPU" if on_cpu else torch.cuda.get_device_name(device)
    failed: Exception | None = None
    try:
        run(job, Place("cpu", "cpu") if on_cpu else Place("cuda", "cuda"), meter)
    except (torch.OutOfMemoryError, LimitReached, MemoryError) as error:
        failed = error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # as PyTorch's CPU allocator says it
            raise
        failed = error
    if job.events is not None:
        write_events(meter.events(), job.events)
    if failed is not None:
        phase, step = meter.at
        say(out_of_memory={"phase": phase, "step": step, "message": " ".join(str(failed).split())[:300]})
    versions = installed_versions(job.setup) | ({} if on_cpu else driver_versions())
    say(done={"device": name, "versions": versions})


if __name__ == "__main__":
    sys.exit(main())
