"""Why did it end? What PyTorch, the driver and the system say when memory runs out, read and put in order.

    CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.66 GiB is free.
    Including non-PyTorch memory, this process has 20.81 GiB memory in use. Of the allocated memory 12.09 GiB is
    allocated by PyTorch, and 4.84 GiB is reserved by PyTorch but unallocated.

says that 3.00 GiB were refused although 1.66 GiB were free and 4.84 GiB lay in the cache: in pieces, none of which was
large enough. That is fragmentation, and expandable segments mend it. Had the 4.84 GiB been 0.2, it would have been
too much; had another process held 10 GiB, that would come first.

Source of the messages: pytorch ``c10/cuda/CUDACachingAllocator.cpp``, ``malloc`` (where it reports out of memory), and
the issues that quote them since 2018; ``torch/cuda/memory.py``, ``_dump_snapshot``, for snapshots.
"""

import pickle
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fitplan.errors import InputError
from fitplan.limits import limited
from fitplan.units import gib, parse_size

SCHEMA = "fitplan.autopsy/1"

MOST_TEXT = 256 * 2**20
MOST_SNAPSHOT = 2**30
"""Bytes; larger files are not read."""

MOST_HOLDERS = 10


class Cause(StrEnum):
    """What it ended of; the first that is true."""

    HOST_MEMORY = "host_memory"
    ANOTHER_PROCESS = "another_process"
    FRAGMENTATION = "fragmentation"
    TOO_MUCH = "too_much"
    DRIVER = "driver"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process on the GPU: its number, and the bytes that it holds there."""

    pid: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What held memory, by the line of the program that asked for it."""

    where: str
    bytes: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Autopsy:
    """What is known of how it ended; ``None`` where nothing says.

    Attributes:
        cause: of what.
        source: ``"message"``, ``"snapshot"``, ``"nvidia-smi"`` or ``"system"``.
        moment: what the program was doing, in the words of the moments of ``check`` as far as the traceback tells.
        gpu: its number.
        requested_bytes: what was refused.
        total_bytes: of the GPU.
        free_bytes: on it, by the driver.
        allocated_bytes: handed out by PyTorch.
        unallocated_bytes: reserved by PyTorch, and in no use.
        process_bytes: what the driver says of this process.
        others: other processes on the GPU, largest first.
        holders: what held most, as far as a snapshot tells.
        largest_hole_bytes: the largest piece of the cache, of a snapshot.

    """

    cause: Cause
    source: str
    moment: str | None = None
    gpu: int | None = None
    requested_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allocated_bytes: int | None = None
    unallocated_bytes: int | None = None
    process_bytes: int | None = None
    others: tuple[Process, ...] = ()
    holders: tuple[Holder, ...] = ()
    largest_hole_bytes: int | None = None

    @property
    def outside_bytes(self) -> int | None:
        """What this process holds beside PyTorch's allocator: the CUDA context, NCCL, other libraries."""
        if self.process_bytes is None or self.allocated_bytes is None or self.unallocated_bytes is None:
            return None
        return self.process_bytes - self.allocated_bytes - self.unallocated_bytes

    @property
    def why(self) -> str:
        """The cause in a sentence."""
        asked = "an allocation" if self.requested_bytes is None else f"an allocation of {gib(self.requested_bytes)}"
        match self.cause:
            case Cause.ANOTHER_PROCESS:
                most = self.others[0]
                more = f" and {len(self.others) - 1} more" if len(self.others) > 1 else ""
                held = gib(sum(one.bytes for one in self.others))
                return f"another process holds the GPU: {held} (process {most.pid}{more}); without it there was room"
            case Cause.FRAGMENTATION:
                assert self.unallocated_bytes is not None, "it is what fragmentation is told by"
                return f"{asked} was refused while {gib(self.unallocated_bytes)} lay reserved and unused, in pieces"
            case Cause.HOST_MEMORY:
                return "the machine ran out of memory (RAM), not the GPU: the system ended the process or refused it"
            case Cause.DRIVER:
                return "the driver had no memory left, and says no more than that"
            case _:
                held = "" if self.allocated_bytes is None else f" beside {gib(self.allocated_bytes)} in use"
                return f"{asked} did not fit{held}: the job takes more than there was"

    @property
    def advice(self) -> str:
        """What to do first."""
        match self.cause:
            case Cause.ANOTHER_PROCESS:
                return "end the other process, or choose another GPU (CUDA_VISIBLE_DEVICES); nvidia-smi lists them"
            case Cause.FRAGMENTATION:
                return "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; if it ends again, it takes too much"
            case Cause.HOST_MEMORY:
                return (
                    "give the job more RAM, fewer workers, no offloading to the host; load in the dtype that is trained"
                )
            case Cause.DRIVER:
                return "look with nvidia-smi for what else is on the GPU; fitplan gpus lists it"
            case _:
                return "fitplan advise says what to change: name the job with --model and its settings"

    def to_dict(self) -> dict[str, Any]:
        """The ``fitplan.autopsy/1`` document; sizes are bytes."""
        return {
            "schema": SCHEMA,
            "cause": self.cause,
            "why": self.why,
            "advice": self.advice,
            "source": self.source,
            "moment": self.moment,
            "gpu": self.gpu,
            "requested_bytes": self.requested_bytes,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "allocated_bytes": self.allocated_bytes,
            "unallocated_bytes": self.unallocated_bytes,
            "process_bytes": self.process_bytes,
            "outside_bytes": self.outside_bytes,
            "others": [{"pid": one.pid, "bytes": one.bytes} for one in self.others],
            "holders": [{"where": one.where, "bytes": one.bytes, "blocks": one.blocks} for one in self.holders],
            "largest_hole_bytes": self.largest_hole_bytes,
        }


def autopsy(file: str | Path) -> Autopsy:
    """What a log, a memory snapshot or the output of ``nvidia-smi`` says of how a run ended.

    Nothing of the file is run: a snapshot is read by an unpickler that admits no names.

    Raises:
        InputError: the file cannot be read, or says nothing of memory.

    """
    path = Path(file)
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file; give a log, a memory snapshot or the output of nvidia-smi")
        size = path.stat().st_size
        with path.open("rb") as opened:
            is_pickle = opened.read(2)[:1] == b"\x80"
        if size > (MOST_SNAPSHOT if is_pickle else MOST_TEXT):
            raise InputError(f"{path} has {gib(size)}, more than is read; give the part about memory")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    found = _of_snapshot(path, content) if is_pickle else read_log(content.decode("utf-8", errors="replace"))
    if found is None:
        raise InputError(f"{path} says nothing of memory: no message of PyTorch, the driver or the system is in it")
    return found


# --- logs -------------------------------------------------------------------------------------------------------------

_SIZE = r"([\d.]+) ?(bytes|[KMGT]iB)"
_NOW = re.compile(
    rf"Tried to allocate {_SIZE}\.\s+GPU (?:(\d+) )?has a total capac(?:i)?ty of {_SIZE}\s+of which {_SIZE} is free",
)
_BEFORE = re.compile(
    rf"Tried to allocate {_SIZE} \(GPU (\d+); {_SIZE} total capacity; {_SIZE} already allocated; {_SIZE} free; "
    rf"{_SIZE} (cached|reserved)",
)
_OWN = re.compile(rf"this process has {_SIZE} memory in use")
_OTHER = re.compile(rf"Process (\d+) has {_SIZE} memory in use")
_ALLOCATED = re.compile(rf"Of the allocated memory {_SIZE} is allocated by PyTorch")
_UNALLOCATED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_DRIVER = re.compile(r"CUDA (?:driver )?error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation")
_HOST = re.compile(
    r"DefaultCPUAllocator: (?:not enough memory|can't allocate memory)|exit(?:ed with exit )?code:? ?-9\b|"
    r"Signal 9 \(SIGKILL\)|signal 9|[Oo]ut of memory: Killed process|oom-kill|^Killed$|OOMKilled|"
    r"std::bad_alloc|^MemoryError|Unable to allocate [\d.]+ [KMGT]iB for an array",
    re.MULTILINE,
)
_SMI = re.compile(r"^\|\s+(\d+)\s+(?:\S+\s+\S+\s+)?(\d+)\s+\S*[CG]\S*\s+.*?(\d+)MiB\s*\|\s*$", re.MULTILINE)
_SMI_MEMORY = re.compile(r"(\d+)MiB\s*/\s*(\d+)MiB")

_MOMENTS: tuple[tuple[str, str], ...] = (
    (r"in (?:evaluate|evaluation_loop|prediction_step|prediction_loop)\b", "evaluation"),
    (r"in (?:generate|_sample|_generate)\b", "generation"),
    (r"in (?:merge_and_unload|save_pretrained|_save_checkpoint|save_model)\b", "saving"),
    (
        r"in (?:from_pretrained|_load_pretrained_model|load_state_dict|_load_state_dict_into_meta_model)\b",
        "loading the model",
    ),
    (r"in prepare_model_for_kbit_training\b", "k-bit preparation"),
    (r"in clip_grad_norm_\b|in _clip_grad_norm\b", "gradient clipping"),
    (r"torch/optim/|bitsandbytes/optim/|in optimizer_step\b", "optimizer step"),
    (
        r"in (?:recompute_fn|unpack_hook|_run_fn_with_dynamo_disabled)\b|utils/checkpoint\.py.*in backward\b",
        "recompute",
    ),
    (r"torch/autograd/(?:__init__|graph)\.py|in backward\b", "backward"),
    (r"in (?:cross_entropy|fixed_cross_entropy|ForCausalLMLoss|compute_loss_func)\b", "forward of the loss"),
    (r"in (?:forward|_call_impl)\b", "forward"),
)
"""Lines of a traceback, and what the program does there: of several the first, whatever lies deeper.

Names of transformers' ``trainer.py``, ``modeling_utils.py`` and ``loss/loss_utils.py``, peft's ``utils/other.py``, and
PyTorch's ``autograd`` and ``utils/checkpoint.py``.
"""


def read_log(text: str) -> Autopsy | None:
    """What the last message about memory in a log says; ``None`` where there is none."""
    found = _last(_NOW, text) or _last(_BEFORE, text)
    if found is not None:
        read = _now if found.re is _NOW else _before
        return read(found, text)
    if "CUDA out of memory" in text or _DRIVER.search(text):
        return Autopsy(cause=Cause.DRIVER, source="message", moment=moment_of(text))
    if (host := _last(_HOST, text)) is not None:
        return Autopsy(cause=Cause.HOST_MEMORY, source="system", moment=moment_of(text[: host.start()]))
    return _of_smi(text)


def _now(found: re.Match[str], text: str) -> Autopsy:
    """As PyTorch says it since 2.1."""
    rest = text[found.start() : found.end() + 2000]
    allocated, unallocated = (_first(pattern, rest) for pattern in (_ALLOCATED, _UNALLOCATED))
    own = _first(_OWN, rest)
    others = [Process(pid=int(one[1]), bytes=_bytes(one, 2)) for one in _OTHER.finditer(rest)]
    if own is None and allocated is not None:
        # In a container PyTorch does not know itself by the number that the driver has for it.
        itself = [one for one in others if one.bytes >= allocated + (unallocated or 0)]
        if itself:
            this = min(itself, key=lambda one: one.bytes)
            own, others = this.bytes, [one for one in others if one is not this]
    return _judged(
        moment=moment_of(text[: found.start()]),
        gpu=None if found[3] is None else int(found[3]),
        requested_bytes=_bytes(found, 1),
        total_bytes=_bytes(found, 4),
        free_bytes=_bytes(found, 6),
        allocated_bytes=allocated,
        unallocated_bytes=unallocated,
        process_bytes=own,
        others=tuple(sorted(others, key=lambda one: -one.bytes)),
    )


def _before(found: re.Match[str], text: str) -> Autopsy:
    """As PyTorch said it up to 2.0; before 1.5 what is cached leaves out what is allocated."""
    allocated, last = _bytes(found, 6), _bytes(found, 10)
    return _judged(
        moment=moment_of(text[: found.start()]),
        gpu=int(found[3]),
        requested_bytes=_bytes(found, 1),
        total_bytes=_bytes(found, 4),
        free_bytes=_bytes(found, 8),
        allocated_bytes=allocated,
        unallocated_bytes=last if found[12] == "cached" else last - allocated,
    )


def _judged(**known: Any) -> Autopsy:
    requested, free = known["requested_bytes"], known["free_bytes"]
    unallocated = known["unallocated_bytes"]
    if sum(one.bytes for one in known.get("others", ())) + free >= requested and known.get("others"):
        cause = Cause.ANOTHER_PROCESS
    elif unallocated is not None and unallocated + free >= requested:
        cause = Cause.FRAGMENTATION
    else:
        cause = Cause.TOO_MUCH
    return Autopsy(cause=cause, source="message", **known)


def _of_smi(text: str) -> Autopsy | None:
    """The processes in the table that ``nvidia-smi`` prints."""
    found = [Process(pid=int(one[2]), bytes=int(one[3]) * 2**20) for one in _SMI.finditer(text)]
    memory = _SMI_MEMORY.search(text)
    if not found or memory is None:
        return None
    used, total = (int(one) * 2**20 for one in memory.groups())
    return Autopsy(
        cause=Cause.ANOTHER_PROCESS,
        source="nvidia-smi",
        total_bytes=total,
        free_bytes=total - used,
        others=tuple(sorted(found, key=lambda one: -one.bytes)),
    )


def moment_of(text: str) -> str | None:
    """What the program was doing, by the last traceback."""
    start = text.rfind("Traceback (most recent call last)")
    if start < 0:
        return None
    return next((name for pattern, name in _MOMENTS if re.search(pattern, text[start:])), None)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return _bytes(found, 1) if found else None


def _bytes(found: re.Match[str], group: int) -> int:
    """The bytes of a size that is written as number and unit, in two groups; PyTorch writes two digits."""
    number, unit = found[group], found[group + 1]
    return int(float(number)) if unit == "bytes" or not float(number) else parse_size(f"{number}{unit}")


# --- snapshots --------------------------------------------------------------------------------------------------------


class _Plain(pickle.Unpickler):
    """Reads numbers, text, lists and mappings; a pickle that names anything is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"it names {module}.{name}, which no snapshot of memory does; nothing of it was run")

    def persistent_load(self, _pid: Any) -> Any:
        raise InputError("it refers to something outside of it, which no snapshot of memory does")


def _of_snapshot(path: Path, content: bytes) -> Autopsy:
    import io

    try:
        with limited(f"reading {path}"):
            document = _Plain(io.BytesIO(content)).load()
        return _snapshot(document)
    except InputError as error:
        raise InputError(f"{path} is no snapshot of memory: {error}") from error
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise InputError(f"{path} is no snapshot of torch.cuda.memory ({type(error).__name__})") from error


def _snapshot(document: dict[str, Any]) -> Autopsy:
    """The state at the end, and the last refusal if one was recorded."""
    segments = document["segments"]
    held: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    holes = [0]
    for block in (block for segment in segments for block in segment["blocks"]):
        size = int(block["size"])
        if block["state"].startswith("active"):
            where = _where(block.get("frames") or ())
            held[where] += size
            blocks[where] += 1
        else:
            holes.append(size)
    refusals = [event for trace in document.get("device_traces", ()) for event in trace if event["action"] == "oom"]
    requested = int(refusals[-1]["size"]) if refusals else None
    free = int(refusals[-1].get("device_free", 0)) if refusals else None
    allocated, reserved = sum(held.values()), sum(int(segment["total_size"]) for segment in segments)
    in_pieces = requested is not None and reserved - allocated >= requested > max(holes)
    return Autopsy(
        cause=Cause.FRAGMENTATION if in_pieces else Cause.TOO_MUCH,
        source="snapshot",
        gpu=int(segments[0]["device"]) if segments else None,
        requested_bytes=requested,
        free_bytes=free,
        allocated_bytes=allocated,
        unallocated_bytes=reserved - allocated,
        holders=tuple(
            Holder(where=where, bytes=size, blocks=blocks[where]) for where, size in held.most_common(MOST_HOLDERS)
        ),
        largest_hole_bytes=max(holes),
    )


_INNER = ("/torch/", "<string>", "??")


def _where(frames: Any) -> str:
    """The innermost line of Python that is not PyTorch's own: ``"forward (modeling_llama.py:181)"``."""
    lines = [frame for frame in frames if str(frame["filename"]).endswith(".py")]
    own = _first_that(lines, lambda frame: not any(part in frame["filename"] for part in _INNER))
    if own is None:
        return "not recorded"
    return f"{own['name']} ({Path(own['filename']).name}:{own['line']})"


def _first_that(lines: list[Any], does: Callable[[Any], bool]) -> Any:
    found: Iterator[Any] = (line for line in lines if does(line))
    return next(found, lines[0] if lines else None)
