"""What files of several tools say with the same words."""

from collections.abc import Mapping
from typing import Any

from fitplan.readers.reading import Keys, whole
from fitplan.setup import SETTINGS, Attention, Optim

ONE_GPU = "the answer is for one GPU that holds everything"
"""Of what is shared between several."""


def attention_named(keys: Keys, key: str) -> None:
    """An implementation of attention by its name in transformers."""
    named = keys.get(key)
    if named is None:
        return
    if str(named) in set(Attention):
        keys.put(key, "attn", str(named))
    elif "flash" in str(named):
        keys.put(key, "attn", Attention.FLASH_ATTENTION_2)
        keys.left_out.append(f"{key} {named}: it is answered as flash_attention_2")
    else:
        keys.know(key, "sdpa")
        keys.left_out.append(f"{key} {named}: it is answered as sdpa")


def evaluation(keys: Keys, key: str, rows: int) -> None:
    """There is evaluation, in batches that a key names, or else of ``rows``."""
    if keys.get(key) is not None:
        keys.put(key, "eval_batch_size", whole(keys.get(key)))
    else:
        keys.settings["eval_batch_size"] = rows


def optimizer(keys: Keys, key: str, spellings: Mapping[str, str] | None = None) -> None:
    """An optimizer by its name in transformers."""
    named: Any = keys.get(key)
    if named is None:
        return
    text = str(named).removeprefix("OptimizerNames.").lower()
    text = (spellings or {}).get(text, SETTINGS["optim"].spellings.get(text, text))
    if text in set(Optim):
        keys.put(key, "optim", text)
    else:
        keys.know(key, "adamw_torch_fused")
        keys.left_out.append(f"{key} {named}: its states; adamw_torch_fused is taken")
