"""What rows are compared with: the full model as it is, and the adapter tuned inside it."""

from dataclasses import dataclass
from functools import partial

from benchmarks.emulators.lab import Lab
from benchmarks.emulators.ledger import Json
from benchmarks.emulators.rows import Row, digest_of
from benchmarks.emulators.tuning import InputFields, Tuner, best, tuning_inputs
from offsite.emulator.adapters.adapter import Adapter, AdapterSpec, make_adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.blocks import find_blocks
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.leak.skill import chance_level


@dataclass(frozen=True, slots=True)
class Slots:
    """Where adapters sit and of what kind they are: rows that agree share an upper bound."""

    placement: Placement
    adapter: AdapterSpec

    @classmethod
    def of(cls, row: Row) -> "Slots":
        """Those of a row."""
        return cls(row.placement, row.adapter)

    @property
    def identity(self) -> str:
        """A digest."""
        fields = ("bottom", "top", "spread", "middle_lora")
        placement = {name: getattr(self.placement, name) for name in fields}
        return digest_of([placement, self.adapter.to_json()])

    def in_full_model(self, lab: Lab) -> Adapter:
        """The adapter as it sits in the full model."""
        count = len(find_blocks(lab.model).modules)
        layer_map = LayerMap.of(self.placement, count, self.placement.middle(count))
        return make_adapter(self.adapter, layer_map)


def full(lab: Lab, task: str, seed: int) -> Json:
    """The full model, untouched, and the accuracy of guessing on the same questions."""

    def measure() -> Json:
        asked = lab.test(task, seed)
        found = lab.score(lab.model, asked).to_json()
        return {"score": found, "chance": chance_level(asked.questions)}

    return lab.ledger.once("full", asked_inputs(lab, task, seed), measure)


def upper_bound(lab: Lab, slots: Slots, task: str) -> None:
    """The adapter tuned inside the full model, at the best rate of its own grid, for all seeds."""
    inputs_of = {seed: upper_inputs(lab, slots, task, seed) for seed in range(lab.seeds)}
    missing = [seed for seed, known in inputs_of.items() if not lab.ledger.find("upper", known)]
    if not missing:
        return
    folder = lab.out / "tuned" / digest_of([lab.fingerprint, slots.identity])
    tuner = Tuner(lab, lab.model, slots.in_full_model(lab), task, folder)
    rate = _chosen_rate(slots, tuner)
    for seed in missing:
        lab.ledger.once("upper", inputs_of[seed], partial(_upper, tuner, seed, rate))
    tuner.forget()


def _upper(tuner: Tuner, seed: int, rate: float) -> Json:
    lab = tuner.lab
    with plugged_in(lab.model, tuner.adapter, tuner.tuned(rate, seed)):
        found = lab.score(lab.model, lab.test(tuner.task, seed))
    return {"rate": rate, "score": found.to_json()}


def _chosen_rate(slots: Slots, tuner: Tuner) -> float:
    lab = tuner.lab

    def accuracy_of(rate: float) -> float:
        inputs = choosing_inputs(lab, tuner.task, rate) | {"slots": slots.identity}
        return float(str(lab.ledger.once("upper_rate", inputs, partial(trial, tuner, rate))["acc"]))

    return best(lab.settings.upper_rates(slots.adapter.kind), accuracy_of)


def trial(tuner: Tuner, rate: float) -> Json:
    """The plug-in's accuracy on the questions that rates are chosen on, tuned with seed 0."""
    lab = tuner.lab
    with plugged_in(lab.model, tuner.adapter, tuner.tuned(rate, 0)):
        return {"acc": lab.score(lab.model, lab.choosing(tuner.task)).acc}


def asked_inputs(lab: Lab, task: str, seed: int) -> InputFields:
    """What a score on test questions depends on, beside the model that is scored."""
    return {
        "base": lab.fingerprint[:12],
        "task": task,
        "seed": seed,
        "questions": lab.settings.test_questions,
        "texts": lab.settings.text_questions,
    }


def choosing_inputs(lab: Lab, task: str, rate: float) -> InputFields:
    """What a trial of a learning rate depends on."""
    choosing: InputFields = {
        "task": task,
        "rate": rate,
        "questions": lab.settings.choosing_questions,
    }
    return choosing | {"base": lab.fingerprint[:12]} | tuning_inputs(lab)


def upper_inputs(lab: Lab, slots: Slots, task: str, seed: int) -> InputFields:
    """What an upper bound depends on."""
    rates = ",".join(f"{rate:g}" for rate in lab.settings.upper_rates(slots.adapter.kind))
    known = asked_inputs(lab, task, seed) | tuning_inputs(lab)
    choosing: InputFields = {"rates": rates, "choosing": lab.settings.choosing_questions}
    return known | choosing | {"slots": slots.identity}
