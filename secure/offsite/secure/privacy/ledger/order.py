"""Authentic entries in the order of their file: which stand twice, elsewhere, or not at all.

Everything that comes in here is signed by the owner, so what is wrong was done to whole entries:
lines copied, moved or cut out, or a second history written with the owner's own key. A fault is
named once, by the entries that it concerns.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from offsite.secure.privacy.ledger.chain import Record
from offsite.secure.privacy.ledger.entries import NO_ENTRY
from offsite.secure.privacy.ledger.faults import Fault, FaultKind


def ordered(found: Sequence[Record], changed: Sequence[Fault]) -> tuple[list[Record], list[Fault]]:
    """The records by their numbers, each number once."""
    faults = []
    unique = _without_copies(found)
    copies = Counter(record.digest for record in found)
    for record in unique:
        if copies[record.digest] > 1:
            problem = f"it stands there {copies[record.digest]} times"
            faults.append(_fault(FaultKind.DUPLICATED, record.entry.seq, problem))
    chain, forked = _without_branches(unique)
    problem = "two entries of this number are signed"
    faults += [_fault(FaultKind.FORKED, seq, problem) for seq in forked]
    faults += _swapped([record.entry.seq for record in chain])
    records = sorted(chain, key=lambda record: record.entry.seq)
    return records, faults + _unlinked(records, changed)


def _without_copies(found: Sequence[Record]) -> list[Record]:
    """Each record once: of several copies the one that stands after its predecessor."""
    place: dict[bytes, int] = {}
    for at, record in enumerate(found):
        before = found[at - 1].digest if at else NO_ENTRY
        if record.digest not in place or before == record.entry.previous:
            place[record.digest] = at
    return [found[at] for at in sorted(place.values())]


def _without_branches(unique: Sequence[Record]) -> tuple[list[Record], list[int]]:
    """Each number once, and the numbers that there were several of; the longer branch stays."""
    followed = {record.entry.previous for record in unique}
    kept: dict[int, Record] = {}
    forked = []
    for record in unique:
        seq = record.entry.seq
        if seq in kept:
            forked.append(seq)
            if kept[seq].digest in followed or record.digest not in followed:
                continue
        kept[seq] = record
    chosen = {record.digest for record in kept.values()}
    return [record for record in unique if record.digest in chosen], sorted(set(forked))


def _swapped(order: Sequence[int]) -> list[Fault]:
    """Which entries stand in the wrong place."""
    right = sorted(order)
    wrong = [place for place, seq in enumerate(order) if seq != right[place]]
    if len(wrong) == 2:
        low, high = right[wrong[0]], right[wrong[1]]
        problem = f"entries {low} and {high} stand in each other's place"
        return [Fault(FaultKind.SWAPPED, low, high, problem)]
    return [
        _fault(FaultKind.SWAPPED, seq, "it stands in another place than it was written in")
        for seq in _out_of_place(order)
    ]


def _out_of_place(order: Sequence[int]) -> list[int]:
    """The fewest numbers without which the others ascend."""
    tails: list[int] = []  # the smallest end of an ascending run of each length
    lengths = []
    for seq in order:
        length = bisect_left(tails, seq)
        tails[length : length + 1] = [seq]
        lengths.append(length)
    kept, wanted = set(), len(tails) - 1
    for seq, length in zip(reversed(order), reversed(lengths), strict=True):
        if length == wanted:
            kept.add(seq)
            wanted -= 1
    return sorted(set(order) - kept)


def _unlinked(records: Sequence[Record], changed: Sequence[Fault]) -> list[Fault]:
    """Numbers that are missing, and entries that follow another one than stands before them."""
    faults = []
    expected, previous = 0, NO_ENTRY
    for record in records:
        seq = record.entry.seq
        if seq != expected:
            if not any(fault.first < seq and expected <= fault.last for fault in changed):
                faults.append(Fault(FaultKind.REMOVED, expected, seq - 1, "nothing stands there"))
        elif record.entry.previous != previous:
            problem = "it was written after another entry than stands before it"
            faults.append(_fault(FaultKind.FORKED, seq, problem))
        expected, previous = seq + 1, record.digest
    return faults


def intact(records: Sequence[Record]) -> int:
    """How many records from the first on are a chain."""
    previous = NO_ENTRY
    for place, record in enumerate(records):
        if (record.entry.seq, record.entry.previous) != (place, previous):
            return place
        previous = record.digest
    return len(records)


def _fault(kind: FaultKind, seq: int, problem: str) -> Fault:
    return Fault(kind, seq, seq, problem)
