"""The view: accountants that must agree, and what happens when one of them is broken."""

import dataclasses
import math
from fractions import Fraction

import pytest
from tests.secure.privacy.accounting.configurations import History, random_histories

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import closed_form, pld, prv, rdp, view
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

STEP = PoissonGaussian(1.0, Fraction(1, 20), 40, Unit.RECORD)


def agree(history: History, delta: float) -> None:
    found = epsilon_of(history, delta)
    estimate = prv.epsilon(merged(history), delta).estimate
    assert found.pld <= found.rdp + 1e-6
    assert abs(found.prv - found.pld) <= 0.02
    assert estimate == pytest.approx(found.pld, abs=0.002)  # ten times sharper than the rule
    if found.closed_form is not None:
        assert found.closed_form == pytest.approx(found.pld, abs=1e-3)


@pytest.mark.parametrize("index", range(8))
def test_random_configurations_agree(index: int) -> None:
    agree(*random_histories(8, seed=1)[index])


@pytest.mark.slow  # a hundred configurations cost several minutes of FFTs
@pytest.mark.parametrize("tenth", range(10))
def test_a_hundred_random_configurations_agree(tenth: int) -> None:
    for history, delta in random_histories(100, seed=2)[10 * tenth : 10 * tenth + 10]:
        agree(history, delta)


def test_ten_thousand_equal_entries_cost_as_much_as_one() -> None:
    entry = PoissonGaussian(1.1, Fraction(1, 100), 1, Unit.PERSON)
    assert epsilon_of([entry] * 10_000, 1e-5) == epsilon_of([entry.repeated(10_000)], 1e-5)


def test_nothing_costs_nothing() -> None:
    found = epsilon_of([], 1e-5)
    assert (found.pld, found.prv, found.rdp, found.closed_form) == (0.0, 0.0, 0.0, 0.0)


def test_the_order_of_a_history_does_not_matter() -> None:
    others: list[Mechanism] = [
        Gaussian(9.0, 2, Unit.RECORD),
        TruncatedPoissonGaussian(1.5, Fraction(1, 30), 50, 600, 40, Unit.RECORD),
    ]
    forth = epsilon_of([STEP, *others], 1e-6)
    back = epsilon_of([*reversed(others), STEP], 1e-6)
    assert forth.pld == pytest.approx(back.pld, abs=1e-6)
    assert forth.pld > epsilon_of([STEP], 1e-6).pld


def test_a_view_names_what_computed_it() -> None:
    names = dict(epsilon_of([STEP], 1e-5).versions)
    assert set(names) == {"dp-accounting", "numpy", "prv-accountant", "scipy"}
    assert all(names.values())


def test_units_do_not_add_up() -> None:
    with pytest.raises(PolicyError, match="one unit and adjacency"):
        epsilon_of([STEP, dataclasses.replace(STEP, unit=Unit.PERSON)], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1.0, -1e-5, math.nan])
def test_deltas_out_of_range_are_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta: expected"):
        epsilon_of([STEP], delta)


@pytest.mark.parametrize("history", [[Gaussian(0.01, 1, Unit.RECORD)], [STEP.repeated(10**6)]])
def test_an_epsilon_beyond_any_use_is_not_computed(history: list[Mechanism]) -> None:
    with pytest.raises(PolicyError, match="protects nobody"):
        epsilon_of(history, 1e-5)


def test_a_small_delta_is_computed_too() -> None:
    found = epsilon_of([STEP, Gaussian(20.0, 1, Unit.RECORD)], view.LEAST_DELTA)
    assert found.pld > epsilon_of([STEP, Gaussian(20.0, 1, Unit.RECORD)], 1e-8).pld


def test_tiny_epsilons_are_refined_until_rdp_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse interval exceeds RDP here, so the fine one has to be taken."""
    monkeypatch.setattr(pld, "INTERVAL", 0.5)
    monkeypatch.setattr(pld, "FINE_INTERVAL", 1e-4)
    real = pld.epsilon
    monkeypatch.setattr(
        pld, "epsilon", lambda history, delta, interval=0.5: real(history, delta, interval)
    )
    tiny = PoissonGaussian(20.0, Fraction(1, 100), 400, Unit.RECORD)
    found = epsilon_of([tiny], 1e-5)
    assert found.interval == 1e-4 and found.pld <= found.rdp
    assert real((tiny,), 1e-5, 0.5) > found.rdp


def test_pld_above_rdp_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    half = rdp.epsilon([STEP], 1e-5) / 2
    monkeypatch.setattr(rdp, "epsilon", lambda history, delta: half)
    with pytest.raises(PolicyError, match=r"accountants disagree.*RDP bounds it by"):
        epsilon_of([STEP], 1e-5)


@pytest.mark.parametrize("error", [-0.04, 0.04, math.nan])
def test_prv_away_from_pld_is_a_disagreement(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    right = prv.epsilon((STEP,), 1e-5)
    wrong = prv.Bounds(right.lower, right.estimate, right.upper + error)
    monkeypatch.setattr(prv, "epsilon", lambda history, delta: wrong)
    with pytest.raises(PolicyError, match=r"accountants disagree.*PRV bounds it by"):
        epsilon_of([STEP], 1e-5)


@pytest.mark.parametrize("error", [-0.002, 0.002])
def test_a_closed_form_away_from_pld_is_a_disagreement(
    monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    history = [Gaussian(5.0, 3, Unit.RECORD)]
    right = closed_form.epsilon(history, 1e-5)
    assert right is not None
    monkeypatch.setattr(closed_form, "epsilon", lambda history, delta: right + error)
    with pytest.raises(PolicyError, match=r"accountants disagree.*closed form"):
        epsilon_of(history, 1e-5)


def test_pld_of_less_noise_or_more_sampling_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistakes that matter: an accountant that was told another mechanism."""
    real = pld.epsilon
    for told in (
        dataclasses.replace(STEP, noise_multiplier=1.02),
        dataclasses.replace(STEP, sampling=Fraction(1, 21)),
        STEP.repeated(38),
    ):
        wrong = real((told,), 1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(pld, "epsilon", lambda history, delta, interval=1e-4, w=wrong: w)
            with pytest.raises(PolicyError, match=r"accountants disagree"):
                epsilon_of([STEP], 1e-5)


def test_what_delta_covers_whole_costs_nothing_by_every_accountant() -> None:
    view = epsilon_of([PoissonGaussian(64.0, Fraction(1, 1000), 1, Unit.RECORD)], 0.5)
    assert (view.pld, view.prv, view.rdp) == (0.0, 0.0, 0.0)
