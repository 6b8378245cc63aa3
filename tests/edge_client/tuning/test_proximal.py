"""FedProx at the edge: mu·(w - w0) is in every step's gradient, in the plain loop and the private one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tests.edge_client.tuning.test_tuning import (
    EXAMPLES,
    SETTINGS,
    Killed,
    assert_equal,
    checkpoint_in,
    kill_at,
    last_block,
    values_of,
)
from tests.emulator.training.samples import make_examples, make_model
from torch import nn

from offsite.edge_client import tuning
from offsite.edge_client.checkpoint import Checkpoint
from offsite.edge_client.outcome import TuningOutcome
from offsite.edge_client.privacy.private_tuning import PrivateRun, tune_privately
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, tune
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.emulator.training.masters import Masters
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.randomness.poisson import PoissonSampler

MU = 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_gradient_of_the_published_term(dtype: torch.dtype) -> None:
    """Autograd of loss + mu/2·|w - w0|² in fp64, w0 being where the round began."""
    generator = torch.Generator().manual_seed(2)
    start = {name: torch.randn(3, 4, generator=generator).to(dtype).float() for name in "ab"}
    parameters = {name: nn.Parameter(value.to(dtype, copy=True)) for name, value in start.items()}
    now = {name: value + 0.25 for name, value in start.items()}
    with Masters(parameters, start, 0.0, MU) as masters:
        masters.load(now)
        (2 * parameters["a"]).sum().backward()  # b has no gradient from the loss
        masters.add_proximal_gradient()
        for name, master in masters.values.items():
            w = master.detach().double().requires_grad_(True)
            loss = (2 * w).sum() if name == "a" else torch.zeros(())
            (loss + MU / 2 * (w - start[name].double()).square().sum()).backward()
            assert master.grad is not None and w.grad is not None
            torch.testing.assert_close(master.grad.double(), w.grad, rtol=1e-6, atol=1e-6)


def test_the_anchor_is_a_copy() -> None:
    parameter = nn.Parameter(torch.ones(3))
    masters = Masters({"a": parameter}, {"a": parameter.detach()}, 0.0, MU)
    parameter.data.add_(2.0)
    masters.add_proximal_gradient()
    assert parameter.grad is not None and parameter.grad.tolist() == [1.0] * 3


@dataclass
class Seen:
    """What every step's gradient was before and after the term, and what was stepped on."""

    added: list[dict[str, torch.Tensor]] = field(default_factory=list)
    pulled: list[dict[str, torch.Tensor]] = field(default_factory=list)
    had_gradient: list[bool] = field(default_factory=list)
    clipped: int = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watches the masters; the anchor is told apart from what the masters think it is."""
    watched = Seen()
    add, clip = Masters.add_proximal_gradient, Masters.clip

    def adding(self: Masters) -> None:
        assert watched.clipped in (0, len(watched.added))  # clipped with the term, not before
        before = {
            n: torch.zeros_like(m) if m.grad is None else m.grad.clone()
            for n, m in self.values.items()
        }
        watched.had_gradient.append(all(m.grad is not None for m in self.values.values()))
        add(self)
        changes = {n: m.grad - before[n] for n, m in self.values.items() if m.grad is not None}
        watched.added.append(changes)
        watched.pulled.append(self.copies())

    def clipping(self: Masters, largest_norm: float) -> float:
        watched.clipped += 1
        return clip(self, largest_norm)

    monkeypatch.setattr(Masters, "add_proximal_gradient", adding)
    monkeypatch.setattr(Masters, "clip", clipping)
    return watched


def plain(
    mu: float, checkpoint: Checkpoint | None = None, callbacks: Callbacks | None = None
) -> tuple[TuningOutcome, dict[str, torch.Tensor]]:
    model = make_model("llama")
    parameters = last_block(model)
    base = values_of(parameters)
    task = Task(SETTINGS, round=2, total_rounds=3, seed=11, proximal_mu=mu)
    found = tune(
        model, parameters, base, EXAMPLES, task, checkpoint=checkpoint, callbacks=callbacks
    )
    return found, base


def private(mu: float) -> dict[str, torch.Tensor]:
    model = make_model("llama")
    parameters, units = last_block(model), UnitExamples(tuple((e,) for e in make_examples(12)))
    base = values_of(parameters)
    terms = StepTerms(PoissonSampler(units.count, Fraction(1, 3)), 1.0, 1.0)
    settings = TuningSettings(learning_rate=1e-3, max_tokens=64)
    run = PrivateRun(
        PerExampleEngine,
        model,
        parameters,
        base,
        units,
        Task(settings, proximal_mu=mu),
        4,
        terms,
    )
    tune_privately(run, Claims())
    return base


class Claims:
    name = b"claim"

    def claim(self, steps: int, parent: object) -> int:
        return steps

    def commit(self, steps: int, result: object) -> None:
        pass


@pytest.mark.parametrize("loop", [lambda mu: plain(mu)[1], private], ids=["plain", "private"])
def test_every_step_of_either_loop_has_the_term(
    loop: Callable[[float], dict[str, torch.Tensor]], seen: Seen
) -> None:
    base = loop(MU)
    assert len(seen.added) >= 4 and all(
        seen.had_gradient
    )  # the data's, or the noised sum, is there
    for added, at in zip(seen.added, seen.pulled, strict=True):
        for name, change in added.items():
            torch.testing.assert_close(change, MU * (at[name] - base[name]), rtol=0, atol=1e-6)
    assert all(float(change.abs().max()) > 1e-6 for change in seen.added[-1].values())


def test_without_the_term_nothing_is_touched(seen: Seen) -> None:
    plain(0.0)
    assert not any(change.any() for added in seen.added for change in added.values())


def test_a_strong_pull_keeps_the_adapter_near() -> None:
    free, near = (
        sum(float(change.square().sum()) for change in plain(mu)[0].delta.values())
        for mu in (0.0, 1e4)
    )
    assert near < 0.5 * free


def test_a_killed_run_is_pulled_to_where_the_round_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(tuning, "CHECKPOINT_SHARE", math.inf)
    whole, _ = plain(MU)
    with pytest.raises(Killed):
        plain(MU, checkpoint_in(tmp_path), kill_at(4))
    resumed, _ = plain(MU, checkpoint_in(tmp_path))
    assert_equal(resumed, whole)


def test_the_task_is_that_of_the_plan() -> None:
    settings = TuningSettings()
    plan = RoundPlan(1, 2, 5, 1, "ab" * 32, "cd" * 32, settings, 1e9, 7, proximal_mu=0.25)
    assert Task.of(plan) == Task(settings, 2, 5, 7, 0.25)
    other = TuningSettings(local_steps=3)
    assert Task.of(plan, other) == Task(other, 2, 5, 7, 0.25)
