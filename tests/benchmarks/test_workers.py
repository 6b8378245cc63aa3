"""Processes that share the work: nobody works on for a parent that is gone, a failure is named."""

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.emulators.workers import ORPHANED, run_spread

ROOT = Path(__file__).parents[2]
WORKER = """
import threading
from benchmarks.emulators import workers

def fail():
    raise ValueError("broken")

workers.serve({"stuck": threading.Event().wait, "quick": int, "also quick": int, "broken": fail})
"""
COMMAND = [sys.executable, "-c", WORKER]


def test_a_worker_ends_at_once_with_its_parent_even_while_it_works() -> None:
    worker = subprocess.Popen(COMMAND, cwd=ROOT, stdin=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    worker.stdin.write("stuck\n")
    worker.stdin.close()  # as the system does when the parent is gone
    try:
        assert worker.wait(timeout=60) == ORPHANED
    finally:
        worker.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_units_are_done(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.chdir(ROOT)
    done: list[str] = []
    run_spread(["quick", "also quick"], COMMAND, workers, done.append)
    assert sorted(done) == ["also quick", "quick"]


def test_a_unit_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="broken failed"):
        run_spread(["quick", "broken"], COMMAND, 1, lambda name: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_caller_raises_ends_it_and_is_seen(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(ROOT)

    def finished(name: str) -> None:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match="quick"):
        run_spread(["quick", "stuck"][:workers], COMMAND, workers, finished)


def test_a_process_that_is_gone_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="quick failed"):
        run_spread(["quick"], [sys.executable, "-c", ""], 1, lambda name: None)
