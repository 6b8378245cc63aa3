"""What the campaigns in the weather share."""

import os

import pytest


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed here, not the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
