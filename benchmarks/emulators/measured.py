"""All stages of one row. Each is recorded when it is finished, and the bundle stays on disk until
the row is done, so a run that was killed repeats one stage at most.

    build       the bundle: sizes and times
    zero_shot   the emulator as it is sent, for every task and seed
    healed      the same after the healing attack, which knows neither task nor seed and runs once
    rate        a trial of a learning rate, by the plug-in on questions that no test asks
    tuned       the tuned emulator, the plug-in and, where it can differ, the corrected plug-in
"""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from benchmarks.emulators import release, sources
from benchmarks.emulators.lab import Lab
from benchmarks.emulators.ledger import Json
from benchmarks.emulators.reference import asked_inputs, choosing_inputs, trial
from benchmarks.emulators.rows import Row, digest_of
from benchmarks.emulators.scores import Score
from benchmarks.emulators.tuning import InputFields, Tensors, Tuner, best, tuning_inputs
from offsite.emulator.adapters.adapter import Adapter, AdapterKind, make_adapter
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.build import Emulator
from offsite.emulator.correction import corrected
from offsite.emulator.leak.heal import healed


@dataclass(frozen=True)
class Bench:
    """The measurements of one row."""

    lab: Lab
    row: Row

    def run(self) -> None:
        """Measure what is not recorded yet."""
        ledger, lab = self.lab.ledger, self.lab
        if ledger.find("refused", self.build_inputs):
            return
        # (1) The release; what the method cannot do is a result too.
        try:
            ledger.once("build", self.build_inputs, self._build)
        except release.RefusedError as error:
            ledger.add("refused", self.build_inputs, {"reason": str(error)})
            return
        # (2) What the data owners, and a thief, have without tuning.
        for task in lab.tasks:
            for seed in range(lab.seeds):
                inputs = self.emulator_inputs(task, seed)
                ledger.once("zero_shot", inputs, partial(self._zero_shot, task, seed))
        self._heal()
        # (3) What tuning gives either side.
        for task in lab.tasks:
            inputs_of = {seed: self.tuned_inputs(task, seed) for seed in range(lab.seeds)}
            if missing := [s for s, known in inputs_of.items() if not ledger.find("tuned", known)]:
                rate = self._chosen_rate(task)
                for seed in missing:
                    ledger.once("tuned", inputs_of[seed], partial(self._tuned, task, seed, rate))
        # (4) Nothing of it is needed again.
        shutil.rmtree(self._folder, ignore_errors=True)

    # What the stages depend on.

    @property
    def build_inputs(self) -> InputFields:
        """Of the bundle."""
        settings = self.lab.settings
        distil = f"{settings.distil_tokens} in {settings.distil_row_tokens}"
        return {
            "base": self.lab.fingerprint[:12],
            "row": self.row.identity,
            "calibration": settings.calibration_tokens,
            "distil": distil if self.row.distil_steps else "",
            "code": sources.building(distils=self.row.distil_steps > 0),
        }

    def emulator_inputs(self, task: str, seed: int) -> InputFields:
        """Of the emulator's score."""
        return asked_inputs(self.lab, task, seed) | {"emulator": self._emulator_id}

    def healed_inputs(self, task: str, seed: int) -> InputFields:
        """Of the healed emulator's score."""
        settings = self.lab.settings
        attack = {
            name: getattr(settings, name)
            for name in ("heal_steps", "heal_tokens", "heal_row_tokens", "heal_rank", "heal_rate")
        }
        return self.emulator_inputs(task, seed) | attack | {"heal_code": sources.healing()}

    def tuned_inputs(self, task: str, seed: int) -> InputFields:
        """Of the scores after tuning."""
        settings = self.lab.settings
        rates = ",".join(f"{rate:g}" for rate in settings.rates(self.row.adapter.kind))
        choosing: InputFields = {"rates": rates, "choosing": settings.choosing_questions}
        known = self.emulator_inputs(task, seed) | tuning_inputs(self.lab) | choosing
        if self._can_be_corrected:
            known["correct_code"] = sources.correcting()
        return known

    @property
    def _can_be_corrected(self) -> bool:
        return self.row.adapter.kind is AdapterKind.LORA and self.row.placement.middle_lora

    @property
    def _emulator_id(self) -> str:
        return digest_of(self.build_inputs)

    # The emulator.

    @property
    def _folder(self) -> Path:
        return self.lab.out / "rows" / self._emulator_id

    @property
    def _bundle(self) -> Path:
        return self._folder / "bundle"

    def _build(self) -> Json:
        return release.build(self.lab, self.row, self._bundle)

    @cached_property
    def _emulator(self) -> Emulator:
        if not self._bundle.exists():
            self._build()
        return release.load(self.lab, self._bundle)

    @cached_property
    def _adapter(self) -> Adapter:
        return make_adapter(self.row.adapter, self._emulator.layer_map)

    # The stages.

    def _zero_shot(self, task: str, seed: int) -> Json:
        return self._emulator_score(task, seed).to_json()

    def _heal(self) -> None:
        lab = self.lab
        asked = [(task, seed) for task in lab.tasks for seed in range(lab.seeds)]
        inputs = [self.healed_inputs(*pair) for pair in asked]
        if all(lab.ledger.find("healed", known) for known in inputs):
            return
        cpu_started = time.process_time()
        with healed(self._emulator.model, lab.healing, lab.attack) as healing:
            took = {"s": healing.seconds, "cpu_s": time.process_time() - cpu_started}
            for known, pair in zip(inputs, asked, strict=True):
                outcome = {
                    "score": self._emulator_score(*pair).to_json(),
                    "heal_s": round(healing.seconds, 1),
                }
                lab.ledger.add("healed", known, outcome, took)

    def _chosen_rate(self, task: str) -> float:
        lab, tuner = self.lab, self._tuner(task)

        def accuracy_of(rate: float) -> float:
            inputs = choosing_inputs(lab, task, rate) | {"emulator": self._emulator_id}
            return float(str(lab.ledger.once("rate", inputs, partial(trial, tuner, rate))["acc"]))

        return best(lab.settings.rates(self.row.adapter.kind), accuracy_of)

    def _tuned(self, task: str, seed: int, rate: float) -> Json:
        started = time.monotonic()
        tensors = self._tuner(task).tuned(rate, seed)
        seconds = round(time.monotonic() - started, 1)
        with plugged_in(self._emulator.model, self._adapter, tensors):
            emulator_tuned = self._emulator_score(task, seed)
        outcome: Json = {
            "rate": rate,
            "tune_s": seconds,
            "emulator_tuned": emulator_tuned.to_json(),
            "plug_in": self._plug_in_score(task, seed, tensors).to_json(),
        }
        if self._can_be_corrected:
            assert isinstance(self._adapter, LoraAdapter)
            fixed = corrected(tensors, self._adapter, self.lab.model, self._emulator.model)
            outcome["corrected"] = self._plug_in_score(task, seed, fixed).to_json()
        return outcome

    def _tuner(self, task: str) -> Tuner:
        return Tuner(self.lab, self._emulator.model, self._adapter, task, self._folder / "tuned")

    def _emulator_score(self, task: str, seed: int) -> Score:
        return self.lab.score(self._emulator.model, self.lab.test(task, seed))

    def _plug_in_score(self, task: str, seed: int, tensors: Tensors) -> Score:
        with plugged_in(self.lab.model, self._adapter, tensors):
            return self.lab.score(self.lab.model, self.lab.test(task, seed))
