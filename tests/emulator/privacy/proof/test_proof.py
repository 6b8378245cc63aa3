"""The start-up proof passes what is right, and each way of breaking the mechanism fails it."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.emulator.privacy.backends.cells import Kind, Subject, make_subject
from tests.emulator.privacy.proof.units import packed

from offsite.emulator.privacy.backends.one_by_one import OneByOne
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.privacy.proof.dropout import without_dropout
from offsite.emulator.privacy.proof.mechanism import PrivateStep, Unit
from offsite.emulator.privacy.proof.proof import prove
from offsite.emulator.privacy.proof.report import Check, Program, ProofReport
from offsite.emulator.privacy.proof.report import Subject as Tried
from offsite.emulator.privacy.proof.synthetic import Sizes, cases
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.batches import MicroBatch, pack
from offsite.emulator.training.loss import summed_loss
from offsite.secure.errors import PolicyError
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.randomness.poisson import (
    PoissonSampler,
    Sampler,
    TruncatedPoissonSampler,
    Units,
)

SIZES = Sizes(vocabulary=96, max_tokens=48)
UNITS, RATE = 160, Fraction(1, 20)
CLIP, NOISE = 0.5, 1.1
PROGRAM = Program("engine", bytes(range(32)))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject("llama", Kind.LORA)


@contextmanager
def step_on(subject: Subject, sampler: Sampler | None = None) -> Iterator[PrivateStep]:
    terms = StepTerms(sampler or PoissonSampler(UNITS, RATE), CLIP, NOISE)
    with (
        without_dropout(subject.model),
        PerExampleEngine(subject.model, subject.parameters) as engine,
    ):
        values = subject.gradients.shape[1]
        yield PrivateStep(engine, terms, values, torch.device("cpu"), packed)


def failed(report: ProofReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("kind", [Kind.LORA, Kind.BLOCKS], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_mechanism_passes(name: str, kind: Kind) -> None:
    with step_on(make_subject(name, kind)) as step:
        report = prove(step, SIZES, PROGRAM)
    report.require_passed()
    assert len(report.checks) > 20


def test_every_defect_is_seen_nearly_always(subject: Subject) -> None:
    """Here, with these sizes; what a check would miss stands in the report."""
    with step_on(subject) as step:
        report = prove(step, SIZES, PROGRAM)
    assert max(check.miss for check in report.checks) < 1e-6


@pytest.mark.parametrize(
    "sampler",
    [
        TruncatedPoissonSampler(UNITS, RATE, 9),
        PoissonSampler(UNITS, Fraction(1)),
        PoissonSampler(1, Fraction(1, 3)),
        PoissonSampler(20000, Fraction(1, 2000)),
    ],
    ids=["truncated", "everything", "one unit", "many units"],
)
def test_other_samplers_pass(subject: Subject, sampler: Sampler) -> None:
    with step_on(subject, sampler) as step:
        prove(step, SIZES, PROGRAM).require_passed()


LONG = Sizes(vocabulary=96, max_tokens=300)
"""Beyond the width at which another attention kernel is used."""

IN_BF16 = pytest.mark.parametrize(
    "kind", [Kind.LORA, Kind.BLOCKS], ids=lambda kind: kind.name.lower()
)


def in_bf16(kind: Kind) -> Subject:
    """A bf16 base; LoRA stays fp32, whole blocks are bf16 as well."""
    subject = make_subject("llama", kind)
    subject.model.to(torch.bfloat16)
    if kind is Kind.LORA:
        for parameter in subject.parameters.values():
            parameter.data = parameter.data.float()
    return subject


@IN_BF16
def test_bf16_one_by_one_passes(kind: Kind) -> None:
    with step_on(in_bf16(kind)) as step:
        one_by_one = OneByOne(step.backend.model, step.backend.parameters)
        step.backend.__exit__()
        prove(dataclasses.replace(step, backend=one_by_one), LONG, PROGRAM).require_passed()


@IN_BF16
def test_bf16_passes(kind: Kind) -> None:
    """A row is computed as it would be alone: how wide others are changes not even its rounding."""
    with step_on(in_bf16(kind)) as step:
        prove(step, LONG, PROGRAM).require_passed()


# The broken ones.


class Broken:
    """An honest mechanism with one method replaced."""

    def __init__(self, honest: PrivateStep) -> None:
        self.honest = honest
        self.steps = 0
        self.epoch: list[int] = []

    @property
    def terms(self) -> StepTerms:
        return self.honest.terms

    @property
    def values(self) -> int:
        return self.honest.values

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return self.honest.clipped_sum(units, clip)

    def draw(self) -> Units:
        return self.honest.draw()

    def noise(self) -> np.ndarray:
        return self.honest.noise()


class NoClipping(Broken):
    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return self.honest.clipped_sum(units, 1e30)


class ClippedTwice(Broken):
    """At twice the norm that the noise is for."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return self.honest.clipped_sum(units, 2 * clip)


class ClippedBatch(Broken):
    """The sum is clipped in the place of the units."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        total = self.honest.clipped_sum(units, 1e30)
        return total * min(1.0, clip / max(float(total.norm()), 1e-30))


class ClippedRows(Broken):
    """The rows of a person are clipped one by one."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return self.honest.clipped_sum([(row,) for unit in units for row in unit], clip)


class TokenMean(Broken):
    """Trap c: the loss is a mean over the tokens of the batch, times its size."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        model, total = self.honest.backend.model, torch.zeros(self.values)
        tokens = sum(example.learnt_tokens for unit in units for example in unit)
        for unit in units:
            batch = pack(sorted(unit, key=lambda example: -len(example.ids)))
            gradient = self.gradient(model, batch) * len(units) / tokens
            total += gradient * min(1.0, clip / float(gradient.norm()))
        return total

    def gradient(self, model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
        engine = self.honest.backend
        engine.__exit__()
        gradients = torch.autograd.grad(summed_loss(model, batch), list(engine.parameters.values()))
        engine.__enter__()
        return torch.cat([part.flatten() for part in gradients])


class SkippedUnit(Broken):
    """Trap b: rows stand in for each other."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return len(units) * self.honest.clipped_sum(units[:1], clip)


class Dead(Broken):
    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return torch.zeros(self.values)


class NotFinite(Broken):
    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        return torch.full((self.values,), torch.nan)


class NoNoise(Broken):
    def noise(self) -> np.ndarray:
        return np.zeros(self.values, np.float32)


class HalfNoise(Broken):
    def noise(self) -> np.ndarray:
        return self.honest.noise() / 2


class HalfOfTheNoise(Broken):
    """The second half of the values has none."""

    def noise(self) -> np.ndarray:
        noise = self.honest.noise()
        noise[len(noise) // 2 :] = 0
        return noise


class UniformNoise(Broken):
    def noise(self) -> np.ndarray:
        scale = self.terms.noise_scale * 3**0.5
        return np.random.uniform(-scale, scale, self.values).astype(np.float32)


class SeededNoise(Broken):
    """Trap k: every release has the same noise."""

    def noise(self) -> np.ndarray:
        random = np.random.default_rng(0)
        return random.normal(0, self.terms.noise_scale, self.values).astype(np.float32)


class RecycledNoise(Broken):
    """Every release is mostly the noise of the one before."""

    last: np.ndarray | None = None

    def noise(self) -> np.ndarray:
        fresh = self.honest.noise()
        last = fresh if self.last is None else self.last
        self.last = (0.8 * last + 0.6 * fresh).astype(np.float32)
        return self.last


class RepeatedBlock(Broken):
    def noise(self) -> np.ndarray:
        noise, half = self.honest.noise(), self.values // 2
        noise[half : 2 * half] = noise[:half]
        return noise


class Shuffled(Broken):
    """Batches of one size, every unit once in an epoch."""

    size = int(UNITS * RATE)

    def draw(self) -> Units:
        if len(self.epoch) < self.size:
            self.epoch = np.random.permutation(UNITS).tolist()
        drawn, self.epoch = self.epoch[: self.size], self.epoch[self.size :]
        return np.sort(np.array(drawn, np.int64))


class FixedSize(Broken):
    def draw(self) -> Units:
        return np.random.choice(UNITS, int(UNITS * RATE), replace=False)


class InGroups(Broken):
    """Neighbours come together."""

    def draw(self) -> Units:
        groups = np.flatnonzero(np.random.random(UNITS // 2) < float(RATE))
        return np.concatenate([2 * groups, 2 * groups + 1])


class NoEmptyBatches(Broken):
    """Traps e and g: an empty batch is replaced, which at this rate raises the chance of all."""

    def draw(self) -> Units:
        while not len(drawn := self.honest.draw()):
            pass
        return drawn


class TooOften(Broken):
    def draw(self) -> Units:
        return np.flatnonzero(np.random.random(UNITS) < 1.2 * float(RATE))


class Favourite(Broken):
    def draw(self) -> Units:
        return np.union1d(self.honest.draw(), [7])


BROKEN: dict[type[Broken], str] = {
    NoClipping: "alone.ratio",
    ClippedTwice: "alone.ratio",
    ClippedBatch: "one_word.coupling",
    ClippedRows: "persons.ratio",
    TokenMean: "one_long.coupling",
    SkippedUnit: "ragged.coupling",
    Dead: "trains",
    NotFinite: "alone.ratio",
    NoNoise: "noise.variance",
    HalfNoise: "noise.variance_of_one",
    HalfOfTheNoise: "noise.shape_of_one",
    UniformNoise: "noise.shape",
    SeededNoise: "noise.different",
    RecycledNoise: "noise.between_releases",
    RepeatedBlock: "noise.within_releases",
    Shuffled: "sampling.steps",
    FixedSize: "sampling.sizes",
    InGroups: "sampling.pairs",
    TooOften: "sampling.rate",
    Favourite: "sampling.rate_of_one",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_mechanism_fails(subject: Subject, broken: type[Broken]) -> None:
    with step_on(subject) as step:
        report = prove(broken(step), SIZES, PROGRAM)
    assert BROKEN[broken] in failed(report)
    with pytest.raises(PolicyError, match="Nothing is trained"):
        report.require_passed()
    part = BROKEN[broken].partition(".")[0]
    if part in ("noise", "sampling"):
        assert all(name.startswith(part) for name in failed(report))
    else:
        assert not [name for name in failed(report) if name.startswith(("noise", "sampling"))]


def test_dropped_empty_batches_fail(subject: Subject) -> None:
    """Where they are common: 8 units at a rate of 1/8, of which a third of the batches is empty."""
    with step_on(subject, PoissonSampler(8, Fraction(1, 8))) as step:
        report = prove(NoEmptyBatches(step), SIZES, PROGRAM)
    assert "sampling.rate" in failed(report)


def test_a_token_mean_moves_the_sum_by_more_than_the_clip_norm(subject: Subject) -> None:
    with step_on(subject) as step:
        report = prove(TokenMean(step), SIZES, PROGRAM)
    ratios = {c.name: c.statistic for c in report.checks if c.name.endswith(".ratio")}
    assert max(ratios.values()) > 1.0001


# The report.


def test_two_proofs_agree_on_what_is_not_random(subject: Subject) -> None:
    with step_on(subject) as step:
        first, second = (prove(step, SIZES, PROGRAM) for _ in range(2))
    ours = [
        [c for c in report.checks if not c.name.startswith(("noise", "sampling"))]
        for report in (first, second)
    ]
    assert ours[0] == ours[1]
    assert first.digest != second.digest and len(first.digest) == 32


def test_the_report_is_canonical_json(subject: Subject) -> None:
    with step_on(subject) as step:
        report = prove(step, SIZES, PROGRAM)
    found = json.loads(report.to_json())
    assert found["passed"] is True and found["subject"]["sampling"] == "1/20"
    assert set(found) == {"schema", "passed", "subject", "checks"}
    assert set(found["subject"]) == {
        "backend", "code", "values", "clip_norm", "noise_multiplier", "sampling", "cap"
    }  # fmt: skip
    assert found["subject"]["code"] == PROGRAM.code.hex()


def test_a_changed_check_changes_the_digest(subject: Subject) -> None:
    with step_on(subject) as step:
        report = prove(step, SIZES, PROGRAM)
    check = report.checks[3]
    for change in ({"statistic": check.statistic + 1e-3}, {"most": 2.0}, {"name": "x"}):
        checks = (*report.checks[:3], dataclasses.replace(check, **change), *report.checks[4:])
        assert ProofReport(report.subject, checks).digest != report.digest


def test_a_number_that_is_none_passes_nothing(subject: Subject) -> None:
    with step_on(subject) as step:
        report = prove(step, SIZES, PROGRAM)
    nan = dataclasses.replace(report.checks[0], statistic=float("nan"))
    assert not nan.passed
    assert not ProofReport(report.subject, ()).passed
    with pytest.raises(PolicyError, match="nothing was checked"):
        ProofReport(report.subject, ()).require_passed()


def test_what_a_failed_proof_advises_can_be_followed() -> None:
    """A setting of the coordinator's; which backend is used, no setting chooses."""
    wrong = Check("alone.ratio", 2.0, 0.0, 1.0001, 0.0, "no clipping")
    subject = Tried(PROGRAM, 4, 1.0, 1.0, "1/2", 0)
    with pytest.raises(PolicyError, match=r"tuning\.dtype to float32") as caught:
        ProofReport(subject, (wrong,)).require_passed()
    assert "backend" not in str(caught.value)
    assert "dtype" in {field.name for field in dataclasses.fields(TuningSettings)}


@pytest.mark.parametrize("most", [2, 3, 48, 512])
def test_made_up_units_fit_the_plan(most: int) -> None:
    for case in cases(Sizes(7, most)):
        rows = list(itertools.chain.from_iterable(case.units))
        assert all(2 <= len(row.ids) <= most and row.learnt_tokens for row in rows)
        assert all(row.ids.min() >= 0 and row.ids.max() < 7 for row in rows)
        assert max(case.left_out) < len(case.units)
    assert max(len(row.ids) for row in rows) == most
