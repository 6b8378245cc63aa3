"""Twenty kills of real processes, who and where by a seed; then the campaign ends as it should."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.system.programs import Owner, Program, join, result

KILLS = 20
ROUNDS = KILLS + 4
"""A kill waits for a line of the next round at most."""
POINTS = {
    "coordinator": ("instructions", "serving release"),
    "a": ("tuning, round", "adding the masked update to the sum"),
    "b": ("tuning, round", "adding the masked update to the sum"),
}
"""Lines after which a process is killed."""


@pytest.mark.slow  # about ten minutes: twenty starts of a command that imports torch
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1])
def test_twenty_kills_of_processes_lose_nothing(
    seed: int, owner: Owner, released: Path, tmp_path: Path
) -> None:
    commands = {
        name: join(owner.token(name), released / f"{name}.jsonl", tmp_path / name)
        for name in ("a", "b")
    }
    settings = (f"campaign.rounds={ROUNDS}", "campaign.phase_s=600", "gate.questions=")
    commands["coordinator"] = owner.serve(*settings)
    running = {name: Program(*command) for name, command in commands.items()}
    drawn, killed = random.Random(seed), Counter[str]()
    try:
        for _ in range(KILLS):
            name = drawn.choice(sorted(running))
            running[name].read_until(drawn.choice(POINTS[name]))
            running[name].kill()
            killed[name] += 1
            running[name] = Program(*commands[name])
        for name in ("a", "b", "coordinator"):
            assert running[name].end() == 0, running[name].text
    finally:
        for program in running.values():
            program.kill()
    assert killed.total() == KILLS
    status = result("coordinator", "status", "--state", owner.state)
    rounds = status["rounds"]
    assert isinstance(rounds, list)
    closed = [r for r in rounds if r["state"] == "closed"]
    assert [r["round"] for r in closed] == list(range(1, ROUNDS + 1))
    assert {r["updates"] for r in closed} == {2.0}, json.dumps(closed)
    assert not list((owner.state / "spool").iterdir())
