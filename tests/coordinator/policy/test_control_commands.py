"""`coordinator pause`, `resume`, `abort`, `rollback`, `history` and `status`, typed at a state folder."""

import json
from pathlib import Path

import pytest
from tests.coordinator.owner import run

from offsite.coordinator.policy.eligibility import MIB, Facts
from offsite.coordinator.round_metrics import GATE
from offsite.coordinator.store import Store
from offsite.coordinator.tables.campaigns import FileRef
from offsite.coordinator.tables.clients import CertificateRef
from offsite.secure.errors import ConfigError

NOW = 1_800_000_000.0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A coordinator without a model, and a campaign with one closed round and an open attempt."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    root = tmp_path / "state"
    wanted = ("--set", "policy.least_examples=100")
    made = run("init", "--model", str(tmp_path / "mine"), "--state", str(root), *wanted)
    assert made.exit_code == 0
    with Store(root / "coordinator.sqlite") as store:
        store.clients.add("anna", b"a" * 32, CertificateRef(b"f" * 32, NOW), NOW)
        store.clients.state_facts("anna", Facts("0.1.0", 2048 * MIB))
        row = store.campaigns.create(b"r" * 32, "{}", NOW)
        opened = store.campaigns.open_round(row.campaign_id, 1, NOW)
        file = FileRef("a", b"a" * 32)
        store.campaigns.close_round(opened, file, None, {GATE: 0.6}, NOW + 60)
        store.campaigns.open_round(row.campaign_id, 2, NOW + 60)
    return root


def _typed(state: Path, *words: str) -> dict[str, object]:
    done = run(*words, "--json", "--state", str(state))
    assert done.exit_code == 0
    return dict(json.loads(done.stdout))


def _campaign(state: Path) -> object:
    return _typed(state, "status")["campaign"]


def test_the_owner_pauses_rolls_back_resumes_and_aborts(state: Path) -> None:
    done = _typed(state, "pause", "--reason", "holidays")
    assert (done["stage"], done["changed"]) == ("paused", True)
    assert "round 2 is let end" in str(done["text"])
    assert _campaign(state) == {
        "number": 1,
        "state": "paused",
        "reason": "paused by its owner: holidays",
    }
    assert "attempt at round 2 is given up" in str(_typed(state, "pause", "--now")["text"])
    assert _typed(state, "pause")["changed"] is False
    assert "round 2 starts from round 0" in str(_typed(state, "rollback", "0")["text"])
    assert _typed(state, "resume")["stage"] == "waiting"
    assert _typed(state, "abort", "--reason", "no consent")["stage"] == "aborted"
    assert _campaign(state) == {
        "number": 1,
        "state": "aborted",
        "reason": "aborted by its owner after round 1: no consent",
    }
    with pytest.raises(ConfigError, match="found one that is aborted"):
        run("resume", "--state", str(state))
    document = _typed(state, "history")
    orders, rounds = document["orders"], document["rounds"]
    assert isinstance(orders, list) and isinstance(rounds, list)
    commands = ["pause", "pause", "rollback", "resume", "abort"]
    assert [given["order"] for given in orders] == commands
    assert [r["state"] for r in rounds] == ["closed", "abandoned"]


def test_a_round_that_is_not_closed_cannot_be_gone_back_to(state: Path) -> None:
    with pytest.raises(ConfigError, match="expected a closed round, 1 to 1, or 0"):
        run("rollback", "2", "--state", str(state))
    assert run("rollback", "--state", str(state)).exit_code == 2
    assert run("abort", "--state", str(state)).exit_code == 2  # it wants a reason


def test_history_draws_a_picture_where_it_can(state: Path, tmp_path: Path) -> None:
    plot = tmp_path / "rounds.svg"
    assert _typed(state, "history", "--plot", str(plot))["plot"] == str(plot)
    assert "<svg" in plot.read_text()
    with pytest.raises(ConfigError, match="a folder that exists"):
        run("history", "--plot", str(tmp_path / "nowhere" / "a.svg"), "--state", str(state))
    with pytest.raises(ConfigError, match="campaign 7: there is none"):
        run("history", "--campaign", "7", "--state", str(state))


def test_status_says_what_a_client_states_and_why_it_is_not_asked(state: Path) -> None:
    clients = _typed(state, "status")["clients"]
    assert isinstance(clients, list)
    assert clients[0]["version"] == "0.1.0" and clients[0]["memory_mib"] == 2048
    assert clients[0]["not_asked"] == "100 examples are wanted, nothing stated"


def test_an_order_before_the_first_campaign_is_refused(tmp_path: Path, state: Path) -> None:
    with Store(state / "coordinator.sqlite") as store:
        store.campaigns._database.execute("DELETE FROM rounds")
        store.campaigns._database.execute("DELETE FROM campaigns")
    with pytest.raises(ConfigError, match="`coordinator serve` begins one"):
        run("pause", "--state", str(state))
