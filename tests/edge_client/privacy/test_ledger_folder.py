"""The ledger on disk: synced before anything is done, whole after a crash, never forgotten."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from tests.edge_client.privacy.ledgers import KEY, LIMIT, Steps, data_of, opened, reserved

from offsite.edge_client.privacy import ledger_folder
from offsite.edge_client.privacy.ledger_folder import ENTRIES, LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.secure.errors import (
    ConfigError,
    DiskFullError,
    IntegrityError,
    OverBudgetError,
    PolicyError,
)
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.bodies import (
    Claimed,
    Committed,
    Refused,
)
from offsite.secure.privacy.ledger.budget import Outcome
from offsite.secure.privacy.ledger.verification import verify_ledger
from offsite.secure.privacy.units import Unit

CLAIM = Claimed("c 1", 1, 1, 0, 5, bytes(32))


def begun(root: Path) -> LedgerFolder:
    """A ledger with a limit, data and a campaign of 20 steps."""
    folder = opened(root)
    folder.settle_limit(LIMIT)
    folder.admit(reserved(folder.data_set(data_of("a", "b"), Unit.RECORD)), Steps())
    return folder


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.append(CLAIM)
    folder.append(Committed(4, 5, bytes(32)))
    again = opened(tmp_path)
    assert again.ledger.size == folder.ledger.size == 6
    assert again.ledger.head() == folder.ledger.head()
    assert again.budget.campaigns["c 1"].spent == 5
    assert verify_ledger((tmp_path / ENTRIES).read_bytes(), KEY.public).faults == ()


def test_a_claim_that_a_crash_left_open_is_charged_whole(tmp_path: Path) -> None:
    begun(tmp_path).append(CLAIM)
    campaign = opened(tmp_path).budget.campaigns["c 1"]
    assert (campaign.spent, campaign.charged, campaign.next_step) == (5, 5, 5)
    again = opened(tmp_path)  # once, and not at every start
    assert again.budget.campaigns["c 1"] == campaign
    assert [claim.outcome for claim in again.budget.claims.values()] == [Outcome.CHARGED]


@pytest.mark.parametrize("cut", [2, 30, 200])
def test_a_line_that_a_crash_cut_is_removed_and_all_before_it_stays(
    tmp_path: Path, cut: int
) -> None:
    begun(tmp_path).append(CLAIM)
    path = tmp_path / ENTRIES
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = opened(tmp_path)
    assert again.budget.campaigns["c 1"].spent == 0  # nothing had been done because of it
    assert path.read_bytes() == whole[: whole[:-1].rindex(b"\n") + 1]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_leaves_what_was_there_and_stops_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = begun(tmp_path)
    before = (tmp_path / ENTRIES).read_bytes()

    def fail(descriptor: int, data: bytes = b"") -> int:
        if data:
            real_write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    real_write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(ledger_folder.os, failing, fail)
        with pytest.raises(DiskFullError):
            folder.append(CLAIM)
    with pytest.raises(PolicyError, match="start again"):
        folder.append(CLAIM)
    again = opened(tmp_path)
    assert again.budget.campaigns["c 1"].spent == 0
    assert (tmp_path / ENTRIES).read_bytes() == before


def test_a_short_write_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real_write = begun(tmp_path), os.write
    before = (tmp_path / ENTRIES).read_bytes()
    monkeypatch.setattr(ledger_folder.os, "write", lambda d, data: real_write(d, data[:10]))
    with pytest.raises(DiskFullError, match="free some space"):
        folder.append(CLAIM)
    assert (tmp_path / ENTRIES).read_bytes() == before


def test_a_refused_campaign_is_an_entry_and_costs_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path)  # 2.0 of 8 are reserved
    data_set = next(iter(folder.budget.data_sets))
    with pytest.raises(OverBudgetError, match="60 of 70 steps would fit"):
        folder.admit(reserved(data_set, 70, "c 2"), Steps())
    entry = verify_ledger((tmp_path / ENTRIES).read_bytes(), KEY.public).records[-1].entry
    assert isinstance(entry.body, Refused) and entry.body.steps_that_fit == 60
    folder.admit(reserved(data_set, 60, "c 3"), Steps())


def test_overlapping_data_share_their_budget(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    other = folder.data_set(data_of("b", "c"), Unit.RECORD)
    apart = folder.data_set(data_of("d"), Unit.RECORD)
    assert folder.data_set(data_of("c", "b"), Unit.RECORD) == other
    assert len(folder.budget.family(other)) == 2 and len(folder.budget.family(apart)) == 1
    with pytest.raises(OverBudgetError):
        folder.admit(reserved(other, 61, "c 2"), Steps())
    folder.admit(reserved(apart, 80, "c 3"), Steps())


def test_a_limit_is_written_when_it_changes(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    size = folder.ledger.size
    folder.settle_limit(LIMIT)
    assert folder.ledger.size == size
    folder.settle_limit(PrivacyLimit(3.0, 1e-5))
    assert folder.ledger.size == size + 1
    found = folder.budget.limits[None]
    assert found.epsilon == 3.0


@pytest.mark.parametrize("name", ["entries", "salt"])
def test_a_ledger_that_lost_a_file_is_refused(tmp_path: Path, name: str) -> None:
    begun(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="restore"):
        opened(tmp_path)


@pytest.mark.parametrize("cut", [b"", b'{"body":{"own'])
def test_a_ledger_whose_first_entry_was_cut_begins_anew(tmp_path: Path, cut: bytes) -> None:
    opened(tmp_path)
    (tmp_path / ENTRIES).write_bytes(cut)
    assert opened(tmp_path).ledger.size == 1


@pytest.mark.parametrize("left", ["receipts/3", "proofs/a.json", "audits/a.json", "receipt"])
def test_a_lost_ledger_is_not_taken_for_a_new_one(tmp_path: Path, left: str) -> None:
    opened(tmp_path)
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    (tmp_path / ENTRIES).unlink()
    with pytest.raises(ConfigError, match="is gone"):
        opened(tmp_path)


def test_digests_that_are_gone_or_changed_are_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    path = next((tmp_path / "data").iterdir())
    stored = path.read_bytes()
    path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="record digests"):
        folder.data_set(data_of("x"), Unit.RECORD)
    path.unlink()
    with pytest.raises(ConfigError, match="is gone"):
        folder.data_set(data_of("x"), Unit.RECORD)


def test_another_salt_or_another_key_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    copy = Path(shutil.copytree(tmp_path, tmp_path.with_name("copy")))
    (copy / "salt").write_bytes(bytes(range(32)))
    with pytest.raises(ConfigError, match="not that of the ledger"):
        opened(copy)
    with pytest.raises(IntegrityError):
        opened(tmp_path, IdentityKey.from_seed(bytes(32)))


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / ENTRIES
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="without faults"):
        opened(tmp_path)


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    begun(tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}
