"""The synthetic batch: what the data collator of a real job would deliver."""

import torch
from transformers import PretrainedConfig

from fitplan.setup import END_TO_END, PAIRED, Padding, Task, TrainingSetup
from fitplan.step.architecture import text_of

IGNORED_LABEL = -100


def make_batch(config: PretrainedConfig, task: Task, setup: TrainingSetup, device: str) -> dict[str, torch.Tensor]:
    """One micro-batch on ``device``, int64 throughout.

    ``input_ids`` and ``attention_mask`` are [batch, seq_len]; ``labels`` likewise, with padding and all but the last
    ``completion_len`` of a row ignored, or [batch] for a classifier. With ``padding`` longest the first row is full and
    the others are one token shorter than the row before (at least one token stays); with max_length the first row is
    one short as well. With free and packed all is one row, [1, batch * seq_len]; ``position_ids`` begin anew with each
    text, and there is no mask.
    """
    config = text_of(config)
    pad = getattr(config, "pad_token_id", None)
    batch, length = setup.batch_size * (2 if setup.objective in PAIRED else 1), setup.seq_len
    mask = torch.ones(batch, length, dtype=torch.int64)
    if setup.padding in (Padding.LONGEST, Padding.MAX_LENGTH):
        first = 1 if setup.padding is Padding.MAX_LENGTH else 0
        for row in range(batch):
            mask[row, max(1, length - row - first) :] = 0
    ids = torch.arange(batch * length, dtype=torch.int64).view(batch, length) % config.vocab_size
    if pad is not None:
        ids = torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)
        ids = torch.where(mask.bool(), ids, torch.full_like(ids, pad))
    if task is Task.SEQUENCE_CLASSIFICATION:
        labels = torch.arange(batch, dtype=torch.int64) % config.num_labels
    else:
        labels = torch.where(mask.bool(), ids, torch.full_like(ids, IGNORED_LABEL))
        if setup.completion_len is not None:
            labels[:, : length - setup.completion_len] = IGNORED_LABEL
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if setup.padding in END_TO_END:
        inputs = _end_to_end(ids, labels, setup)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


TEXTS_IN_A_ROW = 2
"""Of packed rows: how many there are decides nothing, that there is more than one makes a mask."""


def _end_to_end(ids: torch.Tensor, labels: torch.Tensor, setup: TrainingSetup) -> dict[str, torch.Tensor]:
    """All rows in one, as trl's collator lays them out (``DataCollatorForLanguageModeling`` with ``padding_free``).

    It also says where texts begin (``cu_seq_lens_q``, ``seq_idx``), which only kernels for such rows ask for, and
    leaves the first token of each unscored; how many there are is the data's to say, and here all tokens are scored.
    """
    length = setup.seq_len
    texts = TEXTS_IN_A_ROW if setup.padding is Padding.PACKED and length > 1 else 1
    positions = torch.cat([torch.arange(len(text)) for text in torch.arange(length).tensor_split(texts)])
    positions = positions.repeat(setup.batch_size)[None]
    return {"input_ids": ids.reshape(1, -1), "labels": labels.reshape(1, -1), "position_ids": positions}
