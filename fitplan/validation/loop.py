"""The run itself: the very step that is traced, with real tensors, or ``transformers.Trainer`` with the same model."""

import tempfile
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainerCallback, TrainingArguments

from fitplan.errors import InputError
from fitplan.phase import Phase
from fitplan.setup import MixedPrecision
from fitplan.step.architecture import load_config, task_of
from fitplan.step.batch import make_batch
from fitplan.step.distribute import distribute
from fitplan.step.job import Observer, Place
from fitplan.step.model import build_skeleton, load_model, load_reference
from fitplan.step.run import EVALUATED, train
from fitplan.validation.job import Job, Runner
from fitplan.validation.meter import Meter


def run(job: Job, place: Place, meter: Meter) -> None:
    """Load the model and train it for ``job.steps`` steps, under the eyes of ``meter``."""
    torch.manual_seed(0)
    config = load_config(job.model)
    skeleton = build_skeleton(config, job.setup, place)
    with meter.running():
        model = load_model(skeleton, config, job.setup, place, meter.enter)
        if job.weights is not None:
            _fill(model, job.weights)
        meter.watch(model)
        loop = with_trainer if job.runner is Runner.TRAINER else _with_step
        loop(job, model, config, place, meter.enter)
        meter.finish()


def _with_step(job: Job, model: nn.Module, config: PretrainedConfig, place: Place, observe: Observer) -> None:
    reference = load_reference(config, job.setup, place, observe)
    model = distribute(model, job.setup, place)
    train(model, config, job.setup, place, observe, steps=job.steps, reference=reference)


def with_trainer(job: Job, model: nn.Module, config: PretrainedConfig, place: Place, observe: Observer) -> None:
    """Train with ``transformers.Trainer``, on the batches of the step.

    It tells of the beginning of a step and of its optimizer only; backward counts as forward.
    """
    setup = job.setup

    class Marks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            observe(Phase.FORWARD)

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            observe(Phase.OPTIMIZER)

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            observe(Phase.ZERO_GRAD)

        def on_step_end(self, _arguments: Any, _state: Any, control: Any, **__: Any) -> None:
            if control.should_evaluate:
                observe(Phase.EVALUATION)

    def batch(rows: list[int]) -> dict[str, torch.Tensor]:
        return make_batch(config, task_of(config, setup), setup.with_(batch_size=len(rows)), "cpu")

    rows = setup.batch_size * setup.gradient_accumulation_steps * job.steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=place.device == "cpu",
            report_to=[],
            max_steps=job.steps,
            optim=str(setup.optim),
            bf16=setup.mixed_precision is MixedPrecision.BF16,
            fp16=setup.mixed_precision is MixedPrecision.FP16,
            per_device_train_batch_size=setup.batch_size,
            gradient_accumulation_steps=setup.gradient_accumulation_steps,
            gradient_checkpointing=setup.gradient_checkpointing,
            per_device_eval_batch_size=setup.eval_batch_size or 1,
            eval_strategy="no" if setup.eval_batch_size is None else "steps",
            eval_steps=job.steps,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        observe(Phase.PREPARE)
        Trainer(
            model=model,
            args=arguments,
            train_dataset=list(range(rows)),  # the collator makes the batch
            eval_dataset=list(range(EVALUATED * (setup.eval_batch_size or 1))),
            data_collator=batch,
            callbacks=[Marks()],
        ).train()


def _fill(model: nn.Module, folder: str) -> None:
    """Copy a checkpoint's tensors into parameters of the same name and shape; quantised ones keep random values.

    Memory does not depend on values: this is for who wants to see the loss of real weights.
    """
    from pathlib import Path

    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no .safetensors file; give the folder of a checkpoint")
    parameters = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters()}
    for file in files:
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                target = parameters.get(name)
                if target is not None and target.shape == torch.Size(tensors.get_slice(name).get_shape()):
                    target.copy_(tensors.get_tensor(name))
