"""The synthetic batch: what the data collator of a real job would deliver."""

import torch
from transformers import PretrainedConfig

from fitplan.setup import Padding, Task, TrainingSetup

IGNORED_LABEL = -100


def make_batch(config: PretrainedConfig, task: Task, setup: TrainingSetup, device: str) -> dict[str, torch.Tensor]:
    """One micro-batch on ``device``, int64 throughout.

    ``input_ids`` and ``attention_mask`` are [batch, seq_len]; ``labels`` likewise, with padding ignored, or [batch]
    for a classifier. With ``padding`` longest the first row is full and the others are one token shorter than the row
    before (at least one token stays); with max_length the first row is one short as well.
    """
    batch, length = setup.batch_size, setup.seq_len
    mask = torch.ones(batch, length, dtype=torch.int64)
    if setup.padding is not Padding.NONE:
        first = 1 if setup.padding is Padding.MAX_LENGTH else 0
        for row in range(batch):
            mask[row, max(1, length - row - first) :] = 0
    ids = torch.arange(batch * length, dtype=torch.int64).view(batch, length) % config.vocab_size
    if config.pad_token_id is not None:
        ids = torch.where(ids == config.pad_token_id, (ids + 1) % config.vocab_size, ids)
        ids = torch.where(mask.bool(), ids, torch.full_like(ids, config.pad_token_id))
    if task is Task.SEQUENCE_CLASSIFICATION:
        labels = torch.arange(batch, dtype=torch.int64) % config.num_labels
    else:
        labels = torch.where(mask.bool(), ids, torch.full_like(ids, IGNORED_LABEL))
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
