"""The bounds agree with JAX-Privacy's CanaryScoreAuditor, and refuse what cannot have been counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.vectors.audit_bounds import generate

from offsite.audit.bounds.counts import Guesses, Level, Rates
from offsite.audit.bounds.f_dp import gaussian_epsilon
from offsite.audit.bounds.independent import clopper_pearson_epsilon, independent_gaussian_epsilon
from offsite.audit.bounds.steinke import one_run_epsilon, one_run_p_value
from offsite.secure.errors import ConfigError

FOLDER = Path(generate.__file__).parent
TOLERANCE = 2e-6
"""The reference's root search ends at 1e-6."""
BAD = sorted(path.stem for path in FOLDER.glob("bad_*.json"))
GOOD = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem not in BAD)


def read(name: str) -> dict[str, float | int | str | list[float]]:
    document: dict[str, float | int | str | list[float]] = json.loads(
        (FOLDER / f"{name}.json").read_text()
    )
    return document


def of_kind(kind: str) -> list[str]:
    return [name for name in GOOD if name.startswith(kind)]


def test_there_are_good_and_bad_ones_of_every_kind() -> None:
    assert all(len(of_kind(kind)) >= 3 for kind in ("counts", "rates", "scores"))
    assert len(BAD) * 3 >= len(GOOD)


@pytest.mark.parametrize("name", of_kind("counts"))
def test_counts_are_bounded_as_jax_privacy_bounds_them(name: str) -> None:
    vector = read(name)
    guesses = Guesses(vector["canaries"], vector["guessed"], vector["right"])
    level = Level(vector["significance"], vector["delta"])
    p_value = one_run_p_value(guesses, 1.0, level.delta)
    assert p_value == pytest.approx(vector["p_value_at_epsilon_1"], rel=1e-9, abs=1e-12)
    assert one_run_epsilon(guesses, level) == pytest.approx(
        vector["one_run_epsilon"], abs=TOLERANCE
    )
    assert gaussian_epsilon(guesses, level) == pytest.approx(vector["f_dp_epsilon"], abs=TOLERANCE)


@pytest.mark.parametrize("name", of_kind("rates"))
def test_rates_are_bounded_as_jax_privacy_bounds_them(name: str) -> None:
    vector = read(name)
    rates = Rates(*(vector[key] for key in Rates.__slots__))
    level = Level(vector["significance"], vector["delta"])
    assert clopper_pearson_epsilon(rates, level) == pytest.approx(
        vector["clopper_pearson_epsilon"], abs=TOLERANCE
    )
    each = level.shared(vector["gaussian_tests"])  # the reference tests every threshold there is
    assert independent_gaussian_epsilon(rates, each) == pytest.approx(
        vector["gaussian_epsilon"], abs=TOLERANCE
    )


@pytest.mark.parametrize("name", of_kind("scores"))
def test_scores_are_bounded_as_jax_privacy_bounds_them(name: str) -> None:
    vector = read(name)
    inside, outside = np.array(vector["inside"]), np.array(vector["outside"])
    found = int((inside >= vector["threshold"]).sum())
    accused = int((outside >= vector["threshold"]).sum())
    guesses = Guesses(len(inside) + len(outside), found + accused, found)
    level = Level(vector["significance"], vector["delta"])
    rates = Rates(len(inside), found, len(outside), accused)
    answers = {
        "one_run_epsilon": one_run_epsilon(guesses, level),
        "f_dp_epsilon": gaussian_epsilon(guesses, level),
        "clopper_pearson_epsilon": clopper_pearson_epsilon(rates, level),
    }
    assert answers == pytest.approx({key: vector[key] for key in answers}, abs=TOLERANCE)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_have_been_counted_is_refused(name: str) -> None:
    vector = read(name)
    with pytest.raises(ConfigError) as refusal:
        if "guessed" in vector:
            Guesses(vector["canaries"], vector["guessed"], vector["right"])
        else:
            Rates(*(vector[key] for key in Rates.__slots__))
        Level(vector["significance"], vector["delta"])
    assert str(vector["refused"]) in str(refusal.value)


def test_the_bad_vectors_are_current() -> None:
    assert dict(generate.bad()) == {name: read(name) for name in BAD}
