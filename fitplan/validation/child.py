"""The process that runs a job: ``python -m fitplan.validation.child`` with the job as one line of JSON on stdin.

It imports what it needs first, which takes longer than many a job, and may be started before there is a job. It leaves
when stdin is closed, as it is when the process that started it ends, whatever way.

On stdout goes one JSON object a line: ``{"phase": …}`` for each phase that is over, and at the end ``{"done": …}``,
``{"out_of_memory": …}`` or ``{"error": …}``. On stderr goes what libraries print, and where an error comes from.
"""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from fitplan.process import Say, serve
from fitplan.tracer import installed_versions, needed_for, quiet
from fitplan.validation.job import Job, PhaseMemory


def main() -> int:
    """Run the job; 0 if it ran, ran out of memory included."""
    with quiet():
        return serve(_answer, _get_ready)


def _get_ready() -> None:
    """Import what takes long; no import makes a CUDA context. What is not there is missed where it is needed."""
    for name in ("bitsandbytes", "peft", "fitplan.validation.loop", "fitplan.validation.meter"):
        with suppress(ImportError):
            import_module(name)


def _answer(question: dict[str, Any], say: Say) -> None:
    with needed_for("a validation run"):
        _run(Job.from_dict(question), say)


def _run(job: Job, say: Say) -> None:
    from fitplan.validation.process_memory import ProcessMemory, driver_versions

    memory = ProcessMemory() if job.device != "cpu" else None  # before CUDA is used
    import torch

    from fitplan.step.job import Place
    from fitplan.validation.loop import run
    from fitplan.validation.meter import CpuMeter, CudaMeter, LimitReached, Meter, write_events

    def told(phase: PhaseMemory) -> None:
        say(phase=phase.to_dict())

    on_cpu = memory is None
    device = torch.device(job.device)
    meter: Meter
    if memory is None:
        meter = CpuMeter(told, job.limit_bytes)
    else:
        meter = CudaMeter(told, job.limit_bytes, device, job.events is not None, memory)
    name = "CPU" if on_cpu else torch.cuda.get_device_name(device)
    failed: Exception | None = None
    try:
        run(job, Place("cpu", "cpu") if on_cpu else Place("cuda", "cuda"), meter)
    except (LimitReached, MemoryError) as error:
        failed = error
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        failed = error
    if job.events is not None:
        write_events(meter.events(), job.events)
    if failed is not None:
        phase, step = meter.at
        say(out_of_memory={"phase": phase, "step": step, "message": " ".join(str(failed).split())[:300]})
    versions = installed_versions(job.setup) | ({} if on_cpu else driver_versions())
    say(done={"device": name, "versions": versions})


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")
"""As PyTorch's allocators say it, that of the CPU (``c10/core/impl/alloc_cpu.cpp``) and that of CUDA; as CUDA says it
where a kernel has no room to be loaded (``cudaErrorMemoryAllocation``); and cuBLAS and cuDNN, in their status."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
