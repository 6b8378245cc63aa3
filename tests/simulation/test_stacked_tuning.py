"""Clients that are tuned in one batch, compared with each by itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.simulation.conftest import TUNING, make_bundle
from transformers import PreTrainedModel

from offsite.edge_client.data import read_data
from offsite.edge_client.outcome import TuningOutcome
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import tune
from offsite.edge_client.workbench import Warm, Workbench
from offsite.emulator.adapters.adapter import AdapterKind, TrainedFactors
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.progress import silent
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError
from offsite.simulation import stacked_tuning
from offsite.simulation.stacked_tuning import tune_stacked, why_not

EPOCHS = replace(TUNING, local_steps=0, local_epochs=1.0, weight_decay=0.1, grad_clip=0.05)
SIZES = (3, 5, 11, 16)
"""So with batches of four, clients take one, two or four steps, and have parts of batches."""


@pytest.fixture(params=["b_only", "both"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Bundle)
    return found


class Bench:
    """The clients' examples, the model, and a start away from zero."""

    def __init__(self, bundle: Bundle, rows: Path) -> None:
        self.warm = Warm(bundle, torch.device("cpu"), lambda text: None)
        bench = Workbench(
            bundle, read_data(rows), self.warm.device, lambda t: None, silent, self.warm
        )
        self.examples = list(bench.examples(512).examples)
        generator = torch.Generator().manual_seed(5)
        self.base = {
            name: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in bundle.load_adapter().items()
        }
        self.model = self.warm.model(ComputeDtype.FLOAT32)
        assert isinstance(self.warm.adapter, LoraAdapter)
        self.adapter = self.warm.adapter

    def clients(self) -> list[list[Example]]:
        starts = [sum(SIZES[:place]) for place in range(len(SIZES))]
        return [self.examples[s : s + n] for s, n in zip(starts, SIZES, strict=True)]

    def alone(self, examples: list[Example], task: Task) -> TuningOutcome:
        self.adapter.attach(self.model)
        self.adapter.load(self.model, self.base)
        return tune(self.model, self.adapter.trainable(self.model), self.base, examples, task)

    def together(self, clients: list[list[Example]], task: Task) -> list[object]:
        return list(tune_stacked(self.model, self.adapter, self.base, clients, task))


@pytest.mark.parametrize(
    "task",
    [
        Task(EPOCHS, seed=7),
        Task(replace(EPOCHS, local_steps=3, grad_clip=0.0), round=2, total_rounds=3, seed=8),
        Task(replace(EPOCHS, validation_share=0.0), seed=9, proximal_mu=0.5),
    ],
    ids=["epochs", "steps", "proximal"],
)
def test_clients_in_a_stack_tune_as_they_would_alone(
    bundle: Bundle, rows: Path, task: Task
) -> None:
    bench = Bench(bundle, rows)
    found = bench.together(bench.clients(), task)
    assert len(
        {outcome.metrics.steps for outcome in found if isinstance(outcome, TuningOutcome)}
    ) in (1, 3)
    for examples, outcome in zip(bench.clients(), found, strict=True):
        alone = bench.alone(examples, task)
        assert isinstance(outcome, TuningOutcome)
        _assert_close(outcome.delta, alone.delta)
        for key in ("steps", "examples", "examples_seen", "tokens", "learnt_tokens"):
            assert getattr(outcome.metrics, key) == getattr(alone.metrics, key)
        assert outcome.metrics.loss_curve == pytest.approx(alone.metrics.loss_curve, rel=1e-4)


def test_the_model_is_left_as_it_was(bundle: Bundle, rows: Path) -> None:
    bench = Bench(bundle, rows)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    bench.together(bench.clients(), Task(EPOCHS))
    after = bench.model.state_dict()
    assert before.keys() == after.keys() and not bench.model.training
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_client_that_diverges_costs_the_others_nothing(
    b_only: Bundle, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, task = Bench(b_only, rows), Task(replace(EPOCHS, local_steps=2))
    clients = bench.clients()
    good = bench.together(clients, task)
    spoilt = {tuple(example.ids[:-1].tolist()) for example in clients[2]}

    def losses(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
        fed = [tuple(row.tolist()) for row in batch.ids]
        is_spoilt = torch.tensor([any(row[: len(s)] == s for s in spoilt) for row in fed])
        found = token_losses(model, batch)
        return found * torch.where(is_spoilt[batch.rows], torch.nan, 1.0)

    monkeypatch.setattr(stacked_tuning, "token_losses", losses)
    found = bench.together(clients, task)
    assert isinstance(found[2], ConfigError) and "tuning diverged at step 1" in str(found[2])
    for place in (0, 1, 3):
        one, other = found[place], good[place]
        assert isinstance(one, TuningOutcome) and isinstance(other, TuningOutcome)
        _assert_close(one.delta, other.delta)


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To rounding: where a gradient is next to nothing, Adam makes a step of a rounding error."""
    for name, one in expected.items():
        assert one.norm() > 1e-2
        assert (found[name] - one).norm() < 1e-3 * one.norm(), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (replace(TUNING, patience=2), "tuning.patience"),
        (replace(TUNING, gradient_checkpointing=True), "gradient_checkpointing"),
        (TUNING, ""),
    ],
)
def test_what_does_not_stack_is_said(b_only: Bundle, settings: TuningSettings, said: str) -> None:
    warm = Warm(b_only, torch.device("cpu"), lambda text: None)
    found = why_not(warm.adapter, settings, warm.model(ComputeDtype.FLOAT32))
    assert said in found and bool(said) == bool(found)


def test_whole_blocks_and_dropout_do_not_stack(b_only: Bundle, tmp_path: Path) -> None:
    whole = make_bundle(tmp_path, TrainedFactors.B, AdapterKind.WHOLE_BLOCK)
    warm = Warm(whole, torch.device("cpu"), lambda text: None)
    assert "whole blocks" in why_not(warm.adapter, TUNING, warm.model(ComputeDtype.FLOAT32))
    warm = Warm(b_only, torch.device("cpu"), lambda text: None)
    model = warm.model(ComputeDtype.FLOAT32)
    model.config.attention_dropout = 0.1
    assert "dropout" in why_not(warm.adapter, TUNING, model)
