"""Footprints as JSON, and back."""

from typing import Any

from fitplan.footprint.footprint import (
    CATEGORIES,
    Block,
    Footprint,
    GroupFormula,
    Live,
    OptimizerFootprint,
    Piece,
    Region,
    Summit,
)
from fitplan.footprint.overhead import OverheadSample
from fitplan.footprint.size import Numbers, Size
from fitplan.memory import AllocatorOverhead
from fitplan.phase import Phase
from fitplan.trace.events import Category

FORMAT = 2

_PLACES = {str(category): place for place, category in enumerate(CATEGORIES)}
_PHASES = {str(phase): phase for phase in Phase}


def footprint_to_dict(footprint: Footprint) -> dict[str, Any]:
    """The JSON of a footprint; nothing in it is rounded."""
    return {
        "attention": footprint.attention,
        "task": footprint.task,
        "versions": footprint.versions,
        "pieces": [_piece(piece) for piece in footprint.pieces],
    }


def footprint_from_dict(document: dict[str, Any]) -> Footprint:
    """The inverse of :func:`footprint_to_dict`.

    Raises:
        KeyError, ValueError, TypeError: the document is no footprint.

    """
    return Footprint(
        tuple(_piece_from(piece) for piece in document["pieces"]),
        document["attention"],
        document["task"],
        dict(document["versions"]),
    )


def optimizer_to_dict(optimizer: OptimizerFootprint) -> dict[str, Any]:
    """The JSON of what an optimizer adds."""
    return {
        "blocks": [_block(block) for block in optimizer.blocks],
        "states": _live(optimizer.states),
        "summits": [_summit(summit) for summit in optimizer.summits],
    }


def optimizer_from_dict(document: dict[str, Any]) -> OptimizerFootprint:
    """The inverse of :func:`optimizer_to_dict`."""
    return OptimizerFootprint(
        tuple(_block_from(*block) for block in document["blocks"]),
        _live_from(*document["states"]),
        tuple(_summit_from(*summit) for summit in document["summits"]),
    )


def _piece(piece: Piece) -> dict[str, Any]:
    region = piece.region
    return {
        "region": [
            region.batch_size,
            region.seq_len,
            region.seq_len_step,
            region.lora_r,
            region.tokens,
            region.gradient_accumulation_steps,
            *([region.gpus] if region.gpus != (1,) else []),
        ],
        "blocks": [_block(block) for block in piece.blocks],
        "kinds": piece.kinds,
        "entry": _live(piece.entry),
        "summits": [_summit(summit) for summit in piece.summits],
        "parameters": [
            [g.storage, g.why, g.trainable, g.adapter, str(g.parameters), str(g.bytes), g.example]
            for g in piece.parameters
        ],
        "overheads": [
            [o.batch_size, o.seq_len, *_added(o.plain), *_added(o.expandable), *_kept(o)] for o in piece.overheads
        ],
        **{name: number for name, number in vars(piece.numbers).items() if number},
    }


def _piece_from(document: dict[str, Any]) -> Piece:
    batch_size, seq_len, step, rank, tokens, accumulation, *gpus = document["region"]
    return Piece(
        region=Region(
            batch_size=tuple(batch_size),
            seq_len=tuple(seq_len),
            seq_len_step=step,
            lora_r=tuple(rank),
            tokens=tokens,
            gradient_accumulation_steps=tuple(accumulation),
            gpus=tuple(gpus[0]) if gpus else (1,),
        ),
        blocks=tuple(_block_from(*block) for block in document["blocks"]),
        summits=tuple(_summit_from(*summit) for summit in document["summits"]),
        kinds=tuple(document["kinds"]),
        entry=_live_from(*document["entry"]),
        parameters=tuple(
            GroupFormula(
                storage=storage,
                why=why,
                trainable=trainable,
                adapter=adapter,
                parameters=Size.parse(parameters),
                bytes=Size.parse(size),
                example=example,
            )
            for storage, why, trainable, adapter, parameters, size, example in document["parameters"]
        ),
        overheads=tuple(_overhead_from(*sample) for sample in document.get("overheads", ())),
        numbers=Numbers(**{name: document.get(name, 0) for name in Numbers.__dataclass_fields__}),
    )


def _added(overhead: AllocatorOverhead) -> tuple[int, int]:
    return overhead.unsplit_bytes, overhead.cached_bytes


def _kept(sample: OverheadSample) -> list[int | None]:
    """What cannot be given back, where that was replayed."""
    kept = [sample.plain.kept_bytes, sample.expandable.kept_bytes]
    return kept if kept != [None, None] else []


def _overhead_from(
    rows: int,
    length: int,
    unsplit: int,
    cached: int,
    expandable_unsplit: int,
    expandable_cached: int,
    kept: int | None = None,
    expandable_kept: int | None = None,
) -> OverheadSample:
    plain = AllocatorOverhead(unsplit, cached, kept_bytes=kept)
    expandable = AllocatorOverhead(expandable_unsplit, expandable_cached, kept_bytes=expandable_kept)
    return OverheadSample(rows, length, plain, expandable)


def _block(block: Block) -> list[Any]:
    return [str(block.category), str(block.size), int(block.per_extra_batch), block.what]


def _block_from(category: str, size: str, per_extra_batch: int, what: str) -> Block:
    return Block(Category(category), Size.parse(size), bool(per_extra_batch), what)


def _live(live: Live) -> list[Any]:
    """Constant bytes by category as far as there are any, large blocks, and block numbers and counts in turn."""
    constant = {str(category): n for category, n in zip(CATEGORIES, live.constant, strict=True) if n}
    return [constant, live.large, [n for pair in live.blocks for n in pair]]


def _live_from(constant: dict[str, int], large: int, flat: list[int]) -> Live:
    sizes = [0] * len(CATEGORIES)
    for category, size in constant.items():
        sizes[_PLACES[category]] = size
    return Live(tuple(sizes), large, tuple(zip(flat[::2], flat[1::2], strict=True)))


def _summit(summit: Summit) -> list[Any]:
    place = [str(summit.phase), summit.part, summit.name, summit.step, summit.micro_batch, int(summit.with_states)]
    return place + _live(summit.live)


def _summit_from(phase: str, part: str, name: str, step: int, micro_batch: int, with_states: int, *live: Any) -> Summit:
    return Summit(
        phase=_PHASES[phase],
        part=part,
        name=name,
        step=step,
        micro_batch=micro_batch,
        with_states=bool(with_states),
        live=_live_from(*live),
    )
