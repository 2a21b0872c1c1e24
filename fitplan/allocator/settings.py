"""The settings of the caching allocator, as ``PYTORCH_CUDA_ALLOC_CONF`` spells them."""

import re
from dataclasses import dataclass

from fitplan.cuda import LARGE_SEGMENT
from fitplan.errors import InputError
from fitplan.units import MIB

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where the settings stand; the newer name, which torch knows since 2.9, counts first (pytorch
``c10/core/AllocatorConfig.cpp``)."""

_WITHOUT_EFFECT = frozenset({
    "graph_capture_record_stream_reuse", "pinned_free_catch_all", "pinned_max_cached_size_mb",
    "pinned_max_round_threshold_mb", "pinned_num_register_threads", "pinned_reserve_segment_size_mb",
    "pinned_use_background_threads", "pinned_use_cuda_host_register", "release_lock_on_cudamalloc",
})  # fmt: skip
"""What PyTorch knows and what moves no byte of the GPU."""

_NOT_MODELLED = frozenset({
    "backend", "large_segment_size_mb", "max_non_split_rounding_mb", "per_process_memory_fraction",
    "roundup_power2_divisions", "throw_on_cudamalloc_oom",
})  # fmt: skip
"""What PyTorch knows, what does move bytes, and what the model leaves out."""


_COMMAS = r",(?![^\[]*\])"
"""Between options, not inside the lists of their values."""


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """The settings that change what is reserved; PyTorch's defaults.

    Attributes:
        expandable_segments: grow one segment page by page instead of asking for a new one each time.
        max_split_size_bytes: cached blocks of this size or more are never split; ``None`` is no limit.
        garbage_collection_threshold: the share of the memory limit above which idle segments are given back before a
            new one is asked for; ``None`` is never.

    """

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    garbage_collection_threshold: float | None = None

    def __post_init__(self) -> None:
        split, threshold = self.max_split_size_bytes, self.garbage_collection_threshold
        if split is not None and split < LARGE_SEGMENT:
            raise InputError(f"max_split_size must be at least {LARGE_SEGMENT // MIB} MiB, not {split / MIB:g} MiB")
        if threshold is not None and not 0 < threshold < 1:
            raise InputError(f"garbage_collection_threshold must lie between 0 and 1, not at {threshold:g}")

    @classmethod
    def parse(cls, text: str) -> "AllocatorSettings":
        """The settings in ``"expandable_segments:True,max_split_size_mb:128"``.

        Source of the syntax: pytorch ``c10/core/AllocatorConfig.h`` (``ConfigTokenizer``) and ``.cpp`` (``parseArgs``).

        Raises:
            InputError: an option is unknown, not modelled, or has a value that PyTorch refuses too.

        """
        expandable, split, threshold = False, None, None
        for option in re.split(_COMMAS, re.sub(r"\s", "", text)):
            key, _, value = option.partition(":")
            if option in ("", "backend:native") or key in _WITHOUT_EFFECT:
                continue
            if key == "expandable_segments":
                expandable = _boolean(key, value)
            elif key == "max_split_size_mb":
                split = round(_number(key, value, r"\d+")) * MIB
            elif key == "garbage_collection_threshold":
                threshold = _number(key, value, r"\d*\.?\d+")
            elif key in _NOT_MODELLED:
                raise InputError(f"the allocator option {key} is not modelled")
            else:
                raise InputError(f"{key!r} is no option of PyTorch's CUDA allocator")
        return cls(expandable_segments=expandable, max_split_size_bytes=split, garbage_collection_threshold=threshold)


def from_environment(text: str) -> tuple[AllocatorSettings, tuple[str, ...]]:
    """The settings that an answer minds of those that the environment gives, and the options that it leaves out.

    A formula is of replays with and without expandable segments; no other option is in it. PyTorch's ``backend``
    ``cudaMallocAsync`` hands all of it to the driver, so that none of them counts.
    """
    options = [option for option in re.split(_COMMAS, re.sub(r"\s", "", text)) if option]
    left_out = tuple(option for option in options if _is_left_out(option))
    if any(option.startswith("backend:") for option in left_out):
        return AllocatorSettings(), left_out
    return AllocatorSettings.parse(",".join(option for option in options if option not in left_out)), left_out


def _is_left_out(option: str) -> bool:
    try:
        return AllocatorSettings.parse(option) not in (PLAIN, EXPANDABLE)
    except InputError:
        return True


PLAIN = AllocatorSettings()
EXPANDABLE = AllocatorSettings(expandable_segments=True)


def _boolean(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise InputError(f"the allocator option {key} takes True or False, not {value!r}")
    return value == "True"


def _number(key: str, value: str, pattern: str) -> float:
    if not re.fullmatch(pattern, value):
        raise InputError(f"the allocator option {key} takes a number, not {value!r}")
    return float(value)
