"""One of two processes that train together on the CPU; what it allocates is written to a file for each case."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import CASES
from real_runs import training_events

from fitplan.guard import Guard
from fitplan.phase import Phase
from fitplan.setup import SHARDED, Strategy
from fitplan.step.architecture import load_config
from fitplan.step.distribute import distribute
from fitplan.step.job import Place
from fitplan.step.model import build_skeleton, load_model
from fitplan.step.run import train
from fitplan.trace.ranks import device_for, let_fsdp1_run
from fitplan.trace.recorder import Recorder
from fitplan.trace.tracing import fresh_process

CPU = Place("cpu", "cpu")
COLLECTIVES = (
    "reduce_scatter_single", "all_gather_single", "reduce_scatter_tensor", "all_gather_into_tensor", "all_reduce",
    "broadcast",
)  # fmt: skip


@contextmanager
def gloo_unseen(recorder: Recorder) -> Any:
    """gloo works on copies (``ProcessGroupGloo.cpp``), which NCCL does not make."""

    def hidden(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with recorder.on("host"):
                return function(*args, **kwargs)

        return call

    with Guard() as guard:
        for name in COLLECTIVES:
            if hasattr(dist, name):
                guard.exchange(dist, name, hidden(getattr(dist, name)))
        yield


def one(name: str) -> Any:
    settings, setup = CASES[name]
    torch.manual_seed(0)
    config, recorder = load_config(settings), Recorder("cpu")
    skeleton = build_skeleton(config, setup, CPU)
    with fresh_process(), Guard() as guard, recorder, recorder.resizes(), gloo_unseen(recorder):
        if setup.strategy is Strategy.FSDP1:
            let_fsdp1_run(guard, device_for(recorder))
        model = load_model(skeleton, config, setup, CPU, recorder.enter)
        if setup.strategy not in SHARDED:
            recorder.watch(model)
        recorder.enter(Phase.PREPARE)
        model = distribute(model, setup, CPU)
        if setup.strategy in SHARDED:
            recorder.watch(model)
        with recorder.module_calls():
            train(model, config, setup, CPU, recorder.enter, micro_batches=2)
        return training_events(recorder.finish())


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    for name in CASES:
        try:
            found = one(name)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        Path(folder, f"{name}.{dist.get_rank()}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
