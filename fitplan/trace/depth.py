"""Identical layers repeat: trace a few, replicate the rest.

A transformer's layers ask for the same memory in the same order. So the training step is traced with a few layers,
and the stretch of events of a middle one is repeated until the depth is right. Nothing is taken on trust: the
stretches of two middle layers (or of two periods, where kinds of layers alternate) must be the same event by event,
and every release must find its birth; else :class:`NotPeriodic` tells the caller to trace every layer.

An example. Forward of three traced layers makes ``a0 b0 a1 b1 a2 b2``, each layer its output ``a`` and what it saves,
``b``; backward lets go ``~b2 ~a2 ~b1 ~a1 ~b0 ~a0``. Layer 1 is the pattern, as the first and the last may differ. For
six layers its stretch is repeated three times in forward (``a1 b1``, ``a1' b1'``, ...) and three times in backward,
where the copies are let go in the reverse order: what forward's third copy made, backward's first copy releases. What
a layer takes from its neighbour (``~a0`` in the stretch of layer 1, say) is shifted along with the copies.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fitplan.trace.events import Allocation, Layer, Moment, Trace


class NotPeriodic(Exception):
    """The layers of this trace do not repeat."""


@dataclass(frozen=True)
class Depth:
    """How far a stack was shortened.

    Attributes:
        traced: layers in the trace.
        full: layers in the model.
        period: number of layers after which kinds of layers repeat.
        head: layers at the beginning that are not taken as a pattern.

    """

    traced: int
    full: int
    period: int
    head: int

    @property
    def replicas(self) -> int:
        """How often the pattern is repeated beyond the trace."""
        return (self.full - self.traced) // self.period

    @property
    def pattern(self) -> range:
        """The layers that are repeated."""
        return range(self.head, self.head + self.period)


DEPTH_FIELDS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "decoder_layers", "encoder_layers")


def shorten(config: Any, more_edge: int = 0) -> tuple[Any, dict[str, Depth]]:
    """A copy of a transformers config with few layers, and what was cut by config field; ``{}`` if nothing was.

    Kept are one period at the beginning and one layer at the end, where things happen that do not repeat (``more_edge``
    adds layers to both); two periods between, which are compared; and what brings the last kind of layer to the end.
    """
    short = copy.deepcopy(config)
    if _names_layers(config):
        return short, {}
    cut: dict[str, Depth] = {}
    names = [name for name in DEPTH_FIELDS if isinstance(getattr(config, name, None), int)]
    names = [name for name in names if name not in config.attribute_map] or names
    if not config.is_encoder_decoder:
        names = names[:1]
    for name in names if _may_be_set(short, names) else ():
        full = getattr(config, name)
        lists = {
            key: value
            for key, value in vars(config).items()
            if isinstance(value, list) and len(value) == full and full > 1
        }
        period = _period(list(zip(*lists.values(), strict=True))) if lists else 1
        head = period + more_edge
        least = head + 2 * period + 1 + more_edge
        traced = least + (full - least) % period
        if traced >= full:
            continue
        cut[name] = Depth(traced, full, period, head)
        for key, value in lists.items():
            setattr(short, key, value[:traced])
        setattr(short, name, traced)
    return short, cut


def shorten_text(config: Any, more_edge: int = 0) -> tuple[Any, dict[str, Depth]]:
    """As :func:`shorten`; of a multimodal config the part that reads text."""
    if getattr(config, "text_config", None) is None:
        return shorten(config, more_edge)
    short = copy.deepcopy(config)
    if _names_layers(config):
        return short, {}
    short.text_config, cut = shorten(config.text_config, more_edge)
    return short, cut


def _names_layers(config: Any) -> bool:
    """Whether single layers are named that a quantised checkpoint leaves as they are: which repeat is not known."""
    stored = getattr(config, "quantization_config", None)
    skipped = stored.get("llm_int8_skip_modules") if isinstance(stored, dict) else None
    return any(re.search(r"(^|\.)\d", name) for name in skipped or ())


def _may_be_set(config: Any, names: list[str]) -> bool:
    """Whether the number of layers is a field, not what a config counts or refuses to be told."""
    try:
        for name in names:
            setattr(config, name, getattr(config, name))
    except (NotImplementedError, AttributeError):
        return False
    return True


def _period(kinds: list[Any]) -> int:
    return next(p for p in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False)))


def deepen(trace: Trace, depths: dict[str, Depth]) -> Trace:
    """The trace of the full model from the trace of a shortened one; ``depths`` by the path of the stack.

    Raises:
        NotPeriodic: the layers are not alike.

    """
    for stack, depth in depths.items():
        trace = _Deepening(trace, stack, depth).run()
    return trace


@dataclass(slots=True)
class _Stretch:
    """Consecutive events of one layer, or of none, in one phase."""

    index: int | None
    start: int
    stop: int
    sweep: int = -1


def _releases(trace: Trace) -> int:
    return sum(event < 0 for event in trace.events)


class _Deepening:
    """One stack of one trace, deepened."""

    def __init__(self, trace: Trace, stack: str, depth: Depth) -> None:
        self._old = trace
        self._stack = stack
        self._depth = depth
        self._extra = depth.full - depth.traced
        self._new = Trace(stacks={**trace.stacks, stack: depth.full})
        self._stretches = self._sweeps(self._cut())
        # where each allocation was born: (sweep, layer, ordinal), or None outside of sweeps
        self._birth: list[tuple[int, int, int] | None] = [None] * len(trace.allocations)
        self._plain: dict[int, int] = {}
        self._made: dict[tuple[int, int, int], int] = {}
        self._renamed: dict[Any, Any] = {}

    def run(self) -> Trace:
        self._note_births()
        codes = {id(s): self._code(s) for s in self._stretches if s.index is not None}
        position = 0
        while position < len(self._stretches):
            first = self._stretches[position]
            if first.index is None:
                self._copy(first)
                position += 1
                continue
            sweep = self._stretches[position : position + self._depth.traced]
            self._repeat({s.index: s for s in sweep if s.index is not None}, codes, sweep[0].index != 0)
            position += self._depth.traced
        if sum(event >= 0 for event in self._new.events) - len(self._new.allocations):
            raise NotPeriodic("a birth was lost")
        if len(self._new.allocations) - _releases(self._new) != self._left():
            raise NotPeriodic("a release was lost")
        return self._new

    def _left(self) -> int:
        """How many allocations are alive at the end of the deepened trace: those of the pattern once for each layer."""
        released = {~event for event in self._old.events if event < 0}
        alive = (self._birth[number] for number in range(len(self._old.allocations)) if number not in released)
        return sum(
            1 + self._depth.replicas * (birth is not None and birth[1] in self._depth.pattern) for birth in alive
        )

    # --- cutting the events into stretches ---------------------------------------------------------------------------

    def _index(self, event: int, moment: Moment) -> int | None:
        layer = moment.layer or self._old.allocations[event if event >= 0 else ~event].layer
        return layer.index if layer is not None and layer.stack == self._stack else None

    def _cut(self) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        before: Any = None
        for place, (event, moment) in enumerate(zip(self._old.events, self._old.moments, strict=True)):
            index = self._index(event, moment)
            key = (index, moment.phase, moment.step)
            if key != before:
                stretches.append(_Stretch(index, place, place))
                before = key
            stretches[-1].stop = place + 1
        return list(self._split_turns(list(self._split_tails(stretches))))

    def _split_tails(self, stretches: list[_Stretch]) -> Iterator[_Stretch]:
        """A stretch may end in releases that go through all layers, as when a graph is dropped: they are a sweep."""
        for stretch in stretches:
            sweep = self._sweep_in(self._trailing_releases(stretch))
            if stretch.index is None or not sweep:
                yield stretch
                continue
            sweep[-1].stop = stretch.stop
            if stretch.start < sweep[0].start:
                yield _Stretch(stretch.index, stretch.start, sweep[0].start)
            yield from sweep

    def _sweep_in(self, releases: list[_Stretch]) -> list[_Stretch]:
        """The first of these that go through all layers, up or down; none if they do not."""
        traced = self._depth.traced
        up = list(range(traced))
        windows = (releases[place : place + traced] for place in range(len(releases) - traced + 1))
        return next((window for window in windows if [one.index for one in window] in (up, up[::-1])), [])

    def _trailing_releases(self, stretch: _Stretch) -> list[_Stretch]:
        """What a stretch releases after its last birth, by the layer in which that was born."""
        start = stretch.stop
        while start > stretch.start and self._old.events[start - 1] < 0:
            start -= 1
        found: list[_Stretch] = []
        for place in range(start, stretch.stop):
            layer = self._old.allocations[~self._old.events[place]].layer
            index = layer.index if layer is not None and layer.stack == self._stack else None
            if not found or found[-1].index != index:
                found.append(_Stretch(index, place, place))
            found[-1].stop = place + 1
        return found

    def _split_turns(self, stretches: list[_Stretch]) -> Iterator[_Stretch]:
        """Where one sweep ends in the layer in which the next begins, the next begins after the last birth."""
        for before, stretch, after in zip([None, *stretches], stretches, [*stretches[1:], None], strict=False):
            turns = (
                before is not None and after is not None and before.index is not None and before.index == after.index
            )
            births = [p for p in range(stretch.start, stretch.stop) if self._old.events[p] >= 0]
            if turns and births and births[-1] + 1 < stretch.stop and stretch.index is not None:
                yield _Stretch(stretch.index, stretch.start, births[-1] + 1)
                yield _Stretch(stretch.index, births[-1] + 1, stretch.stop)
            else:
                yield stretch

    def _sweeps(self, stretches: list[_Stretch]) -> list[_Stretch]:
        """Join what lies between neighbouring layers to the earlier one, then find the sweeps through all layers."""
        joined: list[_Stretch] = []
        for place, stretch in enumerate(stretches):
            following = stretches[place + 1] if place + 1 < len(stretches) else None
            before = joined[-1] if joined else None
            between = (
                stretch.index is None
                and before is not None
                and following is not None
                and before.index is not None
                and following.index is not None
                and abs(before.index - following.index) == 1
                and self._old.moments[before.start].phase is self._old.moments[following.start].phase
            )
            if between and before is not None:
                before.stop = stretch.stop
            else:
                joined.append(stretch)
        self._mark_sweeps(joined)
        return joined

    def _mark_sweeps(self, stretches: list[_Stretch]) -> None:
        """Number the complete sweeps; a stretch outside of them counts as belonging to no layer."""
        count, position = 0, 0
        up = list(range(self._depth.traced))
        while position < len(stretches):
            window = stretches[position : position + self._depth.traced]
            if [s.index for s in window] not in (up, up[::-1]):
                stretches[position].index = None
                position += 1
                continue
            for stretch in window:
                stretch.sweep = count
            count += 1
            position += self._depth.traced

    def _note_births(self) -> None:
        for stretch in self._stretches:
            if stretch.index is None:
                continue
            ordinal = 0
            for event in self._old.events[stretch.start : stretch.stop]:
                if event >= 0:
                    self._birth[event] = (stretch.sweep, stretch.index, ordinal)
                    ordinal += 1

    def _code(self, stretch: _Stretch) -> list[Any]:
        """What a stretch does, with every layer number told relative to its own."""
        code: list[Any] = []
        own = stretch.index or 0
        for event, moment in self._events(stretch):
            if event >= 0:
                allocation = self._old.allocations[event]
                code.append((allocation.size, allocation.category, allocation.op, moment.phase, moment.part))
                continue
            birth = self._birth[~event]
            code.append(~event if birth is None else (birth[0], birth[1] - own, birth[2]))
        return code

    def _events(self, stretch: _Stretch) -> Iterator[tuple[int, Moment]]:
        for place in range(stretch.start, stretch.stop):
            yield self._old.events[place], self._old.moments[place]

    # --- writing the deep trace --------------------------------------------------------------------------------------

    def _copy(self, stretch: _Stretch) -> None:
        """Events outside of sweeps: they may touch the first layers and the last, but no replicated one."""
        for event, moment in self._events(stretch):
            at = self._shifted_moment(moment, self._shift_of(moment.layer))
            if event >= 0:
                allocation = self._old.allocations[event]
                moved = self._shifted(allocation, self._shift_of(allocation.layer))
                moved.size += self._joined(allocation)
                self._plain[event] = self._new.born(moved, at)
                continue
            birth = self._birth[~event]
            if birth is None:
                number = self._plain[~event]
            else:
                shift = self._shift_of(Layer(self._stack, birth[1]))
                number = self._made[(birth[0], birth[1] + shift, birth[2])]
            self._new.released(number, at)

    def _joined(self, allocation: Allocation) -> int:
        """What the replicated layers add to a tensor that joins one of each layer."""
        if not allocation.parts:
            return 0
        once = sum(allocation.parts.get(Layer(self._stack, index), 0) for index in self._depth.pattern)
        return once * self._depth.replicas

    def _shift_of(self, layer: Layer | None) -> int:
        """How far a layer moves that is not replicated."""
        if layer is None or layer.stack != self._stack or layer.index < self._depth.head:
            return 0
        if layer.index >= self._depth.head + 2 * self._depth.period:
            return self._extra
        raise NotPeriodic(f"layer {layer.index} of {self._stack} is touched out of order")

    def _repeat(self, sweep: dict[int, _Stretch], codes: dict[int, list[Any]], downwards: bool) -> None:
        period, pattern = self._depth.period, self._depth.pattern
        for index in pattern:
            if codes[id(sweep[index])] != codes[id(sweep[index + period])]:
                raise NotPeriodic(f"layers {index} and {index + period} of {self._stack} differ")
        numbers = range(self._depth.full)
        for number in reversed(numbers) if downwards else numbers:
            if number < pattern.stop:
                template = number
            elif number - self._extra >= pattern.stop:
                template = number - self._extra
            else:
                template = pattern.start + (number - pattern.start) % period
            self._write(sweep[template], number)

    def _write(self, stretch: _Stretch, number: int) -> None:
        shift = number - (stretch.index or 0)
        ordinal = 0
        for event, moment in self._events(stretch):
            within = moment.layer is None or moment.layer.index == stretch.index
            at = self._shifted_moment(moment, shift if within else self._shift_of(moment.layer))
            if event >= 0:
                born = self._new.born(self._shifted(self._old.allocations[event], shift), at)
                self._made[(stretch.sweep, number, ordinal)] = born
                ordinal += 1
                continue
            birth = self._birth[~event]
            key = (
                None if birth is None else (birth[0], self._birth_layer(birth[1], stretch.index or 0, shift), birth[2])
            )
            try:
                self._new.released(self._plain[~event] if key is None else self._made[key], at)
            except KeyError:
                raise NotPeriodic(f"a release in layer {number} of {self._stack} has no birth") from None

    def _birth_layer(self, index: int, own: int, shift: int) -> int:
        """Where what layer ``own`` releases was born in the deep trace: as far off as in the short one.

        But what the layer at one end releases for that at the other end lived through all between, as does a gradient
        to which each layer adds its own in place.
        """
        ends = self._end_of(index), self._end_of(own)
        return index + (self._shift_of(Layer(self._stack, index)) if sorted(ends) == [-1, 1] else shift)

    def _end_of(self, index: int) -> int:
        """-1 at the beginning of the stack, 1 at its end, 0 in what is repeated."""
        return (index >= self._depth.head + 2 * self._depth.period) - (index < self._depth.head)

    def _shifted_moment(self, moment: Moment, shift: int) -> Moment:
        if not shift:
            return moment
        key = (moment, shift)
        if key not in self._renamed:
            layer = moment.layer
            moved = layer and layer.stack == self._stack
            self._renamed[key] = (
                replace(moment, layer=Layer(self._stack, layer.index + shift)) if moved and layer else moment
            )
        renamed: Moment = self._renamed[key]
        return renamed

    def _shifted(self, allocation: Allocation, shift: int) -> Allocation:
        if not shift:
            return replace(allocation)
        key = (allocation.owner, allocation.layer, shift)
        if key not in self._renamed:
            layer = allocation.layer
            if layer is not None and layer.stack == self._stack:
                layer = Layer(self._stack, layer.index + shift)
            self._renamed[key] = (self._shifted_owner(allocation.owner, shift), layer)
        owner, layer = self._renamed[key]
        return Allocation(allocation.size, allocation.category, owner, allocation.op, layer, allocation.parts)

    def _shifted_owner(self, owner: str, shift: int) -> str:
        prefix = self._stack + "."
        if not owner.startswith(prefix):
            return owner
        number, dot, rest = owner[len(prefix) :].partition(".")
        return f"{prefix}{int(number) + shift}{dot}{rest}" if number.isdigit() else owner
