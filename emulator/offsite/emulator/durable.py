"""Files that are never seen half written, folders that one process uses at a time.

Rules: temporary file, fsync, rename, fsync of the folder; mode 0600; what the operating system
refuses is an error of ours that says what to do. Both roles keep their state with these.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from offsite.secure.errors import ConfigError, DiskFullError, MachineError, StateLockedError

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_OTHERS_MAY_WRITE: Final = 0o022
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, mode 0600, durable, either wholly or not at all."""
    write_atomic_parts(path, (data,))


def write_atomic_parts(path: Path, parts: Iterable[bytes | memoryview]) -> bytes:
    """`write_atomic` of all parts in order, each in memory only while it is written.

    Returns the SHA-256 of the file. What raises while parts are made leaves nothing behind.
    """
    digest = hashlib.sha256()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise machine_error(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest.digest()


def private_folder(path: Path) -> None:
    """Makes `path` a folder of this user alone, mode 0700; one that is there keeps its content.

    Looked at and changed through one descriptor, so that it cannot be exchanged in between.

    Raises:
        ConfigError: somebody else owns the folder, or could have put files into it.
        MachineError: it cannot be made or opened.
    """
    with machine_errors(path):
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _check_private(path, os.fstat(descriptor))
            os.fchmod(descriptor, FOLDER_MODE)
        finally:
            os.close(descriptor)


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: expected a folder of this user (id {os.geteuid()}), found one of user "
            f"{found.st_uid}; choose another folder, or run this as its owner"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS_MAY_WRITE:
        raise ConfigError(
            f"{path}: expected a folder that nobody else can write, found mode {mode:o}; make sure "
            f"that what is in it is yours, then run `chmod 700 {path}`, or choose another folder"
        )


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, folder: Path) -> None:
    """Puts `new` in the place of `folder`; the earlier one survives a kill at any moment.

    Two renames, for a folder cannot be replaced in one; `undo_half_exchange` takes the first back
    if the second never happened.
    """
    previous = _previous(folder)
    with machine_errors(folder):
        if folder.exists():
            folder.rename(previous)
        new.rename(folder)
        sync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def undo_half_exchange(folder: Path) -> None:
    """Called before `folder` is looked at: ends what a kill inside `replace_folder` left."""
    previous = _previous(folder)
    if previous.exists() and not folder.exists():
        with machine_errors(folder):
            previous.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + ".previous")


def sha256_of(path: Path) -> bytes:
    """The digest of a file of any size; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def lock_folder(root: Path) -> FileLock:
    """Takes the folder's lock at once.

    Raises:
        StateLockedError: another process has it.
        MachineError: no file can be made in the folder.
    """
    lock = FileLock(root / "lock", timeout=0, thread_local=False, mode=FILE_MODE)
    try:
        lock.acquire()
    except Timeout as error:
        raise StateLockedError(
            f"another process uses {root}; stop it first or choose another state folder"
        ) from error
    except OSError as error:  # after Timeout, which is one
        raise machine_error(root / "lock", error) from error
    return lock


def is_disk_full(error: OSError) -> bool:
    """Whether there was no room."""
    return error.errno in _DISK_FULL


def machine_error(path: Path, error: OSError) -> MachineError:
    """What the operating system said, as an error of ours."""
    if is_disk_full(error):
        return DiskFullError(f"no room to write {path}; free some space and run it again")
    return MachineError(f"cannot write {path}: {error.strerror or error}")


def unreadable(path: Path, error: OSError) -> MachineError:
    """The same for a file that was to be read."""
    return MachineError(f"cannot read {path}: {error.strerror or error}")


@contextlib.contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Whatever the operating system refuses inside becomes an error about `path`."""
    try:
        yield
    except OSError as error:
        raise machine_error(path, error) from error
