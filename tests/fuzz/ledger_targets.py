"""A privacy ledger and its checkpoints as somebody else's bytes: to the owner's edge and to an auditor.

    ledger        mode 0: a ledger file; mode 1: an entry that its owner signs and appends to a valid one
    checkpoint    mode 0: a signed note; mode 1: the text of one, which the owner signs

What holds whatever comes, and is checked here on every input:

* a verifier never raises: what is wrong is a fault with a place inside the file;
* what has no fault has one form, and what the owner's edge opens has no fault;
* a number that is read can be counted with: the fold and the rules take it.
"""

from dataclasses import replace
from functools import cache

from tests.secure.privacy.ledger.scenes import (
    COORDINATOR,
    DIGEST,
    NOW_UNIX_S,
    OWNER,
    SET_A,
    SET_B,
    Book,
    Simple,
    campaign,
    claimed,
    data_set,
    released,
    reserved,
    steps,
)

from offsite.secure.errors import PeerError
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Adaptivity,
    AuditGuesses,
    AuditKind,
    AuditResult,
    Body,
    Charged,
    Closed,
    LimitSet,
    Refused,
    StartProof,
    StatedEpsilon,
)
from offsite.secure.privacy.ledger.budget import fold
from offsite.secure.privacy.ledger.chain import Record, Tip, next_record, split_lines
from offsite.secure.privacy.ledger.checkpoint import countersign, edge_key
from offsite.secure.privacy.ledger.entries import Entry, entry_digest
from offsite.secure.privacy.ledger.ledger import Ledger
from offsite.secure.privacy.ledger.notes import Note
from offsite.secure.privacy.ledger.signing import sign_entry
from offsite.secure.privacy.ledger.verification import Findings, verify_ledger

WHOLE, SIGNED = b"\x00", b"\x01"
STATED = StatedEpsilon(1e-5, 7.0, None, 8.0, "by hand")


@cache
def book() -> Book:
    """A ledger with an entry of every kind; its owner may go on with campaign c1 or another."""
    found = campaign(blocks=1)
    charge = found.write(claimed(10, 5))
    found.write(Charged(charge.entry.seq, 5, "the outcome is unknown after a restart"))
    found.write(StartProof("c1", DIGEST, True))
    found.write(LimitSet(900.0, 1e-5, 500.0))
    found.write(data_set(SET_B, SET_A))
    found.write(released(adaptivity=Adaptivity.FILTER))
    found.write(Refused("c9", SET_A, steps(9000), 870, "it exceeds the limit"))
    found.write(Aborted("c1", 1, 0, "nobody answered"))
    guesses = found.write(AuditGuesses("c1", DIGEST)).entry.seq
    found.write(AuditResult("c1", AuditKind.EMPIRICAL, DIGEST, True, guesses, 1.5, 0.95))
    found.write(replace(reserved("c2", SET_B, steps(7), Adaptivity.FILTER), stated=STATED))
    found.write(Closed("c2", 7))
    return found


def entry_after(body: Body) -> bytes:
    """The payload of an entry that may follow."""
    tip = Tip.after(book().records[-1])
    return next_record(tip, body, OWNER, NOW_UNIX_S + 1000, bytes(16)).data


def receipt() -> bytes:
    """A checkpoint of all of it, with both signatures."""
    note = book().ledger.checkpoint(OWNER)
    return countersign(note, OWNER.public, None, (), COORDINATOR, int(NOW_UNIX_S))


def ledger_seeds() -> dict[str, bytes]:
    """Files of the corpus, by name."""
    bodies: dict[str, Body] = {
        "claim": claimed(15, 5),
        "limit": LimitSet(800.0, 1e-5, None, SET_B),
        "set": data_set(b"\x44" * 32, SET_A, SET_B),
        "proof": StartProof("c1", DIGEST, False),
        "refusal": Refused("c8", SET_A, steps(9000), 870, "it exceeds the limit"),
        "audit": AuditResult("c1", AuditKind.ATTACK, DIGEST, False, None, None, 0.95),
        "close": Closed("c1", 85),
        "release": released(adaptivity=Adaptivity.FILTER),
    }
    signed = {f"ledger/valid-{name}": SIGNED + entry_after(body) for name, body in bodies.items()}
    text = Note.from_bytes(receipt()).text.encode()
    last = book().data[-129:]
    second_form = book().data[:-129] + last.upper()  # of the last signature
    return signed | {
        "ledger/valid-whole": WHOLE + book().data,
        "ledger/signature-in-upper-case": WHOLE + second_form,
        "checkpoint/valid-whole": WHOLE + receipt(),
        "checkpoint/valid-text": SIGNED + text,
    }


def ledger(data: bytes) -> bool:
    mode, rest = data[:1], data[1:]
    if mode == SIGNED:
        rest = book().data + _signed(rest)
    findings = _verified(rest, ())
    fold(record.entry for record in findings.records)
    try:
        opened, kept = Ledger.read(rest, OWNER.public)
    except PeerError:
        return False
    assert not verify_ledger(kept, OWNER.public).faults, "an edge opened a ledger with a fault"
    assert opened.size == len(split_lines(kept)[0])
    if kept == rest and not findings.faults:
        again = b"".join(record.to_line() for record in findings.records)
        assert again == rest, "a ledger has a second form"
    return not findings.faults


def checkpoint(data: bytes) -> bool:
    mode, rest = data[:1], data[1:]
    if mode == SIGNED:
        rest = _noted(rest)
    try:
        assert Note.from_bytes(rest).to_bytes() == rest, "a note has a second form"
    except PeerError:
        pass
    findings = _verified(book().data, (rest,))
    return not findings.faults and len(findings.witnesses) == 1


def _verified(data: bytes, notes: tuple[bytes, ...]) -> Findings:
    findings = verify_ledger(data, OWNER.public, notes, COORDINATOR.public, Simple())
    for fault in findings.faults:
        assert 0 <= fault.first <= fault.last, "a fault has no place"
    return findings


def _signed(payload: bytes) -> bytes:
    """A line, if the payload is an entry; what is none stands there all the same."""
    try:
        entry = Entry.from_bytes(payload)
        assert entry.to_bytes() == payload, "an entry has a second form"
    except PeerError:
        return payload + b" " + sign_entry(payload, OWNER).hex().encode() + b"\n"
    return Record(entry, payload, sign_entry(payload, OWNER), entry_digest(payload)).to_line()


def _noted(text: bytes) -> bytes:
    """A note of the owner with this text, if a note can have it."""
    try:
        key = edge_key(book().ledger.ledger_id, OWNER.public)
        return Note(text.decode()).signed_by(OWNER, key.name).to_bytes()
    except (PeerError, UnicodeDecodeError):
        return text
