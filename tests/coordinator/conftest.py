"""What several tests of the coordinator share."""

import os

import pytest


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that kill the process, not the power; a hundred campaigns need no flushes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
