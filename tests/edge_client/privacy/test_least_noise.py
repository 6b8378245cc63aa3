"""The least noise that every limit allows, and what is no answer to that question."""

from fractions import Fraction

import pytest

from offsite.edge_client.privacy import least_noise
from offsite.edge_client.privacy.least_noise import MOST_NOISE
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.what_if import WhatIf
from offsite.secure.errors import NoNoiseFitsError, PolicyError
from offsite.secure.privacy.units import Unit

LIMIT, RATE = PrivacyLimit(8.0), Fraction(1, 20)


def raising(error: PolicyError) -> object:
    def fail(*args: object) -> float:
        raise error

    return fail


def test_accountants_that_disagree_are_not_taken_for_a_limit_that_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = WhatIf.fresh(Unit.RECORD)
    monkeypatch.setattr(least_noise, "noise_for", raising(NoNoiseFitsError("none")))
    assert account.noise(LIMIT, RATE, 20) is None
    monkeypatch.setattr(least_noise, "noise_for", raising(PolicyError("accountants disagree")))
    with pytest.raises(PolicyError, match="accountants disagree"):
        account.noise(LIMIT, RATE, 20)


def test_the_least_noise_is_found_and_more_than_teaches_anybody_is_none() -> None:
    account = WhatIf.fresh(Unit.RECORD)
    found = account.noise(LIMIT, RATE, 20)
    assert found is not None and 0.25 < found < 1.0
    assert account.noise(PrivacyLimit(0.001, 1e-9), RATE, 20) is None
    for least in (3, 7, 10):  # by the search alone
        assert least_noise._least(lambda n, least=least: n >= least, 3, 10) == least  # type: ignore[misc]
    assert least_noise._least(lambda n: False, 3, 10) is None
    assert MOST_NOISE == 64.0
