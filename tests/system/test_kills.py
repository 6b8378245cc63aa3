"""Killed like in a power cut, at the worst moments; the same command then finishes the job."""

import signal
from pathlib import Path

from tests.system.programs import Owner, join, result, started


def _ended_well(owner: Owner, rounds: int = 2) -> None:
    status = result("coordinator", "status", "--state", owner.state)
    assert status["campaign"]["state"] == "ended"  # type: ignore[index]
    found = status["rounds"]
    assert isinstance(found, list)
    closed = [r for r in found if r["state"] == "closed"]
    assert [r["updates"] for r in closed] == [2.0] * rounds


def test_an_edge_killed_while_fetching_resumes(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    with started(*owner.serve()) as coordinator:
        coordinator.read_until("serving release")
        with started(*edges[0]) as edge:
            edge.read_until("fetching bytes")
            coordinator.signal(signal.SIGSTOP)  # nothing more can arrive
            edge.kill()
            coordinator.signal(signal.SIGCONT)
        assert not (tmp_path / "a" / "bundle").exists()
        with started(*edges[0]) as again, started(*edges[1]) as other:
            assert again.end() == 0, again.text
            assert other.end() == 0, other.text
        assert coordinator.end() == 0, coordinator.text
    _ended_well(owner)


def test_an_edge_killed_while_tuning_resumes(owner: Owner, released: Path, tmp_path: Path) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    with (
        started(*owner.serve("tuning.local_steps=40")) as coordinator,
        started(*edges[1]) as other,
    ):
        with started(*edges[0]) as edge:
            edge.read_until("tuning, round 1")
            edge.kill()
        assert list((tmp_path / "a" / "rounds").glob("*/instruction"))
        with started(*edges[0]) as again:
            assert again.end() == 0, again.text
        assert other.end() == 0, other.text
        assert coordinator.end() == 0, coordinator.text
    _ended_well(owner)


def test_an_edge_killed_in_the_middle_of_a_sum_goes_on_with_it(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    with started(*owner.serve()) as coordinator, started(*edges[1]) as other:
        with started(*edges[0]) as edge:
            edge.read_until("adding the masked update to the sum")
            edge.kill()
        assert list((tmp_path / "a" / "secure").glob("*/words"))
        with started(*edges[0]) as again:
            assert again.end() == 0, again.text
        assert "tuning, round 1" not in again.text
        assert other.end() == 0, other.text
        assert coordinator.end() == 0, coordinator.text
    _ended_well(owner)
    assert [p.name for p in (tmp_path / "a" / "secure").iterdir()] == ["taken"]


def test_a_coordinator_killed_during_a_round_goes_on_with_it(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    serve = owner.serve("tuning.local_steps=40")
    with started(*edges[0]) as first, started(*edges[1]) as second:
        with started(*serve) as coordinator:
            coordinator.read_until("round 1: sent 2 instructions")
            coordinator.kill()
        with started(*serve) as again:
            again.read_until("round 1: found 2 instructions")
            assert first.end() == 0, first.text
            assert second.end() == 0, second.text
            assert again.end() == 0, again.text
    _ended_well(owner)


def test_a_stopped_coordinator_says_that_the_same_command_continues(owner: Owner) -> None:
    # SIGTERM, for SIGINT is ignored by whatever a shell starts in the background.
    with started(*owner.serve()) as coordinator:
        coordinator.read_until("serving release")
        coordinator.signal(signal.SIGTERM)
        assert coordinator.end() == 130
        assert "the same command can be run again" in coordinator.text
