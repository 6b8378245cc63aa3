"""The data owner's privacy ledger on disk: what was reserved, claimed and spent, before it happens.

    ledger/entries        one signed line an entry; it only grows         `privacy.ledger.chain`
    ledger/salt           32 random bytes under which records are digested; never leaves
    ledger/data/<name>    the digests of one data set's records            `privacy.ledger.data_sets`
    ledger/receipt        the last checkpoint that the coordinator counter-signed
    ledger/receipts/<n>   every one of them, by the number of entries

Rules: a line is written and synced before anything that it says is done. A line that could not be
written whole is cut off again, and this object takes no more. What a crash left behind is settled when
the folder is opened: a cut line is removed (nothing was done because of it), a claim without an end is
charged whole. A folder that lost its entries, or holds other ones, is refused: forgetting is
spending twice.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from offsite.edge_client.data import Data
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.row_content import content
from offsite.emulator.durable import (
    FILE_MODE,
    machine_error,
    private_folder,
    sync_folder,
    write_atomic,
)
from offsite.secure.errors import ConfigError, MachineError, OverBudgetError, PolicyError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.accountants import Accounting
from offsite.secure.privacy.ledger.admission import (
    Admission,
    Use,
    refusal,
)
from offsite.secure.privacy.ledger.bodies import (
    Body,
    DataSetAdded,
    Opened,
    Reserved,
)
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.ledger.chain import Record
from offsite.secure.privacy.ledger.data_sets import (
    SALT_BYTES,
    RecordDigests,
    overlaps,
    salt_commitment,
)
from offsite.secure.privacy.ledger.entries import SALT_BYTES as ENTRY_SALT_BYTES
from offsite.secure.privacy.ledger.ledger import Ledger
from offsite.secure.privacy.units import Adjacency, Unit

ENTRIES: Final = "entries"
RECEIPT: Final = "receipt"
_KEEP_APART: Final = (
    "a ledger that is gone or changed would forget what was spent; restore {path} from a backup"
)


@dataclass(slots=True)
class LedgerFolder:
    """An opened ledger. One process has it: the state folder's lock is this folder's, too."""

    root: Path
    key: IdentityKey = field(repr=False)
    clock: Callable[[], float]
    ledger: Ledger
    salt: bytes = field(repr=False)
    _is_broken: bool = False

    @classmethod
    def open(
        cls,
        root: Path,
        key: IdentityKey,
        owner: str,
        software: str,
        clock: Callable[[], float],
        *,
        is_expected: bool = False,
    ) -> Self:
        """The ledger in a folder; a new one where there is none yet.

        Args:
            key: the edge's identity key, which signs every entry.
            owner: a pseudonym of the data owner.
            software: name and version of this program, for the first entry.
            is_expected: something else says that there was one; then none is begun.

        Raises:
            IntegrityError: the entries are damaged; nothing may be spent.
            ConfigError: entries and salt do not belong together, or one is gone.
        """
        path = root / ENTRIES
        if is_expected and not is_begun(root):
            raise ConfigError(f"{path} is gone; " + _advice(root))
        for folder in (root, root / "data", root / "receipts"):
            private_folder(folder)
        if not is_begun(root):
            # None yet, or one whose very first entry a full disk or a crash cut.
            path.unlink(missing_ok=True)
            return cls._create(root, key, owner, software, clock)
        if not path.exists():
            raise ConfigError(f"{path} is gone; " + _advice(root))
        ledger, whole = cls._read(root, key, clock)
        if whole is not None:
            write_atomic(path, whole)
        for charge in ledger.ledger.charges:
            ledger.append(charge)
        return ledger

    @classmethod
    def look(cls, root: Path, key: IdentityKey, clock: Callable[[], float]) -> Self:
        """The ledger that is in a folder, to be read: it takes no entry, and nothing is written.

        Raises as `open` does.
        """
        ledger, _ = cls._read(root, key, clock)
        ledger._is_broken = True
        return ledger

    @classmethod
    def _read(
        cls, root: Path, key: IdentityKey, clock: Callable[[], float]
    ) -> tuple[Self, bytes | None]:
        """The ledger, and the bytes that its file should have, if a crash left others."""
        data, receipt = _read(root / ENTRIES), root / RECEIPT
        receipts = [_read(receipt)] if receipt.exists() else []
        found, whole = Ledger.read(data, key.public, receipts)
        salt = _read(root / "salt")
        opened = found.budget.opened
        if opened is None or opened.record_salt_sha256 != salt_commitment(salt):
            raise ConfigError(f"{root / 'salt'} is not that of the ledger; " + _advice(root))
        return cls(root, key, clock, found, salt), None if whole == data else whole

    @classmethod
    def _create(
        cls,
        root: Path,
        key: IdentityKey,
        owner: str,
        software: str,
        clock: Callable[[], float],
    ) -> Self:
        # A ledger begins with its first entry, so a salt without one belongs to nothing yet.
        salt = secrets.token_bytes(SALT_BYTES)
        write_atomic(root / "salt", salt)
        folder = cls(root, key, clock, Ledger(), salt)
        folder.append(Opened(owner, key.public.raw, salt_commitment(salt), software))
        return folder

    @property
    def budget(self) -> Budget:
        """What the entries add up to."""
        return self.ledger.budget

    def append(self, body: Body) -> Record:
        """Adds an entry; it is on the disk when this returns.

        Raises:
            PolicyError: it breaks a rule of the ledger; nothing was written.
            MachineError: it cannot be written; nothing may be done that it would have said.
        """
        self._require_whole()
        record = self.ledger.append(body, self.key, self.clock(), _entry_salt())
        self._write(record)
        return record

    def admit(self, use: Use, accounting: Accounting) -> Admission:
        """Adds a reservation, or a refusal.

        Raises:
            OverBudgetError: a limit forbids it; says how many steps would fit.
        """
        self._require_whole()
        try:
            record, admission = self.ledger.admit(
                use, accounting, self.key, self.clock(), _entry_salt()
            )
        except OverBudgetError as error:
            if isinstance(use, Reserved):
                self.append(refusal(use, error))
            raise
        self._write(record)
        return admission

    def settle_limit(self, limit: PrivacyLimit) -> None:
        """Writes the owner's limit down, unless it stands there already."""
        if self.budget.limits.get(None) != limit.stated:
            self.append(limit.stated)

    def data_set(self, data: Data, unit: Unit) -> bytes:
        """The name of these records in the ledger, which they enter if they are new.

        Raises:
            IntegrityError: the digests of an earlier data set are damaged: overlaps could go unseen.
        """
        found, added = self._recognised(data, unit)
        if found.data_set not in self.budget.data_sets:
            write_atomic(self._digests_path(found.data_set), found.to_bytes())
            self.append(added)
        return found.data_set

    def recognised(self, data: Data, unit: Unit) -> DataSetAdded:
        """What the ledger says of these records, or would; nothing is written."""
        return self._recognised(data, unit)[1]

    def _recognised(self, data: Data, unit: Unit) -> tuple[RecordDigests, DataSetAdded]:
        persons = data.persons or ()
        found = RecordDigests.of(
            self.salt, map(content, data.rows), (person.encode() for person in persons)
        )
        stands = self.budget.data_sets.get(found.data_set)
        if stands is not None:
            return found, stands
        known = {name: self._digests(name) for name in self.budget.data_sets}
        shared = overlaps(found, known)
        return found, DataSetAdded(found.data_set, unit, Adjacency.ZERO_OUT, shared)

    def keep_receipt(self, receipt: bytes, size: int) -> None:
        """Stores a counter-signed checkpoint."""
        write_atomic(self.root / "receipts" / str(size), receipt)
        write_atomic(self.root / RECEIPT, receipt)

    def _digests_path(self, data_set: bytes) -> Path:
        return self.root / "data" / data_set.hex()

    def _digests(self, data_set: bytes) -> RecordDigests:
        return RecordDigests.from_bytes(_read(self._digests_path(data_set)), data_set)

    def _require_whole(self) -> None:
        if self._is_broken:
            raise PolicyError(
                "expected a ledger that can be written, found one whose last entry could not be: "
                "start again"
            )

    def _write(self, record: Record) -> None:
        path, line = self.root / ENTRIES, record.to_line()
        self._is_broken = True
        size = path.stat().st_size if path.exists() else 0
        try:
            _append_synced(path, line)
        except OSError as error:
            _cut(path, size)
            raise machine_error(path, error) from error
        self._is_broken = False


def is_begun(root: Path) -> bool:
    """Whether a folder holds a ledger, or what is left of one: then no other may begin there."""
    path = root / ENTRIES
    return _is_used(root) or (path.exists() and b"\n" in _read(path))


def _is_used(root: Path) -> bool:
    """Whether anything lies there that only a ledger with entries leaves."""
    beside = (root / name for name in ("data", "receipts", "proofs", "audits"))
    return (root / RECEIPT).exists() or any(any(f.iterdir()) for f in beside if f.is_dir())


def _append_synced(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
    try:
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)


def _cut(path: Path, size: int) -> None:
    """Leave the first `size` bytes; what cannot be cut off now is when the ledger is opened."""
    with contextlib.suppress(OSError), path.open("rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} is gone; " + _advice(path)) from None
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror or error}") from error


def _advice(path: Path) -> str:
    return _KEEP_APART.format(path=path)


def _entry_salt() -> bytes:
    return secrets.token_bytes(ENTRY_SALT_BYTES)
