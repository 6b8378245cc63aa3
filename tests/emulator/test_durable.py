"""Durable files: whole or absent, and the owner's alone."""

import errno
import os
import stat
from pathlib import Path

import pytest

from offsite.emulator.durable import write_atomic
from offsite.secure.errors import DiskFullError


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="free some space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_are_the_owners_whatever_the_umask(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
