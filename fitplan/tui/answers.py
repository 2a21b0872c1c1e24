"""What is known about a question without a trace, so at once: through the library, never around it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fitplan import api
from fitplan.advice import Advice, Proposal, advise_on
from fitplan.configs.catalog import spellings
from fitplan.configs.resolve import ModelConfig, resolve_model, without_address
from fitplan.devices.detect import means_this_machine
from fitplan.devices.device import Device, known_devices
from fitplan.estimator import find_stored, known_estimate
from fitplan.fitmap import FitMap
from fitplan.footprint.job import TrainingJob
from fitplan.footprint.store import StoredFootprint
from fitplan.memory import MemoryEstimate
from fitplan.names import plain
from fitplan.plan import CheckReport
from fitplan.question import device_named
from fitplan.report.terminal import told_steps
from fitplan.setup import TrainingSetup
from fitplan.tui.state import Question


class Superseded(Exception):
    """Another question was asked meanwhile: nobody waits for this answer any more."""


@dataclass(frozen=True)
class Offer:
    """Something that the advice proposes.

    Attributes:
        title: what is done.
        note: what it costs, or what it is good for.
        question: what is asked once it is taken.
        proposal: its estimate and verdict; ``None`` for another device.

    """

    title: str
    note: str
    question: Question
    proposal: Proposal | None


class Answers:
    """The library, with what is costly remembered."""

    def __init__(self) -> None:
        self._models: dict[str, ModelConfig] = {}
        self._devices: dict[tuple[str | None, str | None], Device] = {}
        self._reports: dict[Question, CheckReport] = {}

    def forget_devices(self) -> None:
        """What is free on the GPUs of this machine may have changed."""
        here = [key for key in self._devices if key[0] is not None and means_this_machine(key[0])]
        for key in here:
            del self._devices[key]
        self._reports = {q: report for q, report in self._reports.items() if (q.gpu, q.vram) not in here}

    def model(self, question: Question) -> ModelConfig | None:
        """The model's config; ``None`` for one of the hub that was not :meth:`fetched` yet.

        Raises:
            InputError: nothing is known under that name.

        """
        name = question.model
        if name not in self._models:
            if means_the_hub(name):
                return None
            self._models[name] = resolve_model(name)
        return self._models[name]

    def fetched(self, question: Question) -> None:
        """Read the config of a model of the hub, which may ask the network.

        Raises:
            InputError: nothing is known under that name.

        """
        self._models[question.model] = resolve_model(question.model)

    def job(self, question: Question) -> TrainingJob | None:
        """The job of a question; ``None`` while its model is not known.

        Raises:
            InputError: the question makes no sense.

        """
        model = self.model(question)
        return None if model is None else question.job_on(self.device(question), model)

    def device(self, question: Question) -> Device:
        """The device of a question, as it was when it was first asked about.

        Raises:
            InputError: there is none of that name.

        """
        key = (question.gpu, question.vram)
        if key not in self._devices:
            device = device_named(*key)
            assert device is not None, "a question names a device"
            self._devices[key] = device
        return self._devices[key]

    def report(self, question: Question) -> CheckReport | None:
        """The answer; ``None`` where it takes a trace.

        Raises:
            InputError: the question makes no sense.

        """
        if question not in self._reports:
            job = self.job(question)
            if job is None or find_stored(job, lambda s: s.piece(job.shape) is not None) is None:
                return None
            self._reports[question] = api.check(job.model, gpu=job.device, **job.setup.to_dict())
        return self._reports[question]

    def fit_map(self, question: Question) -> FitMap | None:
        """The map around a question; ``None`` where it takes traces."""
        job = self.job(question)
        if job is None or find_stored(job, _is_a_formula) is None:
            return None
        return api.fit_map(job.model, gpu=job.device, **job.setup.to_dict())

    def advice(self, question: Question, wanted: Callable[[], bool] = lambda: True) -> Advice | None:
        """What could be changed, as far as that is known without a trace; in the app everything may be.

        Raises:
            Superseded: it is not ``wanted`` any more.

        """
        job, report = self.job(question), self.report(question)
        if job is None or report is None:
            return None
        asked = report.plans[0]

        def evaluate(setup: TrainingSetup) -> MemoryEstimate | None:
            if not wanted():
                raise Superseded
            return asked.estimate if setup == asked.setup else known_estimate(job.with_setup(setup))

        device = self.device(question)
        return advise_on(asked.setup, frozenset(), evaluate, device, known_devices(), settled=job.settled)

    def offers(self, question: Question, advice: Advice) -> tuple[Offer, ...]:
        """The advice as things to take, the most useful first."""
        found = []
        if advice.fix is not None and advice.fix.steps:
            found.append(_offer(question, advice, advice.fix, f"make it fit: {_told(advice.fix)}", _prices(advice.fix)))
        found += [
            _offer(question, advice, lever, lever.steps[0].name, lever.steps[0].price)
            for lever in advice.levers
            if advice.fix is None or lever.setup != advice.fix.setup
        ]
        known = {advice.asked.setup, *(offer.proposal.setup for offer in found if offer.proposal)}
        if advice.best is not None and advice.best.setup not in known:
            changed = _difference(advice.asked.setup, advice.best.setup)
            found.append(_offer(question, advice, advice.best, f"the most this GPU can train: {changed}", ""))
        if advice.devices and self.device(question) not in advice.devices:
            title = f"the smallest GPU for it as it is: {advice.devices[0].name}"
            found.append(Offer(title, "", question.on(gpu=advice.devices[0].name), None))
        return tuple(found)


def _is_a_formula(stored: StoredFootprint) -> bool:
    return any(not piece.region.is_point for piece in stored.footprint.pieces)


def means_the_hub(name: str) -> bool:
    """Whether ``name`` can only be an id of the hub: no shipped model, no path."""
    name = without_address(name)
    is_path = name.startswith((".", "/", "~")) or name.endswith(".json")
    if plain(name) in spellings() or name.count("/") != 1 or is_path:
        return False
    try:
        return not Path(name).exists()
    except (OSError, ValueError):
        return True


def _offer(question: Question, advice: Advice, proposal: Proposal, title: str, note: str) -> Offer:
    return Offer(title, note, question.changed_to(proposal.setup, advice.asked.setup), proposal)


def _told(proposal: Proposal) -> str:
    return "; ".join(step for step, _ in told_steps(proposal))


def _prices(proposal: Proposal) -> str:
    return "; ".join(price for _, price in told_steps(proposal))


def _difference(now: TrainingSetup, then: TrainingSetup) -> str:
    """What is another, without the settings that come with another method."""
    before = now.to_dict()
    changed = {n: v for n, v in then.to_dict().items() if v != before[n] and None not in (v, before[n])}
    return ", ".join(f"{name} {value}" for name, value in changed.items())
