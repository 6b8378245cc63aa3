"""Private tuning: the very step of the paper, claimed before it runs, and nothing after a crash twice."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tests.edge_client.tuning.test_tuning import last_block, values_of
from tests.emulator.training.samples import make_examples, make_model
from transformers import PreTrainedModel

from offsite.edge_client.checkpoint import Binding, Checkpoint
from offsite.edge_client.privacy import private_tuning
from offsite.edge_client.privacy.private_tuning import PrivateOutcome, PrivateRun, tune_privately
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.task import Task, learning_rate
from offsite.edge_client.tuning import Callbacks
from offsite.emulator.privacy.backends.one_by_one import OneByOne
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import summed_loss
from offsite.secure.errors import PolicyError
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.randomness.poisson import PoissonSampler

EXAMPLES = make_examples(24)
UNITS = UnitExamples(tuple((example,) for example in EXAMPLES))
SETTINGS = TuningSettings(
    learning_rate=1e-2, micro_batch_tokens=60, dtype=ComputeDtype.FLOAT32, warmup_share=0.0
)
NO_NOISE = 1e-9


@dataclass
class Claims:
    """A ledger's claims in memory."""

    most: int = 1000
    claimed: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)

    @property
    def name(self) -> bytes:
        return len(self.claimed).to_bytes(4, "big")

    def claim(self, steps: int, parent: Mapping[str, torch.Tensor]) -> int:
        assert len(self.claimed) == len(self.committed)
        allowed = min(steps, self.most - sum(self.claimed))
        if allowed:
            self.claimed.append(allowed)
        return allowed

    def commit(self, steps: int, result: Mapping[str, torch.Tensor]) -> None:
        self.committed.append(steps)


def terms(noise: float = 1.0, q: Fraction = Fraction(1, 3), clip: float = 1.0) -> StepTerms:
    return StepTerms(PoissonSampler(UNITS.count, q), clip, noise)


def run(
    steps: int = 4,
    step_terms: StepTerms | None = None,
    *,
    family: str = "llama",
    settings: TuningSettings = SETTINGS,
    claims: Claims | None = None,
    units: UnitExamples = UNITS,
    checkpoint: Checkpoint | None = None,
    callbacks: Callbacks | None = None,
    backend: type[OneByOne] | type[PerExampleEngine] = PerExampleEngine,
) -> PrivateOutcome:
    model = make_model(family)
    parameters = last_block(model)
    run_ = PrivateRun(
        backend,
        model,
        parameters,
        values_of(parameters),
        units,
        Task(settings),
        steps,
        step_terms or terms(),
    )
    return tune_privately(run_, claims or Claims(), checkpoint=checkpoint, callbacks=callbacks)


def checkpoint_in(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "tuning.safetensors", Binding("plan", "data"))


# What a step is.


def plain_gradient(model: PreTrainedModel, clip: float) -> list[torch.Tensor]:
    """The mean of clipped gradients, one example at a time, with autograd alone."""
    parameters = list(last_block(model).values())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for example in EXAMPLES:
        (batch,) = micro_batches([example], 10**6)
        loss = summed_loss(model, batch) / len(batch.targets)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        factor = torch.clamp(clip / norm, max=1.0)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += factor * gradient
    return [value / len(EXAMPLES) for value in total]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("backend", [OneByOne, PerExampleEngine])
@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_without_noise_a_step_is_that_of_the_paper(
    family: str, backend: type[OneByOne] | type[PerExampleEngine], clip: float
) -> None:
    """Everybody drawn, hardly any noise: AdamW on the mean of clipped gradients."""
    found = run(1, terms(NO_NOISE / clip, Fraction(1), clip), family=family, backend=backend)
    model = make_model(family)
    model.eval()
    expected = plain_gradient(model, clip)
    parameters = last_block(model)
    before = values_of(parameters)
    optimiser = torch.optim.AdamW(parameters.values(), weight_decay=0.0)
    for parameter, gradient in zip(parameters.values(), expected, strict=True):
        parameter.grad = gradient
    optimiser.param_groups[0]["lr"] = learning_rate(Task(SETTINGS), 0, 1)
    optimiser.step()
    for (name, after), gradient in zip(parameters.items(), expected, strict=True):
        # The first step of AdamW is lr·sign: where a gradient is next to nothing, so is its sign.
        clear = gradient.abs() > 1e-5
        change = after.detach() - before[name]
        torch.testing.assert_close(
            found.delta[name][clear], change[clear], rtol=1e-3, atol=1e-6, msg=name
        )


def test_the_rows_of_a_person_are_one_unit() -> None:
    """A person whose rows are all the data moves a sum by one clip norm."""
    together = UnitExamples((EXAMPLES[:8], *((example,) for example in EXAMPLES[8:])))
    model = make_model("llama")
    parameters = last_block(model)
    total = torch.zeros(sum(value.numel() for value in parameters.values()))
    with PerExampleEngine(model, parameters) as engine:
        (part,) = UnitExamples((EXAMPLES[:8],)).batches([0], 10**6)
        norms = engine.clipped_sum_into(part.batch, part.unit_of_row, 0.01, total)
    assert len(norms) == 1 and float(total.norm()) == pytest.approx(0.01, rel=1e-4)
    sampler = PoissonSampler(together.count, Fraction(1))
    assert run(2, StepTerms(sampler, 1.0, 1.0), units=together).steps == 2
    with pytest.raises(PolicyError, match="drawn from 17 units, found"):
        run(2, terms(), units=together)


def test_units_without_examples_are_drawn_like_all_others() -> None:
    units = UnitExamples((*UNITS.of_unit, (), ()))
    sampler = PoissonSampler(units.count, Fraction(1))
    assert run(2, StepTerms(sampler, 1.0, 1.0), units=units).steps == 2


def test_batches_hold_whole_units_within_the_tokens() -> None:
    units = UnitExamples((*((e,) for e in EXAMPLES), EXAMPLES[:3], ()))
    drawn = list(range(units.count))
    parts = list(units.batches(drawn, 60))
    assert sorted(unit for part in parts for unit in part.units) == drawn[:-1]
    assert units.empty(drawn) == [drawn[-1]]
    for part in parts:
        height, width = part.batch.ids.shape
        assert height * width <= 60 or len(part.units) == 1
        assert sorted(set(part.unit_of_row.tolist())) == list(range(len(part.units)))
        for row, place in enumerate(part.unit_of_row.tolist()):
            ids = part.batch.ids[row].tolist()
            own = [e.ids[:-1].tolist() for e in units.of_unit[part.units[place]]]
            assert any(ids[: len(text)] == text and not any(ids[len(text) :]) for text in own)


def test_empty_batches_are_steps_of_noise() -> None:
    """A run of nothing but empty batches ends like any other: a stop would tell that it was one."""
    rare, claims = terms(q=Fraction(1, 10**6)), Claims()
    found = run(3, rare, claims=claims)
    assert (found.steps, found.has_trained, sum(claims.committed)) == (3, False, 3)
    assert run(2, terms(q=Fraction(1))).has_trained


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off_and_checkpointing_changes_nothing(checkpointing: bool) -> None:
    settings = replace(SETTINGS, gradient_checkpointing=checkpointing)
    quiet = terms(NO_NOISE, Fraction(1))
    found = run(2, quiet, family="gpt2", settings=settings)
    for change, other in pairs(found, run(2, quiet, family="gpt2")):
        # Where a gradient is next to nothing, AdamW goes either way.
        assert float((change - other).abs().mean()) < 0.02 * float(change.abs().mean())


# Noise.


def test_noise_is_new_in_every_run_and_as_large_as_it_should_be() -> None:
    first, second = run(1, terms(1e4)), run(1, terms(1e4))
    signs = torch.cat([(a.sign() == b.sign()).flatten() for a, b in pairs(first, second)])
    assert abs(float(signs.float().mean()) - 0.5) < 6 * 0.5 / len(signs) ** 0.5


def pairs(a: PrivateOutcome, b: PrivateOutcome) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(a.delta[name], b.delta[name]) for name in a.delta]


def test_entropy_that_repeats_stops_the_run() -> None:
    model = make_model("llama")
    parameters = last_block(model)
    claims = Claims()
    again = os.urandom(32)
    with pytest.raises(PolicyError, match="new entropy"):
        tune_privately(
            PrivateRun(
                PerExampleEngine,
                model,
                parameters,
                values_of(parameters),
                UNITS,
                Task(SETTINGS),
                20,
                terms(),
            ),
            claims,
            entropy=lambda size: again,
        )


# Claims.


def test_every_block_is_claimed_before_it_runs_and_committed_after() -> None:
    claims = Claims()
    assert run(25, claims=claims).steps == 25
    assert claims.claimed == claims.committed == [3] * 8 + [1]


def test_a_round_ends_early_when_nothing_is_left_to_claim() -> None:
    claims, said = Claims(most=5), list[str]()
    found = run(20, claims=claims, callbacks=Callbacks(status=said.append))
    assert found.steps == 5 and claims.committed == [2, 2, 1]
    assert "used up" in said[-1]


class Killed(BaseException):
    """What ends a run in a test."""


def killed_at(step: int) -> Callbacks:
    seen = []

    def between() -> None:
        seen.append(1)
        if len(seen) > step:
            raise Killed

    return Callbacks(between_steps=between)


def test_an_interrupted_block_commits_what_ran_and_goes_on_from_there(tmp_path: Path) -> None:
    claims, checkpoint = Claims(), checkpoint_in(tmp_path)
    with pytest.raises(Killed):
        run(20, claims=claims, checkpoint=checkpoint, callbacks=killed_at(5))
    assert claims.claimed == [2, 2, 2] and claims.committed == [2, 2, 1]
    said = list[str]()
    found = run(20, claims=claims, checkpoint=checkpoint, callbacks=Callbacks(status=said.append))
    assert found.steps == 20 and said == ["resuming"]
    assert sum(claims.committed) == 20


def test_a_kill_inside_a_block_costs_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither checkpoint nor commit was written after the kill."""
    claims, checkpoint = Claims(), checkpoint_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(private_tuning._PrivateTuner, "_save", _times(2))
        patched.setattr(Claims, "commit", _times(2, Claims.commit))
        with pytest.raises(Killed):
            run(20, claims=claims, checkpoint=checkpoint)
    assert sum(claims.claimed) == 6 and len(claims.committed) == 2
    claims.committed.append(0)  # what the ledger does at the next start: charged whole
    found = run(20, claims=claims, checkpoint=checkpoint)
    assert found.steps == 20  # 4 before, 16 after
    assert sum(claims.claimed) == 6 + 16


def test_a_checkpoint_that_cannot_be_written_does_not_hide_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever saving raises, the steps of the block are committed; the error goes on."""
    claims, checkpoint = Claims(), checkpoint_in(tmp_path)
    monkeypatch.setattr(private_tuning._PrivateTuner, "_save", _times(2))
    with pytest.raises(Killed):
        run(20, claims=claims, checkpoint=checkpoint)
    assert claims.claimed == claims.committed == [2, 2, 2]


def _times(
    count: int, real: Callable[..., None] = private_tuning._PrivateTuner._save
) -> Callable[..., None]:
    """`real` so often, and a kill after that."""
    seen = []

    def limited(*args: object) -> None:
        if len(seen) == count:
            raise Killed
        seen.append(1)
        real(*args)

    return limited


def test_the_checkpoint_of_other_terms_is_not_used(tmp_path: Path) -> None:
    run(4, checkpoint=checkpoint_in(tmp_path))
    said = list[str]()
    other = Checkpoint(tmp_path / "tuning.safetensors", Binding("other", "data"))
    run(4, checkpoint=other, callbacks=Callbacks(status=said.append))
    assert said == []


# What must not be released.


class Wild(PerExampleEngine):
    """An engine for which no gradient is finite: it adds nothing, and says so."""

    def clipped_sum_into(self, batch: object, units: torch.Tensor, *args: object) -> torch.Tensor:
        return torch.full((int(units.max()) + 1,), torch.inf)


class Unclipped(PerExampleEngine):
    """An engine that forgets to clip."""

    def clipped_sum_into(
        self, batch: object, units: object, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        return super().clipped_sum_into(batch, units, 1e9, total)  # type: ignore[arg-type]


def test_gradients_that_are_not_finite_count_for_nothing() -> None:
    found = run(4, terms(q=Fraction(1)), backend=Wild)
    assert (found.steps, found.has_trained) == (4, False)


def test_a_sum_that_was_not_clipped_is_never_released() -> None:
    with pytest.raises(PolicyError, match="clipping did not happen"):
        run(4, terms(q=Fraction(1), clip=1e-3), backend=Unclipped)
