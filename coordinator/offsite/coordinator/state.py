"""The coordinator's state folder: its layout, its lock and how files get into it.

Notable: everything below `keys/` is 0600 inside a 0700 folder, and no file is ever seen half
written (temporary file, fsync, rename). One process serves a state folder at a time and holds its
lock; short commands (`invite`, `status`, `revoke`) open it without the lock, since the database
alone decides between writers.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock

from offsite.emulator.durable import (
    FOLDER_MODE,
    lock_folder,
    private_folder,
    unreadable,
    write_atomic,
)
from offsite.secure.errors import ConfigError


class StateFolder:
    """An opened state folder; a context manager that gives the lock back."""

    def __init__(self, root: Path, lock: FileLock | None) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def create(cls, root: Path) -> Self:
        """Lays out a new folder and opens it exclusively; refuses one that already has keys."""
        if (root / "keys").exists():
            raise ConfigError(f"{root} already holds a coordinator; choose another folder")
        state = cls(root, None)
        for folder in (root, state.keys):
            private_folder(folder)
        return cls.open(root)

    @classmethod
    def open(cls, root: Path, *, exclusive: bool = True) -> Self:
        """Opens an initialised folder; to serve it, it must be this user's alone.

        Raises:
            StateLockedError: another process serves it.
            ConfigError: it holds no coordinator, belongs to somebody else, or others can write it.
        """
        if not (root / "keys").is_dir():
            raise ConfigError(f"no coordinator state in {root}; run `coordinator init` first")
        state = cls(root, None)
        if exclusive:
            for folder in (root, state.keys):
                private_folder(folder)
            state._lock = lock_folder(root)
        for folder in state._data_folders():
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return state

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def config(self) -> Path:
        return self.root / "coordinator.toml"

    @property
    def database(self) -> Path:
        return self.root / "coordinator.sqlite"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def evidence(self) -> Path:
        """What every secure sum was made of."""
        return self.root / "evidence"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def _data_folders(self) -> tuple[Path, ...]:
        return (self.spool, self.adapters, self.reports, self.evidence)

    def read_key(self, name: str) -> bytes:
        """Bytes of a file in `keys/`."""
        try:
            return (self.keys / name).read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.keys / name} is missing; restore it from a backup or run "
                "`coordinator init` with a new folder"
            ) from error
        except OSError as error:
            raise unreadable(self.keys / name, error) from error

    def write_key(self, name: str, data: bytes) -> None:
        write_atomic(self.keys / name, data)
