"""Reads a ledger that nobody has to be trusted for, and names what is wrong with it and where.

    (1) each line is an entry in its one form, signed by the owner's key         -> changed, torn
    (2) each entry stands once, and where its number says                        -> duplicated,
        swapped, forked, removed
    (3) each entry names the one before it                                       -> forked
    (4) the entries are those of every checkpoint, which its signers signed      -> truncated,
        rewritten, forked, unattested
    (5) each entry may follow those before it (`rules.py`)                       -> refund,
        double_spending, gap, overdrawn, ...
    (6) no account and no campaign ever exceeded its limit, neither when steps were reserved
        nor when one was claimed after the limit had changed, and every stated
        epsilon is right, recomputed                                             -> overspent,
        misstated

Each fault is named once. What comes after a missing entry is not interpreted by (4) to (6): what it
refers to may have stood there.

An owner who has the key can sign a new history that passes (1), (2), (3), (5) and (6); (4) finds it,
from the first counter-signed checkpoint on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.accountants import Accounting, misstatement
from offsite.secure.privacy.ledger.admission import Use, campaign_excess, exceeded
from offsite.secure.privacy.ledger.bodies import (
    Claimed,
    LimitSet,
    ReleasedOther,
    Reserved,
)
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.ledger.chain import Record, root_of, split_lines
from offsite.secure.privacy.ledger.checkpoint import Checkpoint, coordinator_key, open_checkpoint
from offsite.secure.privacy.ledger.entries import Entry
from offsite.secure.privacy.ledger.faults import Fault, FaultKind
from offsite.secure.privacy.ledger.notes import Note
from offsite.secure.privacy.ledger.order import intact, ordered
from offsite.secure.privacy.ledger.rules import broken_rules
from offsite.secure.privacy.ledger.signing import check_entry


@dataclass(frozen=True, slots=True)
class Witness:
    """A checkpoint that stands. `countersigned_unix_s` is None if only the edge signed it."""

    checkpoint: Checkpoint
    countersigned_unix_s: int | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What a verification established. Without faults, `records` are the ledger, in order."""

    records: tuple[Record, ...]
    faults: tuple[Fault, ...]
    budget: Budget
    witnesses: tuple[Witness, ...]

    @property
    def countersigned(self) -> int:
        """Up to how many entries the coordinator holds a receipt for."""
        sizes = [
            witness.checkpoint.size
            for witness in self.witnesses
            if witness.countersigned_unix_s is not None
        ]
        return max(sizes, default=0)

    def check(self) -> None:
        """Raises IntegrityError with every fault, if there is one."""
        if self.faults:
            raise IntegrityError(
                f"expected a ledger without faults, found {len(self.faults)}: "
                + "; ".join(map(str, self.faults))
            )


def verify_ledger(
    data: bytes,
    owner: IdentityPublicKey,
    checkpoints: Sequence[bytes] = (),
    coordinator: IdentityPublicKey | None = None,
    accounting: Accounting | None = None,
) -> Findings:
    """Everything that is wrong with a ledger file, located.

    Args:
        owner: the edge's identity key, from a directory or another source than the ledger.
        checkpoints: signed notes of this ledger, from whoever kept them.
        coordinator: whose counter-signatures count; None: no checkpoint is counter-signed.
        accounting: recomputes epsilons for (6); None: limits are not looked at.

    Guarantees: a flipped bit, a removed, swapped or duplicated entry, a fork, a refund, double
        spending and a gap are each found and located (`test_each_fault_is_located`).
    """
    # (1)
    found, changed = _authentic(data, owner)
    # (2), (3)
    records, misplaced = ordered(found, changed)
    whole = records[: intact(records)]
    # (4)
    opened, unattested = _opened(checkpoints, owner, coordinator, len(records))
    witnesses, refuted = _compared(opened, whole, records[-1].entry.seq + 1 if records else 0)
    # (5), (6)
    budget, unruly = _replayed(whole, accounting, owner)
    faults = (*changed, *misplaced, *unattested, *refuted, *unruly)
    return Findings(tuple(records), faults, budget, witnesses)


# --- (1) lines -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """What a line gave: an authentic record, or why it is none."""

    record: Record | None
    problem: str = ""


def _authentic(data: bytes, owner: IdentityPublicKey) -> tuple[list[Record], list[Fault]]:
    """The records that the owner signed, in the order of their lines."""
    raw_lines, torn = split_lines(data)
    lines = [_read(line, owner) for line in raw_lines]
    faults = _changed(lines)
    if torn:
        faults.append(_fault(FaultKind.TORN, len(lines), f"{len(torn)} bytes of a cut append"))
    return [line.record for line in lines if line.record is not None], faults


def _read(line: bytes, owner: IdentityPublicKey) -> _Line:
    try:
        record = Record.from_line(line)
        check_entry(record.data, record.signature, owner)
    except PeerError as error:
        return _Line(None, str(error))
    return _Line(record)


def _changed(lines: Sequence[_Line]) -> list[Fault]:
    """One fault for each run of lines that are no entries, by the numbers that they stand for."""
    faults, at = [], 0
    while at < len(lines):
        if lines[at].record is not None:
            at += 1
            continue
        start = at
        while at < len(lines) and lines[at].record is None:
            at += 1
        before = lines[start - 1].record if start else None
        after = lines[at].record if at < len(lines) else None
        first = before.entry.seq + 1 if before else 0
        last = after.entry.seq - 1 if after else first + at - start - 1
        problem = f"{at - start} lines stand there that are no entries: {lines[start].problem}"
        faults.append(Fault(FaultKind.CHANGED, first, max(first, last), problem))
    return faults


# --- (4) checkpoints -----------------------------------------------------------------------------


def _opened(
    checkpoints: Sequence[bytes],
    owner: IdentityPublicKey,
    coordinator: IdentityPublicKey | None,
    entries: int,
) -> tuple[list[Witness], list[Fault]]:
    """Checkpoints by size, their signatures verified; those that differ at one size are faults."""
    opened: list[Witness] = []
    faults: list[Fault] = []
    for data in checkpoints:
        try:
            opened.append(_open(data, owner, coordinator))
        except PeerError as error:
            faults.append(Fault(FaultKind.UNATTESTED, 0, max(0, entries - 1), str(error)))
    opened.sort(key=lambda witness: witness.checkpoint.size)
    for one, other in pairwise(witness.checkpoint for witness in opened):
        if one.size == other.size and one != other:
            problem = f"two checkpoints of {one.size} entries are signed over different ones"
            faults.append(Fault(FaultKind.FORKED, 0, one.size - 1, problem))
    return opened, faults


def _open(data: bytes, owner: IdentityPublicKey, coordinator: IdentityPublicKey | None) -> Witness:
    checkpoint = open_checkpoint(data, owner)
    if coordinator is None:
        return Witness(checkpoint, None)
    note, key = Note.from_bytes(data), coordinator_key(coordinator)
    is_countersigned = any(item.name == key.name for item in note.signatures)
    return Witness(checkpoint, note.verify(key) if is_countersigned else None)


def _compared(
    opened: Sequence[Witness], whole: Sequence[Record], end: int
) -> tuple[tuple[Witness, ...], list[Fault]]:
    """Which checkpoints stand, and what the others say about the entries.

    Args:
        whole: the records before the first that is missing.
        end: the number after the last record that there is.
    """
    digests = [record.digest for record in whole]
    standing: list[Witness] = []
    faults: list[Fault] = []
    for witness in opened:
        checkpoint = witness.checkpoint
        good = standing[-1].checkpoint.size if standing else 0
        if checkpoint.size > end:
            problem = f"a checkpoint counts {checkpoint.size} entries"
            faults.append(Fault(FaultKind.TRUNCATED, end, checkpoint.size - 1, problem))
        elif checkpoint.size > len(digests):
            continue  # entries that it covers are missing, which has been named
        elif checkpoint.ledger_id != digests[0]:
            problem = "a checkpoint is of a ledger that began otherwise"
            faults.append(_fault(FaultKind.REWRITTEN, 0, problem))
        elif root_of(digests, checkpoint.size) == checkpoint.root:
            standing.append(witness)
        else:
            first = min(good, checkpoint.size - 1)
            problem = f"a checkpoint of {checkpoint.size} entries was made of others"
            faults.append(Fault(FaultKind.REWRITTEN, first, checkpoint.size - 1, problem))
    return tuple(standing), list(dict.fromkeys(faults))


# --- (5), (6) meaning ----------------------------------------------------------------------------


def _replayed(
    records: Sequence[Record], accounting: Accounting | None, owner: IdentityPublicKey
) -> tuple[Budget, list[Fault]]:
    budget = Budget()
    faults: list[Fault] = []
    limits = None if accounting is None else _Limits(budget, accounting)
    for record in records:
        faults += broken_rules(budget, record.entry)
        budget.post(record.entry)
        if limits is not None:
            faults += limits.faults_of(record.entry)
    opened = budget.opened
    if opened is not None and opened.signer_key != owner.raw:
        faults.append(_fault(FaultKind.INCONSISTENT, 0, "it names another key than signed it"))
    return budget, faults


@dataclass(slots=True)
class _Limits:
    """(6), entry after entry; what is above its limit is named once."""

    budget: Budget
    accounting: Accounting
    _checked: set[str] = field(default_factory=set)
    """Campaigns that were held to the limit that holds now."""
    _above: set[bytes | str] = field(default_factory=set)

    def faults_of(self, entry: Entry) -> Iterator[Fault]:
        """What is wrong with an entry that `budget` has taken in."""
        match entry.body:
            case LimitSet():
                self._checked.clear()
            case Reserved() as reserved:
                if stated := misstatement(reserved, self.accounting):
                    yield _fault(FaultKind.MISSTATED, entry.seq, stated)
                yield from self._excesses(entry.seq, reserved, reserved.campaign_id)
            case ReleasedOther() as released:
                yield from self._excesses(entry.seq, released, released.what)
            case Claimed() as claimed if claimed.campaign_id not in self._checked:
                campaign = self.budget.campaigns.get(claimed.campaign_id)
                if campaign is not None:
                    yield from self._excesses(entry.seq, campaign.reserved, claimed.campaign_id)
            case _:
                pass

    def _excesses(self, seq: int, use: Use, name: str) -> Iterator[Fault]:
        alone = campaign_excess(self.budget, use, self.accounting)
        if alone is not None and name not in self._above:
            yield _fault(FaultKind.OVERSPENT, seq, alone.problem)
            self._above.add(name)
        for excess in exceeded(self.budget, use.data_set, self.accounting):
            if excess.data_set not in self._above:
                yield _fault(FaultKind.OVERSPENT, seq, excess.problem)
            self._above.add(excess.data_set)
        if isinstance(use, Reserved):
            self._checked.add(name)


def _fault(kind: FaultKind, seq: int, problem: str) -> Fault:
    return Fault(kind, seq, seq, problem)
