"""The footprints that ship: which setups they are for, and how their files are made."""

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitplan.configs.resolve import ModelConfig
from fitplan.cuda import AMPERE
from fitplan.errors import FitplanError, InputError, LibraryMoved, ModelNotSupported, SetupConflict
from fitplan.footprint.footprint import Footprint, OptimizerFootprint
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.recipe import SOME_DROPOUT, kernels_of
from fitplan.footprint.size import NoFormula, Shape
from fitplan.footprint.store import SHIPPED_NAMES, ShippedFile, read_if_of
from fitplan.memory import estimate_trace
from fitplan.setup import (
    Attention,
    Dtype,
    Method,
    MixedPrecision,
    Optim,
    Padding,
    Stack,
    Strategy,
    TrainingSetup,
    with_defaults,
)
from fitplan.stacks import as_run_by
from fitplan.surveyor import gpus_of, optimizer_of, shaped, survey_of
from fitplan.tracer import installed_versions, trace_job
from fitplan.whole import write_whole

CHECKED = Shape(3, 200, 16, 1)
CHECKED_GPUS = 8
"""A shape that no formula is made from."""


RANKS = (8, 16, 32, 64)
"""Ranks for which an optimizer ships that treats small parameters in another way than large ones."""


QUERY_AND_VALUE = ("q_proj", "v_proj")
"""The modules that the LoRA paper adapts (Hu et al. 2021, section 4.2), as most models name them."""


def common_setups(capability: tuple[int, int]) -> Iterator[TrainingSetup]:
    """The setups people use on such a GPU, without shape and optimizer."""

    def setup(method: Method, **settings: Any) -> TrainingSetup:
        usual = with_defaults(settings, method=method, positions=None, capability=capability)
        return TrainingSetup(**{**usual, "method": method})

    for on in (True, False):
        for method in (Method.FULL, Method.LORA, Method.QLORA):
            yield setup(method, gradient_checkpointing=on)
    yield setup(Method.QLORA, kbit_prepare=False)
    if capability < AMPERE:
        return
    for method in Method:
        yield setup(method, attn=Attention.FLASH_ATTENTION_2)
    for method in (Method.LORA, Method.QLORA):
        yield setup(method, lora_dropout=SOME_DROPOUT)
    yield setup(Method.FULL, dtype=Dtype.FLOAT32)
    yield setup(Method.FULL, mixed_precision=MixedPrecision.NO)
    yield setup(Method.FULL, use_liger_kernel=True)
    yield setup(Method.LORA, use_liger_kernel=True)
    yield setup(Method.QLORA, use_liger_kernel=True, kbit_prepare=False)
    yield setup(Method.QLORA, use_liger_kernel=True)
    for method in (Method.LORA, Method.QLORA):
        yield setup(method, target_modules=QUERY_AND_VALUE)
    for method in Method:
        yield setup(method, stack=Stack.TRL)
        for padding in (Padding.NONE, Padding.PACKED):
            yield setup(method, stack=Stack.TRL, dtype=Dtype.BFLOAT16, padding=padding, batch_size=1)
    for strategy in (Strategy.FSDP2, Strategy.DDP):
        for method in Method:
            yield setup(method, gpus=2, strategy=strategy)
    sharded = {"quant_storage": Dtype.BFLOAT16, "kbit_prepare": False}
    yield setup(Method.QLORA, gpus=2, strategy=Strategy.FSDP2, **sharded)
    for method in (Method.LORA, Method.QLORA):  # what others take where nobody says, as TRL runs it
        yield TrainingSetup(method=method, **as_run_by(Stack.TRL, method))


def ship(
    model: ModelConfig,
    folder: Path,
    progress: Callable[[str], None],
    capability: tuple[int, int] = AMPERE,
    *,
    anew: bool = False,
    missing: bool = False,
) -> list[str]:
    """Make the file of one model in ``folder``, for GPUs that run the kernels of ``capability``.

    What the file holds already is kept if it was made from the same step; what it lacks is added.

    Args:
        model: whose footprints are made.
        folder: with a folder for each model.
        progress: is told what is being done.
        capability: of the GPUs.
        anew: make everything again, as after a change of what fitplan derives from a trace.
        missing: keep what the model's file holds whatever step it was made from, and add what it lacks.

    Returns:
        What was left out, and why.

    Raises:
        InputError: the file cannot be written.
        ModelNotSupported: no setup of the model has a formula.
        LibraryMoved: a library is not as this version of fitplan knows it.

    """
    kernels = kernels_of(capability)
    path = folder / model.name / SHIPPED_NAMES[kernels]
    step = _step_digest(model, capability, progress)
    own = read_if_of(path, None) if missing else None
    others = [] if anew or own else sorted(folder.glob(f"*/{path.name}"))
    files = [own, *(read_if_of(other, step) for other in others)]
    made = max(
        (file for file in files if file is not None),
        key=lambda file: len(file.footprints),
        default=ShippedFile({}, kernels, step, [], {}),
    )
    known = [recipe for recipe, _, _ in made.footprints]
    left_out: list[str] = []
    for setup in common_setups(capability):
        job = TrainingJob(model=model, setup=setup, capability=capability)
        if job.recipe in known:
            continue
        try:
            footprint, optimizer = _checked(job, progress)
        except LibraryMoved:
            raise  # without it less would ship, and nobody would notice
        except (NoFormula, FitplanError) as error:
            left_out.append(f"{_told(setup)}: {error}")
            continue
        ranks = footprint.pieces[0].region.lora_r
        added = (ranks, optimizer)
        key = next((key for key, others in made.optimizers.items() if others[setup.optim] == [added]), "")
        if not key:
            key = _told(setup)
            made.optimizers[key] = {setup.optim: [added]}
            for optim in Optim:
                if optim is not setup.optim:
                    with contextlib.suppress(SetupConflict):  # sharded weights are not for all of them
                        with_other = job.with_setup(setup.with_(optim=optim))
                        made.optimizers[key][optim] = _optimizer(with_other, ranks, progress)
        made.footprints.append((job.recipe, key, footprint))
        made.versions |= installed_versions(setup)
        _write(path, made)  # as far as it is now: tracing takes minutes, and may be interrupted
    if not made.footprints:
        raise ModelNotSupported(f"no setup of {model.name} has a formula: {'; '.join(left_out)}")
    _write(path, made)
    return left_out


def _write(path: Path, file: ShippedFile) -> None:
    try:
        write_whole(path, file.to_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another --out") from error


def _step_digest(model: ModelConfig, capability: tuple[int, int], progress: Callable[[str], None]) -> str:
    """What the model's step allocates, as one number; models that agree in it share their footprints.

    They differ in what no allocation shows: the base of their positions, the tokens that begin and end a text.
    """
    digest = hashlib.sha256(json.dumps(installed_versions()).encode())
    for method in (Method.FULL, Method.QLORA):
        setup = TrainingSetup(method=method, batch_size=CHECKED.batch_size, seq_len=CHECKED.seq_len)
        for allocation in trace_job(model, setup, capability, progress).trace.allocations:
            digest.update(f"{allocation.size} {allocation.op} {allocation.owner}".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _imports_out_of_sight() -> Iterator[None]:
    """A trace begins by collecting garbage; what is there already, all of torch, is not looked through each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_imports_out_of_sight()
def _optimizer(
    job: TrainingJob, ranks: tuple[int, int], progress: Callable[[str], None]
) -> list[tuple[tuple[int, int], OptimizerFootprint]]:
    """What an optimizer adds: for all ranks, else for those that people use."""
    with contextlib.suppress(NoFormula):
        return [(ranks, optimizer_of(job, ranks, progress))]
    found = []
    for rank in RANKS:
        with contextlib.suppress(NoFormula):  # then a job with this rank is traced
            found.append(((rank, rank), optimizer_of(job, (rank, rank), progress)))
    return found


@_imports_out_of_sight()
def _checked(job: TrainingJob, progress: Callable[[str], None]) -> tuple[Footprint, OptimizerFootprint]:
    """The footprint of one setup, after it has given a trace that it was not made from."""
    footprint, optimizer = survey_of(job, progress).footprint(installed_versions())
    gpus = min(CHECKED_GPUS, gpus_of(job)[-1])
    shape = replace(CHECKED, lora_r=job.shape.lora_r, gpus=gpus)
    piece = footprint.piece(shape)
    if piece is not None:
        traced = estimate_trace(trace_job(job.model, shaped(job.setup, shape), job.capability, progress).trace)
        if not piece.with_optimizer(optimizer).estimate(shape, job.capability).agrees_with(traced):
            raise NoFormula(f"the formula does not give the trace of {shape}")
    return footprint, optimizer


def _told(setup: TrainingSetup) -> str:
    """The setup by what is not its default."""
    plain = TrainingSetup(method=setup.method).to_dict()
    changes = [f"{name} {value}" for name, value in setup.to_dict().items() if value != plain[name]]
    return ", ".join([str(setup.method), *changes])
