"""What the app is asking: a frozen question, and the history of questions. Knows nothing of a screen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fitplan import question
from fitplan.errors import InputError, SetupConflict
from fitplan.setup import SETTINGS, Method, TrainingSetup, settings_for


@dataclass(frozen=True)
class Question(question.Question):
    """One model, one device and one setup, as a person named them; always of one method.

    Attributes:
        settings: those that mean nothing for the method are kept for when it changes back.

    """

    model: str
    gpu: str | None = None
    vram: str | None = None
    method: Method = Method.QLORA
    settings: tuple[tuple[str, Any], ...] = ()

    def chosen(self) -> dict[str, Any]:
        """The chosen settings that mean something for the method."""
        return settings_for(self.method, dict(self.settings))

    def on(self, *, gpu: str | None = None, vram: str | None = None) -> Self:
        """The same job on another device."""
        return replace(self, gpu=gpu, vram=vram)

    def of(self, model: str) -> Self:
        """The same job for another model; what was chosen by the names of the old one's modules is dropped."""
        return replace(self, model=model)._with(dict(self.settings), drop=("target_modules", "task", "num_labels"))

    def change(self, name: str, value: Any) -> Self:
        """The question with one setting changed; an older choice that contradicts it goes back to its default.

        What makes no sense by itself is asked as it is: the answer says why.
        """
        if name == "method":
            return replace(self, method=Method(value))
        settings = {**dict(self.settings), name: value}
        for _ in range(len(settings)):
            changed = self._with(settings)
            try:
                TrainingSetup.from_dict(changed.chosen())
            except SetupConflict as conflict:
                older = {conflict.first, conflict.second} - {name}
                if not older & set(settings):
                    return changed
                settings = {n: v for n, v in settings.items() if n not in older}
            except InputError:
                return changed
            else:
                return changed
        return self._with(settings)

    def changed_to(self, setup: TrainingSetup, now: TrainingSetup) -> Self:
        """The question whose setup is ``setup``, where it is ``now``."""
        target, source = setup.to_dict(), now.to_dict()
        settings = dict(self.settings)
        settings |= {n: v for n, v in target.items() if v != source[n] and v is not None and n != "method"}
        return replace(self._with(settings), method=setup.method)

    def _with(self, settings: Mapping[str, Any], drop: tuple[str, ...] = ()) -> Self:
        kept = {name: _frozen(value) for name, value in settings.items() if name not in drop and value is not None}
        return replace(self, settings=tuple((name, kept[name]) for name in SETTINGS if name in kept))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class History:
    """The questions that were asked, and the one that is.

    Attributes:
        now: the question on the screen.
        past: the ones before it, the latest last.
        future: the ones that were taken back, the next to come last.

    """

    now: Question
    past: tuple[Question, ...] = field(default=())
    future: tuple[Question, ...] = field(default=())

    def ask(self, question: Question) -> Self:
        """Another question; the same one again changes nothing."""
        return self if question == self.now else replace(self, now=question, past=(*self.past, self.now), future=())

    def undo(self) -> Self:
        """Back to the question before."""
        if not self.past:
            return self
        return replace(self, now=self.past[-1], past=self.past[:-1], future=(*self.future, self.now))

    def redo(self) -> Self:
        """Forward again to what was taken back."""
        if not self.future:
            return self
        return replace(self, now=self.future[-1], past=(*self.past, self.now), future=self.future[:-1])
