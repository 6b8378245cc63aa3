"""The database: durable, one transaction per decision, shared by threads and processes."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from offsite.coordinator.store import Store
from offsite.coordinator.tables.campaigns import CampaignState, FileRef, RoundState
from offsite.coordinator.tables.clients import CertificateRef, ClientStatus
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.messages import MessageRow
from offsite.secure import names
from offsite.secure.errors import (
    ConfigError,
    DiskFullError,
    IntegrityError,
    MachineError,
    PeerError,
)

NOW = 1_800_000_000.0
CERTIFICATE = CertificateRef(b"f" * 32, NOW + 10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def message(message_id: str, client_id: str = "a", created_unix_s: float = NOW) -> MessageRow:
    return MessageRow(
        message_id, 1, "1.1", client_id, 10, b"d" * 32, created_unix_s, created_unix_s + 60
    )


def add_clients(store: Store, *client_ids: str) -> None:
    for client_id in client_ids:
        store.clients.add(client_id, client_id.encode() * 32, CERTIFICATE, NOW)


def test_what_was_committed_is_there_after_a_reopen(store: Store, tmp_path: Path) -> None:
    add_clients(store, "a")
    with Store(tmp_path / "store.sqlite") as again:
        assert again.clients.all() == store.clients.all()


def test_the_database_is_durable_and_private(store: Store, tmp_path: Path) -> None:
    database = store._database
    assert database.row("PRAGMA journal_mode")[0] == "wal"
    assert database.row("PRAGMA synchronous")[0] == 2  # FULL
    assert (tmp_path / "store.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.transaction():
        add_clients(store, "a")
        with store.transaction():
            add_clients(store, "b")
        raise KeyError
    assert store.clients.all() == []
    add_clients(store, "a")


def test_a_decision_is_read_and_written_without_another_process_between(
    store: Store, tmp_path: Path
) -> None:
    raw = sqlite3.connect(tmp_path / "store.sqlite", timeout=0, isolation_level=None)
    with store.transaction():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            raw.execute("BEGIN IMMEDIATE")
        assert store.clients.all() == []
    raw.execute("BEGIN IMMEDIATE")
    raw.close()


def test_a_database_of_a_newer_program_is_refused(store: Store, tmp_path: Path) -> None:
    store.close()
    raw = sqlite3.connect(tmp_path / "store.sqlite")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(ConfigError, match="format 99"):
        Store(tmp_path / "store.sqlite")


def test_a_full_disk_loses_nothing_that_was_accepted(store: Store) -> None:
    add_clients(store, "a")
    database = store._database
    pages = database.row("PRAGMA page_count")[0]
    database.row(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="free some space"):
        store.campaigns.create(b"r" * 32, "x" * 100_000, NOW)
    assert [client.client_id for client in store.clients.all()] == ["a"]
    assert store.campaigns.current() is None
    database.row("PRAGMA max_page_count = 1000000")
    assert store.campaigns.create(b"r" * 32, "x" * 100_000, NOW).campaign_id == 1


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(MachineError, match="cannot be used"):
        Store(tmp_path / "store.sqlite")


def test_threads_and_handles_write_one_after_another(store: Store, tmp_path: Path) -> None:
    add_clients(store, "a")
    with Store(tmp_path / "store.sqlite") as other:

        def fill(handle: Store, prefix: str) -> None:
            for number in range(20):
                handle.messages.add([message(f"{prefix}{number}")])

        handles = [(store, "x"), (store, "y"), (other, "z")]
        threads = [threading.Thread(target=fill, args=each) for each in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(other.messages.ids()) == 60


def test_a_client_keeps_its_row_when_it_is_revoked(store: Store) -> None:
    add_clients(store, "a", "b")
    store.clients.touch("a", "tuning" * 100, NOW + 1)
    store.clients.revoke("a", "left", NOW + 2)
    revoked = store.clients.get("a")
    assert revoked is not None
    assert (revoked.status, revoked.reason) == (ClientStatus.REVOKED, "left")
    assert (revoked.last_seen_unix_s, len(revoked.doing)) == (NOW + 1, 200)
    assert [client.client_id for client in store.clients.active()] == ["b"]
    assert store.clients.by_node(names.node_id("b")) == store.clients.get("b")


def test_what_a_client_says_of_itself_is_kept_printable(store: Store) -> None:
    add_clients(store, "a")
    store.clients.touch("a", "tuning\x1b[2J\nround \u202e1 [/x]", NOW)
    row = store.clients.get("a")
    assert row is not None and row.doing == "tuning [2J round  1 [/x]"


def test_the_messages_of_a_campaign_are_withdrawn_together(store: Store) -> None:
    add_clients(store, "a")
    store.messages.add([message("m1"), message("m2")])
    store.messages.delete_run(2)
    assert store.messages.ids() == ["m1", "m2"]
    store.messages.delete_run(1)
    assert store.messages.ids() == []


def test_messages_come_oldest_first_until_they_are_answered(store: Store) -> None:
    add_clients(store, "a", "b")
    store.messages.add([message("m2", created_unix_s=NOW + 1), message("m1"), message("m3", "b")])
    assert [row.message_id for row in store.messages.unanswered("a")] == ["m1", "m2"]
    store.messages.accept_reply("m1", 5, b"r" * 32)
    assert [row.message_id for row in store.messages.unanswered("a")] == ["m2"]
    answered = store.messages.get("m1")
    assert answered is not None
    assert (answered.reply_size_bytes, answered.reply_sha256) == (5, b"r" * 32)
    assert len(store.messages.of_group(1, "1.1")) == 3
    store.messages.delete_within(1, "1.1")
    assert store.messages.ids() == []


def test_the_first_accepted_reply_stays(store: Store) -> None:
    add_clients(store, "a")
    store.messages.add([message("m1")])
    store.messages.accept_reply("m1", 5, b"r" * 32)
    store.messages.accept_reply("m1", 5, b"r" * 32)
    with pytest.raises(IntegrityError, match="another reply"):
        store.messages.accept_reply("m1", 5, b"x" * 32)
    with pytest.raises(PeerError, match="unknown"):
        store.messages.accept_reply("m9", 5, b"r" * 32)
    kept = store.messages.get("m1")
    assert kept is not None and kept.reply_sha256 == b"r" * 32


def test_instructions_of_a_round_are_put_together_or_not_at_all(store: Store) -> None:
    add_clients(store, "a")
    with pytest.raises(sqlite3.IntegrityError):
        store.messages.add([message("m1"), message("m2", "nobody")])
    assert store.messages.ids() == []


def test_a_round_is_closed_once_and_remembered(store: Store) -> None:
    campaign = store.campaigns.create(b"r" * 32, "{}", NOW)
    assert campaign.state is CampaignState.WAITING
    opened = store.campaigns.open_round(campaign.campaign_id, 1, NOW)
    store.campaigns.set_plan(opened, b"plan")
    found = store.campaigns.open_attempt(campaign.campaign_id)
    assert found is not None and found.plan == b"plan"
    adapter = FileRef("adapters/1.safetensors", b"a" * 32)
    store.campaigns.close_round(opened, adapter, None, {"acc": 0.5}, NOW + 1)
    closed = store.campaigns.last_closed(campaign.campaign_id)
    assert closed is not None
    assert (closed.adapter, closed.strategy, closed.metrics) == (adapter, None, {"acc": 0.5})
    with pytest.raises(MachineError, match="not open"):
        store.campaigns.close_round(opened, adapter, None, {}, NOW + 2)
    with pytest.raises(MachineError, match="already closed"):
        store.campaigns.open_round(campaign.campaign_id, 1, NOW + 2)


def test_a_new_attempt_abandons_the_open_one(store: Store) -> None:
    campaign_id = store.campaigns.create(b"r" * 32, "{}", NOW).campaign_id
    first = store.campaigns.open_round(campaign_id, 1, NOW)
    second = store.campaigns.open_round(campaign_id, 1, NOW + 1)
    assert (first.attempt, second.attempt) == (1, 2)
    store.campaigns.abandon_round(second, {"replies": 0.0}, NOW + 2)
    states = [row.state for row in store.campaigns.rounds(campaign_id)]
    assert states == [RoundState.ABANDONED, RoundState.ABANDONED]
    assert store.campaigns.open_attempt(campaign_id) is None
    assert store.campaigns.last_closed(campaign_id) is None


def test_the_newest_campaign_is_the_current_one(store: Store) -> None:
    assert store.campaigns.current() is None
    first = store.campaigns.create(b"r" * 32, "{}", NOW)
    store.campaigns.set_state(first.campaign_id, CampaignState.FAILED, NOW + 1, "no clients")
    current = store.campaigns.current()
    assert current is not None
    assert (current.state, current.reason) == (CampaignState.FAILED, "no clients")
    assert store.campaigns.create(b"r" * 32, "{}", NOW).campaign_id == 2


def test_invites_and_nonces(store: Store) -> None:
    store.invites.add(b"t" * 16, "a", b"k" * 32, NOW, NOW + 10)
    assert store.invites.add_nonce(b"n" * 32, b"t" * 16, NOW + 60, NOW) == 1
    assert not store.invites.take_nonce(b"n" * 32, b"u" * 16, NOW)
    assert not store.invites.take_nonce(b"n" * 32, b"t" * 16, NOW + 61)
    assert store.invites.take_nonce(b"n" * 32, b"t" * 16, NOW)
    assert not store.invites.take_nonce(b"n" * 32, b"t" * 16, NOW)
    store.invites.count_wrong_proof(b"t" * 16)
    store.invites.mark_used(b"t" * 16, b"i" * 32, NOW)
    invite = store.invites.get(b"t" * 16)
    assert invite is not None
    assert (invite.wrong_proofs, invite.used_by, invite.used_unix_s) == (1, b"i" * 32, NOW)
    # A used invitation is a record; only unused ones are replaced.
    store.invites.add(b"v" * 16, "a", b"k" * 32, NOW, NOW + 10)
    assert [row.token_id for row in store.invites.all()] == [b"t" * 16, b"v" * 16]


def test_a_statement_that_is_wrong_is_not_hidden(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.execute("INSERT INTO nowhere VALUES (1)")
    database.close()
