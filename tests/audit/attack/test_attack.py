"""Adapters of a tiny model, attacked: by heart, untouched, and tuned privately."""

import math
import re

import numpy as np
import pytest
import torch
from tests.audit.attack.adapters import (
    CANDIDATES,
    ENTROPY,
    SECRETS,
    SETTINGS,
    Scene,
    gaussian_delta,
    overfitted,
    private,
    scene,
)

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.attack import Rows, attack_adapter
from offsite.audit.attack.forward import measure_losses
from offsite.audit.attack.verdict import Verdict
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.secure.errors import ConfigError, MachineError

DELTA = 1e-5
STEPS = 4


def attacked(here: Scene, after: "dict[str, torch.Tensor] | None" = None) -> Attack:
    target = here.target(here.before if after is None else after)
    return attack_adapter(target, here.rows, SETTINGS, ENTROPY)


def noise_multiplier(epsilon: float) -> float:
    """Of one Gaussian release with that epsilon, to 1 %."""
    return next(s / 100 for s in range(1, 10_000) if gaussian_delta(s / 100, epsilon) <= DELTA)


@pytest.mark.parametrize("kind", list(AdapterKind), ids=lambda kind: kind.value)
def test_an_overfitted_adapter_is_held_back(kind: AdapterKind) -> None:
    found = attacked(scene(kind), dict(overfitted(kind)))
    membership, exposure = found.membership, found.exposure
    assert membership.advantage.low > 0.5 and membership.area.low > 0.9
    assert membership.p_value == 1 / (1 + SETTINGS.resamples)
    assert membership.low_rate is not None and membership.low_rate.true_positives.low > 0.5
    assert exposure is not None and exposure.mean_bits.low > 3 and exposure.p_value < 1e-3
    assert len(exposure.ranks) == SECRETS and exposure.candidates == CANDIDATES
    assert found.judgement.verdict is Verdict.EXCEEDED
    assert re.search(r"membership advantage 0\.[789].* allowed 0\.1", found.judgement.reasons[0])


def test_an_untouched_adapter_shows_nothing_beyond_chance() -> None:
    found = attacked(scene())
    membership, exposure = found.membership, found.exposure
    assert membership.advantage.value == 0.0 and membership.area.value == 0.5
    assert membership.advantage.low < 0 < membership.advantage.high < SETTINGS.allowed_advantage
    assert not membership.is_beyond_chance(SETTINGS.confidence)
    assert exposure is not None and not exposure.is_beyond_chance(SETTINGS.confidence)
    assert found.judgement.verdict is Verdict.WITHIN


def test_an_adapter_tuned_at_epsilon_1_shows_nothing_beyond_chance() -> None:
    here = scene(learnable=True)
    tuned = private(noise_multiplier(1.0) * math.sqrt(STEPS), STEPS)
    found = attacked(here, dict(tuned))
    losses = found.measured.held_out
    assert losses.after.nats.sum() < losses.before.nats.sum()  # it did learn
    assert not found.membership.is_beyond_chance(SETTINGS.confidence)
    assert found.membership.advantage.low < 0 < found.membership.advantage.high
    assert found.judgement.verdict is Verdict.UNDECIDED  # 80 rows do not show it to 0.1
    assert "more rows narrow the interval" in found.judgement.reasons[0]


def test_an_adapter_tuned_at_epsilon_4_leaks_no_more_than_epsilon_4_allows() -> None:
    noise = noise_multiplier(4.0)
    tuned = private(noise * math.sqrt(STEPS), STEPS)
    found = attacked(scene(learnable=True), dict(tuned)).membership
    allowed = (1 + math.erf(1 / (2 * noise))) / 2  # AUC between N(0, s²) and N(1, s²)
    assert 0.7 < allowed < 0.8
    assert found.area.low < allowed


def test_the_model_is_left_as_it_was() -> None:
    here = scene(AdapterKind.LORA)
    before = {name: value.clone() for name, value in here.model.state_dict().items()}
    attacked(here, dict(overfitted(AdapterKind.LORA)))
    after = here.model.state_dict()
    assert before.keys() == after.keys() and not here.model.training
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_entropy_gives_the_same_result() -> None:
    here = scene()
    first, second = (attacked(here, dict(overfitted())) for _ in range(2))
    assert first.membership.to_json() == second.membership.to_json()
    assert first.exposure == second.exposure
    other = attack_adapter(here.target(overfitted()), here.rows, SETTINGS, bytes(32))
    assert not np.array_equal(other.membership.members, first.membership.members)


def test_the_loss_of_a_unit_is_that_of_its_examples_one_by_one() -> None:
    here = scene()
    examples = [example for unit in here.rows.members[:9] for example in unit]
    units = [tuple(examples[:1]), tuple(examples[1:5]), tuple(examples[5:])]
    found = measure_losses(here.model, units, 48)
    for place, unit in enumerate(units):
        nats = 0.0
        for example in unit:
            ids = torch.from_numpy(example.ids.astype(np.int64))[None]
            logits = here.model(input_ids=ids).logits[0, :-1]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        assert found.nats[place] == pytest.approx(nats, rel=1e-5)
        assert found.tokens[place] == sum(example.learnt_tokens for example in unit)


def test_an_adapter_that_gives_no_finite_loss_is_not_judged() -> None:
    here = scene()
    wild = {name: torch.full_like(value, 1e30) for name, value in here.before.items()}
    with pytest.raises(MachineError, match="cannot be judged"):
        attacked(here, wild)


def test_secrets_with_unlike_numbers_of_candidates_are_refused() -> None:
    here = scene()
    one, two, *_ = here.rows.planted
    fewer = type(two)(two.secret, two.candidates[:-1])
    none = type(one)(one.secret, ())
    for planted in ((one, fewer), (none,), (one, none)):
        rows = Rows(here.rows.members, here.rows.held_out, planted)
        with pytest.raises(ConfigError, match="as many candidates"):
            attack_adapter(here.target(here.before), rows, SETTINGS, ENTROPY)
