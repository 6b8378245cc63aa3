"""The owner's own ledger while it is written: what the edge opens, appends to and checkpoints.

The order on the edge is the guarantee, and it is the shell's to keep:

    append -> write the line -> fsync -> and only then do what the entry says

so a crash can leave an entry whose steps never ran (they are charged), and never steps without an
entry. An entry that breaks a rule, or a campaign beyond its limit, is refused before a byte is
written. After a restart `charges` are appended first.

A `Ledger` whose line could not be written is thrown away; the file is the truth.
"""

from collections.abc import Sequence

from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError, PolicyError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.privacy.ledger.accountants import Accounting
from offsite.secure.privacy.ledger.admission import Admission, Use, admit
from offsite.secure.privacy.ledger.bodies import Body, Charged, Opened, ReleasedOther, Reserved
from offsite.secure.privacy.ledger.budget import Budget, charges_after_crash
from offsite.secure.privacy.ledger.chain import Record, Tip, next_record, split_lines
from offsite.secure.privacy.ledger.checkpoint import Checkpoint, sign_checkpoint
from offsite.secure.privacy.ledger.entries import Entry
from offsite.secure.privacy.ledger.rules import broken_rules
from offsite.secure.privacy.ledger.verification import verify_ledger


class Ledger:
    """Entries, their digests and what they add up to. Only `append` and `admit` add any."""

    def __init__(self) -> None:
        self.budget = Budget()
        self._tip = Tip()
        self._digests: list[bytes] = []

    @classmethod
    def read(
        cls, data: bytes, owner: IdentityPublicKey, receipts: Sequence[bytes] = ()
    ) -> tuple["Ledger", bytes]:
        """The ledger of a file, and the file as it must be before anything is appended.

        Only an append that a crash cut may be missing from it. A last line that is whole but for
        its line break stays: it may have been acted upon.

        Args:
            receipts: checkpoints that came back; a file that lost synced entries contradicts them.

        Raises:
            IntegrityError: any fault; the ledger must be restored, nothing may be spent.
        """
        lines, torn = split_lines(data)
        kept = data[: len(data) - len(torn)]
        if _is_record(torn):
            kept = data + b"\n"
        elif _is_record(torn[:-1]) or not lines:
            raise IntegrityError(
                "expected a ledger that ends with a line break, found another byte or no entry: "
                "restore it from a backup"
            )
        findings = verify_ledger(kept, owner, receipts)
        findings.check()
        found = cls()
        for record in findings.records:
            found._take(record)
        return found, kept

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self._digests)

    @property
    def ledger_id(self) -> bytes:
        """The digest of the first entry."""
        if not self._digests:
            raise IntegrityError("expected an opened ledger, found an empty one")
        return self._digests[0]

    @property
    def charges(self) -> tuple[Charged, ...]:
        """What must be appended after a restart before anything else."""
        return charges_after_crash(self.budget)

    def append(self, body: Body, key: IdentityKey, now_unix_s: float, salt: bytes) -> Record:
        """Adds an entry and returns it for the file. `salt`: 16 fresh random bytes.

        Raises:
            PolicyError: it breaks a rule, or takes from the budget: that needs `admit`.
        """
        if isinstance(body, Reserved | ReleasedOther):
            raise PolicyError("expected a use of data to be admitted, found it appended")
        return self._append(body, key, now_unix_s, salt)

    def admit(
        self, use: Use, accounting: Accounting, key: IdentityKey, now_unix_s: float, salt: bytes
    ) -> tuple[Record, Admission]:
        """Adds a reservation or a release, if every limit allows all of it.

        Raises:
            OverBudgetError: a limit forbids it; append its `refusal`.
            PolicyError: it breaks a rule, or there is no limit.
        """
        admission = admit(self.budget, use, accounting)
        return self._append(use, key, now_unix_s, salt), admission

    def checkpoint(self, key: IdentityKey) -> bytes:
        """The signed note over all entries so far, for the coordinator's counter-signature."""
        return sign_checkpoint(self.head(), key)

    def head(self, size: int | None = None) -> Checkpoint:
        """Size and root, of all entries or of the first `size`."""
        count = self.size if size is None else size
        return Checkpoint(self.ledger_id, count, merkle.root(self._digests[:count]))

    def growth(self, known_size: int) -> Sequence[bytes]:
        """The proof that this ledger continues the one that a coordinator knows."""
        if known_size in (0, self.size):
            return []
        return merkle.consistency_proof(self._digests, known_size)

    def _append(self, body: Body, key: IdentityKey, now_unix_s: float, salt: bytes) -> Record:
        record = next_record(self._tip, body, key, now_unix_s, salt)
        self._check(record.entry, key)
        self._take(record)
        return record

    def _check(self, entry: Entry, key: IdentityKey) -> None:
        faults = broken_rules(self.budget, entry)
        if faults:
            raise PolicyError("it would break the ledger's rules: " + "; ".join(map(str, faults)))
        opened = entry.body if isinstance(entry.body, Opened) else self.budget.opened
        if opened is None or opened.signer_key != key.public.raw:
            raise PolicyError("expected the key that the ledger was opened with, found another")

    def _take(self, record: Record) -> None:
        self.budget.post(record.entry)
        self._tip = Tip.after(record)
        self._digests.append(record.digest)


def _is_record(line: bytes) -> bool:
    try:
        Record.from_line(line)
    except IntegrityError:
        return False
    return True
