"""The process that measures a GPU: ``python -m fitplan.validation.calibration_child``, asked as ``child`` is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fitplan.phase import Phase
from fitplan.process import Say, serve
from fitplan.tracer import installed_versions, needed_for, quiet
from fitplan.validation.job import Job

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 1024,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""A model with the kernels of most."""


STEPS = ("full", "qlora")


class _Unwatched:
    """A meter that does not measure."""

    def enter(self, phase: Phase, owner: str = "", /) -> None: ...

    def watch(self, model: Any) -> None: ...

    def running(self) -> Any:
        return nullcontext()

    def finish(self) -> None: ...

    @property
    def at(self) -> tuple[Phase, int]:
        return Phase.LOAD, 0

    def events(self) -> list[Any]:
        return []


def _calibrate(_question: dict[str, Any], say: Say) -> None:
    from fitplan.validation.process_memory import ProcessMemory, driver_versions

    memory = ProcessMemory()  # before CUDA is used
    import torch

    from fitplan.setup import TrainingSetup
    from fitplan.step.job import Place
    from fitplan.trace.kernels import Gpu
    from fitplan.validation.loop import run
    from fitplan.validation.probes import PROBES, measured_scratch, measured_workspace, predicted_scratch

    @contextmanager
    def skipped_if_refused(name: str) -> Iterator[None]:
        """What does not work here, as a backend that this GPU does not have, is told; the rest is measured."""
        try:
            yield
        except Exception as error:
            say(skipped={"name": name, "why": " ".join(f"{type(error).__name__}: {error}".split())[:160]})

    device, ran = torch.device("cuda:0"), 0
    say(workspace=measured_workspace(device))
    for method in STEPS:
        with skipped_if_refused(f"a training step, {method}"):
            setup = TrainingSetup.from_dict({"method": method, "batch_size": 2, "seq_len": 256})
            run(Job(model=TINY, setup=setup, device="cuda:0", steps=2), Place("cuda", "cuda"), _Unwatched())
            ran += 1
    torch.cuda.synchronize(device)
    held = memory.read() if ran == len(STEPS) else None  # without their kernels it is too small
    say(context=None if held is None else held - torch.cuda.memory_reserved(device))
    gpu = Gpu(torch.cuda.get_device_capability(device))
    measured: dict[str, int] = {}
    for name, prepare in PROBES.items():
        with skipped_if_refused(name):
            measured[name] = measured_scratch(prepare, device)
    for name, scratch in measured.items():
        with skipped_if_refused(name):
            say(kernel={"name": name, "predicted": predicted_scratch(PROBES[name], gpu), "measured": scratch})
    say(done={"versions": installed_versions() | driver_versions()})


def main() -> int:
    """Measure the GPU; 0 if that was possible."""

    def answer(question: dict[str, Any], say: Say) -> None:
        with needed_for("a validation run"):
            _calibrate(question, say)

    with quiet():
        return serve(answer)


if __name__ == "__main__":
    sys.exit(main())
