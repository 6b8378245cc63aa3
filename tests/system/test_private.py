"""A private edge with real processes: killed again and again, audited by somebody else, and within its limit."""

import json
import random
import time
from pathlib import Path

from tests.system.programs import DEADLINE_S, Owner, join, result, run, started

PRIVATE = ("--epsilon", "8", "--delta", "1e-3")
KILLS = 5


def test_a_private_edge_killed_five_times_stays_within_what_it_reserved(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    """Two rounds of ten steps, `kill -9` at random moments of tuning; the coordinator learns no figure."""
    chance = random.Random(7)
    private = [*join(owner.token("a"), released / "a.jsonl", tmp_path / "a"), *PRIVATE]
    other = join(owner.token("b"), released / "b.jsonl", tmp_path / "b")
    with started(*owner.serve("tuning.local_steps=10")) as coordinator, started(*other) as plain:
        for _ in range(KILLS):
            with started(*private) as edge:
                edge.read_until("tuning, round")
                _wait_for_entries(tmp_path / "a" / "ledger" / "entries", chance.randrange(1, 4))
                edge.kill()
        with started(*private) as edge:
            assert edge.end() == 0, edge.text
        assert plain.end() == 0, plain.text
        assert coordinator.end() == 0, coordinator.text
    # What anybody finds who is given the ledger, and the coordinator's key.
    ledger = tmp_path / "a" / "ledger"
    found = result("privacy-audit", "ledger", ledger)
    (campaign,), (account,) = found["campaigns"], found["data_sets"]  # type: ignore[misc]
    assert found["is_valid"] is True and campaign["is_open"] is False
    assert campaign["assurance"] == "tested_at_start"
    assert 20 <= campaign["spent"] <= campaign["reserved"] == 22
    assert 0 < account["spent"] <= account["spent_and_reserved"] <= 8
    # The last receipt of the coordinator is over all that was spent; it may be gone when the edge
    # closes the campaign.
    receipts = [int(path.name) for path in (ledger / "receipts").iterdir()]
    assert max(receipts) in (found["entries"] - 1, found["entries"])
    # The coordinator heard nothing of it.
    heard = json.dumps(result("coordinator", "status", "--state", owner.state)) + coordinator.text
    assert not any(word in heard for word in ("epsilon", "noise", "privacy", "22", "of 10"))
    assert "privacy: epsilon" in edge.text


def _wait_for_entries(ledger: Path, count: int) -> None:
    """Returns when so many entries were added, which are written before each block and after it."""
    wanted = ledger.read_bytes().count(b"\n") + count
    until = time.monotonic() + DEADLINE_S
    while ledger.read_bytes().count(b"\n") < wanted:
        assert time.monotonic() < until, "no entry was added"


def test_a_limit_that_is_spent_refuses_the_next_campaign(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    """The same edge state and data, a limit too small for the plan: refused, and said to its owner."""
    private = join(owner.token("a"), released / "a.jsonl", tmp_path / "a")
    other = join(owner.token("b"), released / "b.jsonl", tmp_path / "b")
    small = ("--epsilon", "0.001", "--delta", "1e-9")
    with (
        started(*owner.serve()) as coordinator,
        started(*other),
        started(*private, *small) as edge,
    ):
        edge.read_until("steps would fit")
        coordinator.kill()
    budget = result("privacy-audit", "budget", tmp_path / "a" / "ledger")
    assert budget["spent"] == []
    assert "steps would fit" not in coordinator.text


def test_a_wrong_limit_is_named_before_anything_happens(released: Path, tmp_path: Path) -> None:
    for flags, text in (
        (("--delta", "1e-5"), "expected --epsilon"),
        (("--epsilon", "-1"), "--epsilon: expected more than 0"),
        (("--epsilon", "8", "--person-column", "nobody"), "names no person"),
    ):
        done = run(*join("offsite1.abc", released / "a.jsonl", tmp_path / "edge"), *flags)
        assert done.returncode in (3, 4), done.stderr
        assert text in done.stderr or "token" in done.stderr
    assert not (tmp_path / "edge").exists()
