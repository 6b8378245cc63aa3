"""The owner steps in while real processes run: pause, rollback, resume, abort, and looking back."""

from pathlib import Path

from tests.system.programs import Owner, join, result, run, started


def _order(owner: Owner, *words: str) -> dict[str, object]:
    return result("coordinator", *words, "--state", owner.state)


def _stage(owner: Owner) -> object:
    campaign = result("coordinator", "status", "--state", owner.state)["campaign"]
    assert isinstance(campaign, dict)
    return campaign["state"]


def test_a_campaign_is_paused_rolled_back_resumed_and_its_history_drawn(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    with (
        started(*owner.serve("tuning.local_steps=40")) as coordinator,
        started(*edges[0]) as first,
        started(*edges[1]) as second,
    ):
        # The attempt at round 2 is given up while the edges tune.
        coordinator.read_until("round 2: sent 2 instructions")
        first.read_until("tuning, round 2")
        done = _order(owner, "pause", "--now", "--reason", "holidays")
        assert (done["stage"], done["changed"]) == ("paused", True)
        coordinator.read_until("paused by its owner: holidays")
        first.read_until("the campaign is paused by its owner: holidays")
        assert _stage(owner) == "paused"
        assert _order(owner, "rollback", "0")["changed"] is True
        refused = run("coordinator", "rollback", "2", "--state", owner.state)
        assert refused.returncode == 3 and "expected a closed round, 1 to 1" in refused.stderr
        assert _order(owner, "resume")["stage"] == "running"
        assert first.end() == 0, first.text
        assert second.end() == 0, second.text
        assert coordinator.end() == 0, coordinator.text
    plot = tmp_path / "history.svg"
    history = _order(owner, "history", "--plot", str(plot))
    assert history["stage"] == "ended" and plot.read_text().lstrip().startswith("<?xml")
    attempts = history["rounds"]
    assert isinstance(attempts, list)
    states = [(a["round"], a["attempt"], a["state"]) for a in attempts]
    assert states == [(1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "closed")]
    orders = history["orders"]
    assert isinstance(orders, list)
    assert [given["order"] for given in orders] == ["pause", "rollback", "resume"]


def test_an_aborted_campaign_ends_coordinator_and_edges_and_is_exported(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    with (
        started(*owner.serve("tuning.local_steps=40")) as coordinator,
        started(*edges[0]) as first,
        started(*edges[1]) as second,
    ):
        coordinator.read_until("round 2: sent 2 instructions")
        assert _order(owner, "abort", "--reason", "no consent")["stage"] == "aborted"
        assert coordinator.end() == 0, coordinator.text
        for edge in (first, second):
            assert edge.end() == 0, edge.text
            assert "aborted by its owner after round 1: no consent" in edge.text
    again = run(*owner.serve("tuning.local_steps=40"))
    assert again.returncode == 0 and "aborted by its owner" in again.stdout, again.stderr
    exported = run("coordinator", "export", "--state", owner.state)
    assert exported.returncode == 0, exported.stderr


def test_an_order_to_a_campaign_that_is_not_there_is_refused(owner: Owner) -> None:
    done = run("coordinator", "pause", "--state", owner.state)
    assert done.returncode == 3 and "`coordinator serve` begins one" in done.stderr
