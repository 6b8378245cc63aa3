"""Limit and ledger belong together: nothing leaves without the limit, and no file but the ledger sets it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.edge_client.privacy.ledgers import data_of

from offsite.edge_client import withdrawal
from offsite.edge_client.data import Data
from offsite.edge_client.inbox import Inbox
from offsite.edge_client.privacy.ledger_folder import ENTRIES, LedgerFolder
from offsite.edge_client.privacy.limit import NAME, PrivacyLimit, PrivacyWish, read_limit
from offsite.edge_client.privacy.opening import LEFT_BEFORE, open_budget, open_ledger
from offsite.edge_client.secure_folder import SecureFolder, taken_of
from offsite.edge_client.state import EdgeState
from offsite.secure.errors import ConfigError, IntegrityError, MachineError
from offsite.secure.privacy.ledger.bodies import LimitSet
from offsite.secure.privacy.units import Unit

DATA = data_of("a", "b", "c")
TERMS = bytes(range(32))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[EdgeState]:
    with EdgeState.open(tmp_path / "edge") as opened:
        yield opened


def joined(
    state: EdgeState, wish: PrivacyWish, data: Data = DATA
) -> tuple[PrivacyLimit | None, list[str]]:
    """The limit that holds after `join`, and what its owner was told."""
    told: list[str] = []
    found = open_budget(state, wish, data, "edge-a", told.append)
    return (None if found is None else found[0]), told


def tuned_plainly(state: EdgeState) -> SecureFolder:
    """An update that was encoded without privacy, one whose reply waits, and one that is half tuned."""
    words = np.ones(4, np.uint32)
    folder = SecureFolder.begin(state.sums, (1, 2, 1), TERMS, b"terms", bytes(32), words)
    inbox = Inbox(state.rounds)
    for name in ("a1", "b2"):
        inbox.of(name).mkdir()
        (inbox.of(name) / "tuning.safetensors").write_bytes(b"plain")
    inbox.write_reply("a1", b"reply")
    return folder


# What was tuned before.


def test_an_update_of_before_the_limit_is_erased_before_the_ledger_begins(state: EdgeState) -> None:
    limit, told = joined(state, PrivacyWish())
    assert limit is None and "no differential privacy" in told[0]
    folder = tuned_plainly(state)
    limit, told = joined(state, PrivacyWish(8.0))
    assert limit == PrivacyLimit(8.0)
    assert not folder.is_there and not (folder.path / "words").exists()
    assert Inbox(state.rounds).under_way() == 0
    # Its sum is given no second update, and its owner knows what the limit does not count.
    assert taken_of(state.sums) is not None
    assert any("is erased" in text for text in told) and LEFT_BEFORE in told
    assert "at most epsilon 8" in told[-1]


def test_what_cannot_be_erased_stops_the_limit_from_being_promised(
    state: EdgeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_plainly(state)
    with monkeypatch.context() as patched:
        patched.setattr(withdrawal, "erase_sums", lambda root: None)
        with pytest.raises(MachineError, match="tuned before"):
            joined(state, PrivacyWish(8.0))
    assert not (state.ledger / ENTRIES).exists() and read_limit(state.root) is None
    joined(state, PrivacyWish(8.0))  # and is still to be done
    assert not SecureFolder.of(state.sums, TERMS).is_there


def test_a_private_update_that_waits_stays_at_later_joins(state: EdgeState) -> None:
    _, told = joined(state, PrivacyWish(8.0))
    assert LEFT_BEFORE not in told and len(told) == 1
    folder = tuned_plainly(state)
    joined(state, PrivacyWish())
    joined(state, PrivacyWish(4.0))
    assert folder.is_there and Inbox(state.rounds).unsent() == ["a1"]


# Whose word counts.


def test_the_limit_of_the_ledger_holds_whatever_the_file_says(state: EdgeState) -> None:
    joined(state, PrivacyWish(3.0, campaign_epsilon=2.0))
    path = state.root / NAME
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps(fields | {"epsilon": 200.0}))
    with pytest.raises(ConfigError, match=r"says at most epsilon 200 .* says at most epsilon 3 "):
        joined(state, PrivacyWish())
    # One flag changes what it says, and takes the rest from the ledger.
    limit, _ = joined(state, PrivacyWish(delta=1e-6))
    assert limit == PrivacyLimit(3.0, 1e-6, 2.0) == read_limit(state.root)
    assert joined(state, PrivacyWish())[0] == limit
    changes = [one for _, one in open_ledger(state, "edge-a").budget.limit_changes]
    assert changes == [LimitSet(3.0, 1e-5, 2.0), LimitSet(3.0, 1e-6, 2.0)]


def test_a_limit_whose_file_is_gone_comes_from_the_ledger(state: EdgeState) -> None:
    joined(state, PrivacyWish(3.0, 1e-6, 2.0))
    (state.root / NAME).unlink()
    with pytest.raises(ConfigError, match="is gone, and this edge has spent"):
        joined(state, PrivacyWish())
    assert joined(state, PrivacyWish(2.5))[0] == PrivacyLimit(2.5, 1e-6, 2.0)


def test_a_kill_before_the_limit_was_written_leaves_it_to_be_written(state: EdgeState) -> None:
    LedgerFolder.open(state.ledger, state.identity_key(), "edge-a", "offsite", lambda: 1e9)
    with pytest.raises(ConfigError, match="give --epsilon"):
        joined(state, PrivacyWish())
    assert joined(state, PrivacyWish(8.0))[0] == PrivacyLimit(8.0)


def test_what_was_spent_on_persons_is_not_gone_on_with_by_rows(state: EdgeState) -> None:
    persons = data_of("a", "b", "c", persons=("x", "x", "y"))
    budget = open_budget(state, PrivacyWish(8.0, person_column="p"), persons, "e", lambda _: None)
    assert budget is not None
    budget[1].data_set(persons, Unit.PERSON)
    (state.root / NAME).unlink()
    with pytest.raises(ConfigError, match="by person, as the ledger has it, found by record"):
        joined(state, PrivacyWish(8.0))
    path = state.root / NAME
    path.write_text(json.dumps({"epsilon": 8.0, "delta": 1e-5}))
    with pytest.raises(ConfigError, match="by person, as the ledger has it"):
        joined(state, PrivacyWish())


# A ledger that is lost.


def test_a_lost_ledger_is_never_begun_anew_where_a_limit_stood(state: EdgeState) -> None:
    joined(state, PrivacyWish(8.0))
    entries = state.ledger / ENTRIES
    whole = entries.read_bytes()
    for wish in (PrivacyWish(), PrivacyWish(8.0)):
        for path in sorted(state.ledger.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        state.ledger.rmdir()
        with pytest.raises(ConfigError, match="restore"):
            joined(state, wish)
        with pytest.raises(ConfigError, match="restore"):
            open_ledger(state, "edge-a")
        assert not state.ledger.exists()
        state.ledger.mkdir()
    entries.write_bytes(whole[:40])  # nor where only its beginning is left
    with pytest.raises(ConfigError, match="is gone"):
        joined(state, PrivacyWish())


def test_a_delta_for_too_few_rows_begins_no_ledger(state: EdgeState) -> None:
    with pytest.raises(ConfigError, match="less than 1/3"):
        joined(state, PrivacyWish(8.0, 0.4))
    assert not state.ledger.exists()


def test_a_changed_ledger_is_refused(state: EdgeState) -> None:
    joined(state, PrivacyWish(8.0))
    path = state.ledger / ENTRIES
    path.write_bytes(path.read_bytes().replace(b'"epsilon":8', b'"epsilon":9'))
    with pytest.raises(IntegrityError, match="without faults"):
        joined(state, PrivacyWish())
