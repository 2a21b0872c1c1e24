"""Predictions against one GPU: some seventy fine-tuning jobs, each predicted first, then run for real.

    python benchmarks/gpu_matrix.py --minutes 9 --out profiles/measured
    python benchmarks/gpu_matrix.py --minutes 90 --out build/rehearsed-a100 --rehearse a100    without a GPU

First the GPU is measured as by ``fitplan calibrate``, while the CPU predicts; the context that was found is that of
every prediction. A prediction is written before its job runs. Each job runs in a process of its own, the cheapest of
each kind first, and while it runs the next process imports what it needs. A record is written as soon as a job is done;
a job that fails is noted in failures.json, and the rest goes on. Jobs whose record exists, jobs that failed before and
jobs that are predicted not to fit are skipped. It ends in time, whatever a job does; run it again to go on.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the configs are shipped, and nobody is to wait for a network
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

NEEDED = {
    "torch": "torch", "transformers": "transformers", "peft": "peft", "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes", "rich": "rich", "platformdirs": "platformdirs", "pynvml": "nvidia-ml-py",
}  # fmt: skip
missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit(f"gpu_matrix needs {', '.join(missing)}, which this Python does not have; carry the wheels along")

from fitplan.configs.resolve import ModelConfig, resolve_model
from fitplan.errors import FitplanError, NoUsableGpu
from fitplan.setup import Optim, TrainingSetup
from fitplan.tracer import installed_versions
from fitplan.units import gib
from fitplan.validation.calibration import measure_gpu
from fitplan.validation.records import write_record
from fitplan.validation.report import ValidationReport
from fitplan.validation.runner import (
    Forecast,
    Options,
    RunProcess,
    Target,
    find_target,
    forecast,
    rehearsed_gpu,
    validate_forecast,
)
from fitplan.whole import write_whole

CASE_SECONDS = 120
"""No job may take longer."""

MEASURE_SECONDS = 240
"""Measuring the GPU may take no longer; it comes first, and the libraries are read from a cold disk."""

LEAST_SECONDS = 20
"""A job is not begun with less time left."""

GRACE_SECONDS = 25
"""After the last moment, for a process to be ended and its last words to be heard."""

QUANTITIES = ("peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_bytes")


@dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
        kind: what it is there to show.
        model: a shipped model.
        settings: fields of ``TrainingSetup``.
        shrunk: fields of the config that are made small.

    """

    kind: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    shrunk: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model and settings."""
        told = [f"{name}-{value}" for name, value in self.settings.items()]
        return "--".join([self.model, *told]).replace("_", "-").replace(" ", "")

    def config(self) -> ModelConfig:
        """The model's config."""
        model = resolve_model(self.model)
        return ModelConfig(model.name, model.source, {**model.settings, **self.shrunk}, model.pretrained)

    def setup(self) -> TrainingSetup:
        """The settings, complete."""
        return TrainingSetup.from_dict(self.settings)

    @property
    def cost(self) -> float:
        """Roughly, how long it takes: parameters to make, and tokens through them."""
        from fitplan.configs.catalog import catalog

        parameters = next(entry.parameters for entry in catalog() if entry.name == self.model)
        setup = self.setup()
        return parameters * (2e4 + setup.batch_size * setup.seq_len * setup.gradient_accumulation_steps)


def _of(kind: str, model: str, *jobs: dict[str, Any], **common: Any) -> list[Case]:
    return [Case(kind, model, {**common, **job}) for job in jobs]


FAMILIES = (
    "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-4b", "qwen3-8b", "mistral-7b-v0.3",
    "gemma-2-2b", "gemma-2-9b", "gemma-3-1b", "phi-3.5-mini", "phi-4", "olmo-2-7b", "pythia-1.4b", "pythia-6.9b",
    "granite-3.0-3b-a800m", "flan-t5-large", "smollm2-135m",
)  # fmt: skip

CASES: list[Case] = [
    *(Case("family", model, {"method": "qlora", "seq_len": 512 if "t5" in model else 1024}) for model in FAMILIES),
    *(
        Case("family, LoRA", model, {"method": "lora", "seq_len": 512})
        for model in ("llama-3.2-1b", "qwen3-0.6b", "gemma-2-2b", "pythia-1.4b", "granite-3.0-3b-a800m", "olmo-2-7b")
    ),
    *(
        Case("family, full", model, {"method": "full", "seq_len": 512})
        for model in ("llama-3.2-1b", "qwen3-0.6b", "gemma-3-1b", "pythia-1.4b", "flan-t5-large", "smollm2-135m")
    ),
    *_of(
        "quantisation", "llama-3.2-3b", {"double_quant": False}, {"kbit_prepare": False}, {"quant": "fp4"},
        {"double_quant": False, "kbit_prepare": False}, {"quant": "int8"}, {"quant": "int8", "kbit_prepare": False},
        method="qlora", seq_len=1024,
    ),
    *_of("quantisation", "llama-3.1-8b", {"kbit_prepare": False}, {"quant": "int8"}, method="qlora", seq_len=1024),
    *_of("rank", "llama-3.1-8b", {"lora_r": 8}, {"lora_r": 64}, method="qlora", seq_len=1024),
    *_of("rank", "qwen3-4b", {"lora_r": 8}, {"lora_r": 64}, method="lora", seq_len=1024),
    *_of(
        "no checkpointing", "llama-3.2-1b", {"method": "qlora"}, {"method": "lora"}, {"method": "full"},
        seq_len=1024, gradient_checkpointing=False,
    ),
    *_of("no checkpointing", "mistral-7b-v0.3", {"method": "qlora"}, seq_len=1024, gradient_checkpointing=False),
    *_of(
        "accumulation", "llama-3.2-1b", {"method": "qlora"}, {"method": "full"},
        seq_len=1024, gradient_accumulation_steps=4,
    ),
    *(
        Case("optimizer", "llama-3.2-1b", {"method": "full", "seq_len": 512, "optim": str(optim)})
        for optim in Optim
        if optim is not Optim.ADAMW_TORCH_FUSED
    ),
    *_of("optimizer", "llama-3.2-3b", {"optim": "lion_8bit"}, {"optim": "adafactor"}, method="lora", seq_len=512),
    *_of("eager", "qwen3-0.6b", {"method": "qlora"}, {"method": "lora"}, seq_len=2048, attn="eager"),
    *_of("eager", "mistral-7b-v0.3", {"method": "qlora"}, seq_len=1024, attn="eager"),
    *_of("length", "qwen3-0.6b", {"seq_len": 4096}, {"seq_len": 16384}, method="qlora"),
    *_of("length", "llama-3.1-8b", {"seq_len": 4096}, {"seq_len": 8192}, {"seq_len": 16384}, method="qlora"),
    *_of("length", "mistral-7b-v0.3", {"seq_len": 8192}, method="qlora"),
    *_of(
        "padding", "llama-3.2-1b", {"padding": "longest"}, {"padding": "max_length"},
        method="qlora", batch_size=4, seq_len=1024,
    ),
    *_of("padding", "gemma-2-2b", {"padding": "longest"}, method="lora", batch_size=4, seq_len=512),
    *_of("batch", "llama-3.2-1b", {"batch_size": 8}, {"batch_size": 3, "seq_len": 777}, method="lora", seq_len=1024),
    *_of("expandable", "llama-3.1-8b", {"method": "qlora"}, seq_len=2048, expandable_segments=True),
    *_of("Liger", "llama-3.2-1b", {"method": "qlora"}, {"method": "full"}, seq_len=2048, use_liger_kernel=True),
    *_of("Liger", "qwen3-4b", {"method": "lora"}, seq_len=2048, use_liger_kernel=True),
    *_of("Liger", "llama-3.1-8b", {"method": "qlora"}, seq_len=8192, use_liger_kernel=True),
    *_of("large", "llama-3.3-70b", {"method": "qlora"}, seq_len=1024),
    *_of("large", "qwen3-30b-a3b", {"method": "lora"}, seq_len=512),
]  # fmt: skip

_SHRUNK = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 2, "vocab_size": 128,
}  # fmt: skip
TINY_CASES = [
    Case(kind, model, {"method": method, "batch_size": 2, "seq_len": 16}, _SHRUNK)
    for kind, model, method in (("family", "llama-3.2-1b", "qlora"), ("family, full", "qwen3-0.6b", "full"))
]


def in_rounds(cases: Iterable[Case]) -> list[Case]:
    """The cheapest of each kind, then the next of each kind: most is learnt first."""
    kinds: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.cost):
        kinds.setdefault(case.kind, []).append(case)
    ranked = [(place, case.cost, case) for those in kinds.values() for place, case in enumerate(those)]
    return [case for _, _, case in sorted(ranked, key=lambda one: one[:2])]


class Forecasts:
    """Predictions, made side by side while jobs run; each is written to a file before it is handed out.

    Attributes:
        context_bytes: of the CUDA context, where it was measured meanwhile.

    """

    context_bytes: int | None = None

    def __init__(self, cases: Sequence[Case], target: Target, workers: int, path: Path) -> None:
        self._target, self._path = target, path
        self._written = _read(path)
        device = target.gpu.name if target.gpu else "CPU"
        self._stamp = {"device": device, "versions": installed_versions()}
        self._pool: ProcessPoolExecutor | None = None
        self._found: dict[str, Future[Forecast | str]] = {}
        if workers > 1:
            fresh = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_without_gpu)
            self._found = {case.name: self._pool.submit(_predict, case, target) for case in cases}

    def of(self, case: Case, seconds: float) -> Forecast | str:
        """The forecast of a case, or why there is none; waits for it so long at most."""
        found = self._found.pop(case.name, None)  # what was handed out is not kept
        try:
            said = _predict(case, self._target) if found is None else found.result(max(0.0, seconds))
        except TimeoutError:
            return "it was not predicted in time"
        except BrokenProcessPool:  # a worker was killed
            said = _predict(case, self._target)
        if self.context_bytes is not None and not isinstance(said, str):
            said = replace(said, context_bytes=self.context_bytes)
        self._written[case.name] = self._stamp | {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | _told(said)
        _write(self._path, self._written)
        return said

    def close(self) -> None:
        """Predict no more, and do not wait for what is being predicted."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            _end_workers()


def _end_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _without_gpu() -> None:
    """A trace needs no GPU, and must not hold memory of the one that is measured."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _predict(case: Case, target: Target) -> Forecast | str:
    try:
        return forecast(case.config(), case.setup(), target, None, lambda _: None)
    except FitplanError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, document: dict[str, Any]) -> None:
    write_whole(path, json.dumps(document, indent=1))


def _told(one: Forecast | str) -> dict[str, Any]:
    if isinstance(one, str):
        return {"error": one}
    return {
        "runs": one.runs_on_paper,
        "peak_requested_bytes": max(phase.requested_bytes for phase in one.phases),
        "peak_allocated_bytes": max(phase.allocated_bytes or 0 for phase in one.phases),
        "peak_reserved_bytes": one.peak_reserved_bytes,
        "device_bytes": one.peak_reserved_bytes + one.context_bytes,
    }


def record_of(case: Case, folder: Path) -> Path:
    """Where :func:`fitplan.validation.records.write_record` keeps the case."""
    return folder / f"{case.model}--{case.setup().method}--{case.name}.json"


def measure_first(target: Target, folder: Path, seconds: float) -> int | None:
    """Measure the GPU itself, once: its context, and what its kernels take beside what is assumed of them.

    Bytes of the context; ``None`` where it is not known.
    """
    path = folder / "calibration.json"
    if target.gpu is None or target.rehearsed:
        return None
    if path.exists():
        known: int | None = _read(path)["context_bytes"]
        return known
    try:
        found = measure_gpu(target, seconds)
    except Exception as error:
        print(f"the GPU cannot be measured: {error}\n{getattr(error, 'details', '')}", flush=True)
        return None
    _write(path, found.to_dict())
    from rich.console import Console

    from fitplan.report.validation import print_calibration

    print_calibration(found, Console(width=100), kept=False)
    print(flush=True)
    return found.context_bytes


def run_all(cases: Sequence[Case], forecasts: Forecasts, target: Target, folder: Path, deadline: float) -> None:
    """Run what is left, as long as there is time."""
    failures = folder / "failures.json"
    failed = _read(failures)
    ready = _Ready(target, cases)
    try:
        forecasts.context_bytes = measure_first(target, folder, min(MEASURE_SECONDS, deadline - time.monotonic()))
        for number, case in enumerate(cases):
            said = forecasts.of(case, deadline - time.monotonic())
            if isinstance(said, str) or not said.runs_on_paper:
                print(f"{case.name}: {said if isinstance(said, str) else 'predicted not to fit'}; skipped", flush=True)
                continue
            begun = time.monotonic()
            if deadline - begun < LEAST_SECONDS:
                print("no time is left; run it again to go on")
                return
            process = ready.take(case, cases[number + 1 :])
            try:
                options = Options(timeout=min(CASE_SECONDS, deadline - begun), force=True)
                report = validate_forecast(said, target, options, lambda _: None, process=process)
                write_record(report.to_dict(), folder, case.name)
                if failed.pop(case.name, None):
                    _write(failures, failed)
            except Exception as error:  # whatever it is, the other jobs have nothing to do with it
                process.__exit__()
                print(f"{case.name}: {error}", flush=True)
                if time.monotonic() < deadline:  # else it was only late
                    details = getattr(error, "details", "") or traceback.format_exc()
                    failed[case.name] = {"error": f"{type(error).__name__}: {error}", "details": details}
                    _write(failures, failed)
                continue
            print(f"{case.name}: {_outcome(report)} ({time.monotonic() - begun:.0f} s)", flush=True)
    finally:
        ready.close()


class _Ready:
    """The process of the next job, which is started while a job runs."""

    def __init__(self, target: Target, cases: Sequence[Case]) -> None:
        self._target = target
        self._next = self._started(cases[0].setup().expandable_segments) if cases else None

    def _started(self, expandable: bool) -> tuple[bool, RunProcess]:
        return expandable, RunProcess(self._target, expandable=expandable).start()

    def take(self, case: Case, following: Sequence[Case]) -> RunProcess:
        """A process for the case; the next one is started for the case that follows."""
        expandable = case.setup().expandable_segments
        if self._next is None or self._next[0] != expandable:
            self.close()
            self._next = self._started(expandable)
        process = self._next[1]
        self._next = self._started(following[0].setup().expandable_segments) if following else None
        return process

    def close(self) -> None:
        """End the process that waits."""
        if self._next is not None:
            self._next[1].__exit__()
            self._next = None


def _outcome(report: ValidationReport) -> str:
    told = report.judged
    if told is None:
        return "out of memory"
    errors = ", ".join(f"{one.title.removeprefix('peak ')} {one.error:+.3f} %" for one in report.quantities)
    return f"{gib(told.measured)}; {errors}"


def end_in_time(folder: Path, deadline: float) -> threading.Timer:
    """Leave at the last moment, though a process be stuck that even the kernel cannot end; what is done is written."""

    def leave() -> None:
        print("a job does not end; left alone", flush=True)
        _end_workers()
        print_table(folder)
        sys.stdout.flush()
        os._exit(4)

    timer = threading.Timer(max(0.0, deadline + GRACE_SECONDS - time.monotonic()), leave)
    timer.daemon = True
    timer.start()
    return timer


def print_table(folder: Path) -> None:
    """The errors of all records in the folder."""
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*--*.json"))]
    print(f"\n{len(documents)} jobs\n{'error, %':24}{'jobs':>6}{'median':>10}{'95 %':>10}{'worst':>10}")
    for name in QUANTITIES:
        errors = sorted(
            (one["error_percent"] for document in documents for one in document["quantities"] if one["name"] == name),
            key=abs,
        )
        if errors:
            most_of = abs(errors[min(len(errors) - 1, int(0.95 * len(errors)))])
            median = statistics.median(map(abs, errors))
            row = f"{len(errors):>6}{median:>10.3f}{most_of:>10.3f}{errors[-1]:>+10.3f}"
            print(f"{name.removesuffix('_bytes').replace('_', ' '):24}{row}")
    false = [d for d in documents if d["measurement"]["out_of_memory"] and d["runs_on_paper"]]
    print(f"predicted to run, and out of memory: {len(false)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="when to stop (default 9)")
    parser.add_argument("--out", type=Path, default=ROOT / "profiles" / "measured", help="folder of the records")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", metavar="GPU", help="run on a GPU that is not there, on the real CUDA libraries")
    parser.add_argument("--most", type=int, default=10**6, help="jobs to do at most")
    parser.add_argument("--tiny", action="store_true", help="a few shrunken jobs")
    parser.add_argument("--only", default="", help="jobs whose name holds this text")
    parser.add_argument("--again", action="store_true", help="the jobs that failed before, too")
    parser.add_argument("--list", action="store_true", help="print the jobs, and leave")
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    cases = [case for case in in_rounds(TINY_CASES if asked.tiny else CASES) if asked.only in case.name][: asked.most]
    if asked.list:
        print("\n".join(f"{case.kind:20}{case.name}" for case in cases))
        return 0
    try:
        target = rehearsed_gpu(asked.rehearse) if asked.rehearse else find_target(asked.device)
    except NoUsableGpu as error:
        print(error, file=sys.stderr)
        return 3
    asked.out.mkdir(parents=True, exist_ok=True)
    failed = {} if asked.again else _read(asked.out / "failures.json")
    open_cases = [case for case in cases if not record_of(case, asked.out).exists() and case.name not in failed]
    done = sum(record_of(case, asked.out).exists() for case in cases)
    print(f"{len(cases)} jobs, {done} done before, {len(cases) - len(open_cases) - done} failed before", flush=True)
    workers = 1 if asked.tiny else min(len(open_cases) or 1, max(1, (os.cpu_count() or 2) - 4))
    timer = end_in_time(asked.out, deadline)
    forecasts = Forecasts(open_cases, target, workers, asked.out / "predictions.json")
    try:
        run_all(open_cases, forecasts, target, asked.out, deadline)
    finally:
        forecasts.close()
    timer.cancel()
    print_table(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
