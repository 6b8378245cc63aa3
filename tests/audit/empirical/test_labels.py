"""Labels are fair, bound before the run, and open for the committed guesses only."""

import hashlib

import numpy as np
import pytest

from offsite.audit.empirical.labels import SealedLabels, commitment_to, labels_from
from offsite.secure.errors import ConfigError, PolicyError

KEY = hashlib.sha256(b"a key").digest()
GUESSES, OTHERS = hashlib.sha256(b"guesses").digest(), hashlib.sha256(b"others").digest()


def test_labels_open_only_for_committed_guesses() -> None:
    labels = SealedLabels(KEY, "crowd", 1000)
    with pytest.raises(PolicyError, match="committed before the labels are opened"):
        labels.open(GUESSES)
    labels.bind(GUESSES)
    with pytest.raises(PolicyError, match="committed before the labels are opened"):
        labels.open(OTHERS)
    with pytest.raises(PolicyError, match="the guesses that were committed, not others"):
        labels.bind(OTHERS)
    labels.bind(GUESSES)
    assert labels.open(GUESSES) == KEY


def test_a_commitment_binds_key_name_and_count() -> None:
    bound = {
        commitment_to(key, name, count)
        for key in (KEY, GUESSES)
        for name in ("crowd", "duel")
        for count in (1000, 1001)
    }
    assert len(bound) == 8
    assert SealedLabels(KEY, "duel", 1001).commitment == commitment_to(KEY, "duel", 1001)


def test_labels_are_fair_coins_of_their_key_and_name() -> None:
    """100 000 coins: six standard deviations are 950."""
    first, other = (labels_from(KEY, name, 100_000) for name in ("crowd", "duel"))
    for coins in (first, other, first ^ other, first[1:] ^ first[:-1]):
        assert abs(int(coins.sum()) - len(coins) // 2) < 950
    assert np.array_equal(SealedLabels(KEY, "crowd", 77).for_the_run(), first[:77])


def test_a_label_key_is_never_shown() -> None:
    labels = SealedLabels(KEY, "crowd", 10)
    assert repr(labels) == str(labels) == "SealedLabels('crowd', 10)"
    assert not hasattr(labels, "__dict__")


@pytest.mark.parametrize(("key", "count"), [(KEY[:31], 10), (KEY, 0)])
def test_labels_without_key_or_canary_are_refused(key: bytes, count: int) -> None:
    with pytest.raises(ConfigError, match="expected a key of 32 bytes and 1 canary"):
        SealedLabels(key, "crowd", count)
