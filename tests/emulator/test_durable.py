"""Durable files: whole or absent, and the owner's alone."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from offsite.emulator.durable import (
    lock_folder,
    private_folder,
    replace_folder,
    sha256_of,
    undo_half_exchange,
    write_atomic,
    write_atomic_parts,
)
from offsite.secure.errors import ConfigError, DiskFullError, MachineError, StateLockedError


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


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_folder_is_replaced_or_stays_whatever_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    folder = folder_with(tmp_path / "bundle", "old")
    new = folder_with(tmp_path / "new", "new")
    renames, real = 0, Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == killed_at:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        replace_folder(new, folder)
    undo_half_exchange(folder)
    assert (folder / "file").read_text() == "old"
    replace_folder(new, folder)
    undo_half_exchange(folder)
    assert (folder / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_cannot_be_replaced_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot write"):
        replace_folder(tmp_path / "gone", tmp_path / "bundle")


def test_a_file_has_one_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"some bytes").digest()


def test_a_folder_has_one_user_and_may_refuse_the_lock(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(StateLockedError):
        lock_folder(tmp_path)
    lock.release()
    (tmp_path / "lock").unlink(missing_ok=True)
    (tmp_path / "lock").mkdir()
    with pytest.raises(MachineError, match="cannot write"):
        lock_folder(tmp_path)


def test_a_private_folder_is_made_or_closed_to_others(tmp_path: Path) -> None:
    new, there = tmp_path / "a" / "b", tmp_path / "there"
    there.mkdir(mode=0o755)
    (there / "file").write_bytes(b"kept")
    for path in (new, there, there):
        private_folder(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (there / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_not_private(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"found mode {mode:o}; .* run `chmod 700 {folder}`"):
        private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_folder_of_somebody_else_is_not_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"found one of user {owner}; choose another folder"):
        private_folder(tmp_path)


def test_a_private_folder_where_a_file_is_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot write"):
        private_folder(tmp_path / "file")


def test_parts_are_written_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert (
        write_atomic_parts(path, (b"one", memoryview(b"two"))) == hashlib.sha256(b"onetwo").digest()
    )
    assert path.read_bytes() == b"onetwo"

    def cut() -> Iterator[bytes]:
        yield b"three"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic_parts(path, cut())
    assert path.read_bytes() == b"onetwo" and list(tmp_path.iterdir()) == [path]
