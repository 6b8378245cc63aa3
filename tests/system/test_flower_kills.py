"""The `flower` engine loses processes in the middle of a round; the campaign ends all the same.

Slow: each starts a real SuperLink and two real SuperNodes, which import much.
"""

import time
from pathlib import Path

import psutil
import pytest
from tests.system.programs import Owner, Program, join, result, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def edges_of(owner: Owner, released: Path, folder: Path) -> list[tuple[str | Path, ...]]:
    return [
        join(owner.token(name), released / f"{name}.jsonl", folder / name) for name in ("a", "b")
    ]


def child_of(program: Program, name: str) -> psutil.Process:
    """The child of Flower that a command has started."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for child in psutil.Process(program._process.pid).children(recursive=True):
            if name in " ".join(child.cmdline()):
                return child
        time.sleep(0.1)
    raise AssertionError(f"no child {name} was started")


def ended_well(owner: Owner) -> list[dict[str, object]]:
    status = result("coordinator", "status", "--state", owner.state)
    assert status["campaign"]["state"] == "ended"  # type: ignore[index]
    rounds = status["rounds"]
    assert isinstance(rounds, list)
    closed = [r for r in rounds if r["state"] == "closed"]
    assert [r["updates"] for r in closed] == [2.0, 2.0]
    return rounds


def test_a_superlink_that_is_killed_comes_back_and_the_round_goes_on(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = edges_of(owner, released, tmp_path)
    serve = owner.serve("tuning.local_steps=40")
    with (
        started(*serve, "--engine", "flower") as coordinator,
        started(*edges[0]) as first,
        started(*edges[1]) as second,
    ):
        first.read_until("tuning, round 1")
        superlink = child_of(coordinator, "flower-superlink")
        assert superlink.environ()["FLWR_TELEMETRY_ENABLED"] == "0"
        listens = {c.laddr.ip for c in superlink.net_connections() if c.status == "LISTEN"}
        assert listens == {"127.0.0.1"}
        superlink.kill()
        assert first.end() == 0, first.text
        assert second.end() == 0, second.text
        assert coordinator.end() == 0, coordinator.text
    ended_well(owner)


def test_a_coordinator_that_is_killed_takes_its_superlink_along_and_goes_on(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = edges_of(owner, released, tmp_path)
    serve = (*owner.serve("tuning.local_steps=40"), "--engine", "flower")
    with started(*edges[0]) as first, started(*edges[1]) as second:
        with started(*serve) as coordinator:
            first.read_until("tuning, round 1")
            superlink = child_of(coordinator, "flower-superlink")
            coordinator.kill()
        superlink.wait(30)
        with started(*serve) as again:
            assert first.end() == 0, first.text
            assert second.end() == 0, second.text
            assert again.end() == 0, again.text
    assert [(r["round"], r["attempt"]) for r in ended_well(owner)] == [(1, 1), (1, 2), (2, 1)]


def test_an_edge_that_is_killed_takes_its_supernode_along_and_comes_back(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    edges = edges_of(owner, released, tmp_path)
    serve = owner.serve("tuning.local_steps=40", "campaign.deadline_s=120")
    with (
        started(*serve, "--engine", "flower") as coordinator,
        started(*edges[1]) as other,
    ):
        with started(*edges[0]) as edge:
            edge.read_until("tuning, round 1")
            supernode = child_of(edge, "flower-supernode")
            edge.kill()
        supernode.wait(30)
        with started(*edges[0]) as again:
            assert again.end() == 0, again.text
        assert other.end() == 0, other.text
        assert coordinator.end() == 0, coordinator.text
    ended_well(owner)
