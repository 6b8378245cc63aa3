"""Mechanisms: exact JSON in both directions, and nothing else is read."""

import dataclasses
import json
import math
from fractions import Fraction

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.errors import ConfigError, IntegrityError
from offsite.secure.privacy.mechanisms import (
    MOST_INTEGER,
    MOST_USES,
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
    mechanism_from_json,
)
from offsite.secure.privacy.units import Adjacency, Unit

NOISES = st.floats(0, 2.0**20, exclude_min=True)
RATES = st.builds(
    lambda a, b: Fraction(min(a, b), max(a, b)),
    st.integers(1, MOST_INTEGER),
    st.integers(1, MOST_INTEGER),
)
USES = st.integers(1, MOST_USES)
UNITS = st.sampled_from(Unit)
TRUNCATED = st.builds(
    lambda noise, rate, steps, a, b, unit: TruncatedPoissonGaussian(
        noise, rate, steps, max(a, b), min(a, b), unit
    ),
    NOISES,
    RATES,
    USES,
    USES,
    USES,
    UNITS,
)
MECHANISMS: st.SearchStrategy[Mechanism] = st.one_of(
    st.builds(PoissonGaussian, NOISES, RATES, USES, UNITS),
    TRUNCATED,
    st.builds(Gaussian, NOISES, USES, UNITS),
)
EXAMPLE = TruncatedPoissonGaussian(0.8125, Fraction(32, 2251), 20, 2251, 64, Unit.PERSON)


@given(MECHANISMS)
def test_a_mechanism_survives_json_exactly(mechanism: Mechanism) -> None:
    fields = mechanism.to_json()
    assert mechanism_from_json(fields) == mechanism
    assert mechanism_from_json(json.loads(json.dumps(fields))) == mechanism
    canonical = rfc8785.dumps(fields)  # type: ignore[arg-type]
    again = mechanism_from_json(json.loads(canonical))
    assert again == mechanism and type(again) is type(mechanism)
    assert rfc8785.dumps(again.to_json()) == canonical  # type: ignore[arg-type]


@given(MECHANISMS, USES)
def test_repeating_changes_the_uses_alone(mechanism: Mechanism, uses: int) -> None:
    again = mechanism.repeated(uses)
    assert again.uses == uses
    assert again.repeated(mechanism.uses) == mechanism


@pytest.mark.parametrize("change", [
    {"kind": "laplace"}, {"kind": None}, {"kind": ["gaussian"]}, {"kind": "gaussian"},
    {"kind": "poisson_gaussian"},
    {"noise_multiplier": "0.8125"}, {"noise_multiplier": True}, {"noise_multiplier": 0},
    {"noise_multiplier": -1.0}, {"noise_multiplier": math.nan}, {"noise_multiplier": math.inf},
    {"noise_multiplier": 10**400}, {"noise_multiplier": None},
    {"sampling": 0.5}, {"sampling": "0.5"}, {"sampling": "64/4502"}, {"sampling": "0/1"},
    {"sampling": "5/4"}, {"sampling": "1/0"}, {"sampling": "-1/2"}, {"sampling": "1/2 "},
    {"sampling": "01/2"}, {"sampling": "١/٢"}, {"sampling": f"1/{2**53}"},
    {"sampling": "1/" + "9" * 9000}, {"sampling": "1/2/3"},
    {"steps": 0}, {"steps": 20.0}, {"steps": True}, {"steps": "20"}, {"steps": 2**31},
    {"units": 0}, {"cap": 0}, {"cap": 2252},
    {"unit": "row"}, {"unit": None}, {"unit": ["record"]},
    {"adjacency": "replace"}, {"adjacency": None},
    {"seed": 7},
], ids=repr)  # fmt: skip
def test_other_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        mechanism_from_json({**EXAMPLE.to_json(), **change})


@pytest.mark.parametrize("name", list(EXAMPLE.to_json()))
def test_a_missing_field_is_refused(name: str) -> None:
    fields = {key: value for key, value in EXAMPLE.to_json().items() if key != name}
    with pytest.raises(IntegrityError, match="mechanism" if name == "kind" else name):
        mechanism_from_json(fields)


@pytest.mark.parametrize("value", [None, [], "gaussian", 3, [EXAMPLE.to_json()]])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(IntegrityError, match="expected an object"):
        mechanism_from_json(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", 1),
        ("noise_multiplier", math.nan),
        ("sampling", 0.01),
        ("sampling", Fraction(0)),
        ("sampling", Fraction(3, 2)),
        ("sampling", Fraction(1, 2**53)),
        ("steps", 0),
        ("steps", True),
        ("steps", 2.0),
        ("cap", 3000),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        dataclasses.replace(EXAMPLE, **{name: value})  # type: ignore[arg-type]


def test_mechanisms_are_values() -> None:
    assert EXAMPLE == dataclasses.replace(EXAMPLE) and len({EXAMPLE, EXAMPLE.repeated(20)}) == 1
    assert EXAMPLE.adjacency is Adjacency.ZERO_OUT
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLE.steps = 3  # type: ignore[misc]
