"""Stopped by a signal in the middle of a round; the same command then finishes the job."""

import signal
import time
from pathlib import Path

import pytest
from tests.system.programs import Owner, join, result, started

LONGEST_S = 10.0
"""What `docs/architecture.md` promises to whoever supervises a process."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_sides_stopped_during_a_round_go_on_with_it(
    owner: Owner, released: Path, tmp_path: Path, number: signal.Signals
) -> None:
    edges = [
        join(owner.token(name), released / f"{name}.jsonl", tmp_path / name) for name in ("a", "b")
    ]
    serve = owner.serve("tuning.local_steps=40")
    with started(*edges[1]) as second:
        with started(*edges[0]) as first, started(*serve) as coordinator:
            first.read_until("tuning, round 1")
            for program in (first, coordinator):
                before = time.monotonic()
                program.signal(number)
                assert program.end() == 130, program.text
                assert time.monotonic() - before <= LONGEST_S  # the one time that is promised
                assert "the same command can be run again" in program.text
        with started(*edges[0]) as first, started(*serve) as coordinator:
            coordinator.read_until("round 1: found 2 instructions")
            for program in (first, second, coordinator):
                assert program.end() == 0, program.text
    status = result("coordinator", "status", "--state", owner.state)
    found = status["rounds"]
    assert isinstance(found, list)
    assert [(r["attempt"], r["updates"]) for r in found if r["state"] == "closed"] == [(1, 2.0)] * 2
