"""Writes the vectors of the privacy ledger, or checks with `--check` that they are current.

    python -m tests.vectors.ledger.generate [--check]

Each file is one JSON object: what it is, the ledger file as text, the checkpoints that were kept,
the public keys, and either what the ledger says (`good_*`) or the faults that have to be found in
it (`bad_*`), each as kind, first entry, last entry, and a part of what is said. A `bad_*` file has
exactly one thing wrong with it. Where `accountants` is true, limits are looked at, too.

Canonical JSON, signatures, Merkle tree, notes and cosignatures are written out here a second time,
from their specifications and with nothing but `json`, `hashlib` and Ed25519 itself, so that a
mistake in the product cannot hide in its own vectors.
"""

import base64
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HERE: Final = Path(__file__).parent
NOW: Final = 1_780_000_000
ENTRY_TYPE: Final = b"application/vnd.offsite.ledger-entry+json"
EDGE, COORDINATOR, STRANGER = 1, 2, 3
Json = dict[str, object]
Fault = tuple[str, int, int, str]
Vector = dict[str, object]


def key_of(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public_of(number: int) -> bytes:
    return key_of(number).public_key().public_bytes_raw()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def digest(name: str) -> str:
    return sha256(name.encode()).hex()


# --- entries -------------------------------------------------------------------------------------


def canonical(document: Json) -> bytes:
    """RFC 8785 for what stands in an entry: ASCII names, and no number that needs an exponent."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("1e-05", "0.00001").encode()


def leaf(data: bytes) -> bytes:
    return sha256(b"\x00" + data)


def signed(data: bytes, number: int = EDGE) -> str:
    """The signature over an entry, in the encoding of an envelope."""
    message = b"OFFSITE/1" + b"".join(struct.pack(">Q", len(i)) + i for i in (ENTRY_TYPE, data))
    return key_of(number).sign(message).hex()


def line_of(data: bytes, number: int = EDGE) -> str:
    return f"{data.decode()} {signed(data, number)}\n"


class Ledger:
    """Lines, each bound to the one before."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self.lines = list(lines)

    @property
    def entries(self) -> list[bytes]:
        return [line.rpartition(" ")[0].encode() for line in self.lines]

    def add(self, kind: str, body: Json, **changes: object) -> "Ledger":
        """One more entry; `changes` are made in its header."""
        self.lines.append(line_of(self.entry(kind, body, **changes)))
        return self

    def entry(self, kind: str, body: Json, **changes: object) -> bytes:
        seq = len(self.lines)
        header = {
            "schema": 1,
            "seq": seq,
            "previous": leaf(self.entries[-1]).hex() if seq else bytes(32).hex(),
            "salt": digest(f"salt {seq}")[:32],
            "time_unix_s": NOW + 60 * seq,
            "kind": kind,
            "body": body,
        }
        return canonical(header | changes)

    def copy(self) -> "Ledger":
        return Ledger(self.lines)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def checkpoint(self, size: int, *, countersigned: bool = True, by: int = EDGE) -> str:
        """The signed note over the first `size` entries."""
        leaves = [leaf(data) for data in self.entries[:size]]
        origin = f"offsite/ledger/{leaf(self.entries[0]).hex()}"
        text = f"{origin}\n{size}\n{base64.b64encode(root(leaves)).decode()}\n"
        note = text + "\n" + signature_line(origin, 1, by, key_of(by).sign(text.encode()))
        if countersigned:
            note += cosignature(text)
        return note


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:]))


def signature_line(name: str, kind: int, number: int, signature: bytes) -> str:
    key_id = sha256(name.encode() + b"\n" + bytes([kind]) + public_of(number))[:4]
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n"


def cosignature(text: str, number: int = COORDINATOR, time: int = NOW) -> str:
    signature = key_of(number).sign(f"cosignature/v1\ntime {time}\n{text}".encode())
    return signature_line("offsite/coordinator", 4, number, struct.pack(">Q", time) + signature)


# --- what entries say ----------------------------------------------------------------------------

SET_A, SET_B = digest("set a"), digest("set b")


def mechanism(steps: int, **changes: object) -> Json:
    return {
        "kind": "poisson_gaussian",
        "noise_multiplier": 1,
        "sampling": "1/100",
        "steps": steps,
        "unit": "record",
        "adjacency": "zero_out",
    } | changes


def opened(**changes: object) -> Json:
    return {
        "owner": "edge-1",
        "signer_key": public_of(EDGE).hex(),
        "record_salt_sha256": digest("record salt"),
        "software": "offsite 0.1.0",
    } | changes


def limit(
    epsilon: float = 8, data_set: str | None = None, campaign_epsilon: float | None = None
) -> Json:
    return {
        "epsilon": epsilon,
        "delta": 1e-5,
        "campaign_epsilon": campaign_epsilon,
        "data_set": data_set,
    }


def data_set(name: str, *overlaps: str, unit: str = "record") -> Json:
    return {
        "data_set": name,
        "unit": unit,
        "adjacency": "zero_out",
        "overlaps": list(overlaps),
    }


def reserved(campaign_id: str = "c1", steps: int = 100, **changes: object) -> Json:
    implementation = {
        "engine": "per_example/1",
        "loss_scope": "per_unit",
        "sampler": "poisson",
        "random_source": "chacha20",
        "noise_type": "float64_on_a_grid",
    } | {name: digest(name) for name in ("code", "model", "adapter", "config")}
    return {
        "campaign_id": campaign_id,
        "data_set": SET_A,
        "mechanism": mechanism(steps),
        "adaptivity": "preregistered",
        "clip_norm": 0.5,
        "expected_batch": 16,
        "implementation": implementation,
        "stated": None,
    } | changes


def claimed(first_step: int, steps: int, campaign_id: str = "c1") -> Json:
    return {
        "campaign_id": campaign_id,
        "round": first_step // 10,
        "attempt": 0,
        "first_step": first_step,
        "steps": steps,
        "parent": digest("adapter"),
    }


def committed(claim: int, steps: int) -> Json:
    return {"claim": claim, "steps": steps, "artefact": digest("update")}


def charged(claim: int, steps: int) -> Json:
    return {"claim": claim, "steps": steps, "reason": "the outcome is unknown after a restart"}


def closed(returned: int) -> Json:
    return {"campaign_id": "c1", "returned_steps": returned}


def released(**changes: object) -> Json:
    gaussian = {
        "kind": "gaussian",
        "noise_multiplier": 20.5,
        "count": 1,
        "unit": "record",
        "adjacency": "zero_out",
    }
    return {
        "what": "number of rows",
        "data_set": SET_A,
        "mechanism": gaussian,
        "adaptivity": "filter",
        "artefact": digest("count"),
    } | changes


def proof(passed: bool = True) -> Json:
    return {"campaign_id": "c1", "report": digest("report"), "passed": passed}


def audit(guesses: int | None) -> Json:
    return {
        "campaign_id": "c1",
        "audit": "empirical",
        "evidence": digest("evidence"),
        "passed": True,
        "guesses": guesses,
        "epsilon_at_least": 0.75,
        "confidence": 0.95,
    }


def campaign() -> Ledger:
    """Entries 0 to 10: a set, a limit, campaign c1 of 100 steps, its proof, two blocks, a crash."""
    ledger = Ledger()
    ledger.add("opened", opened()).add("limit_set", limit()).add("data_set", data_set(SET_A))
    ledger.add("reserved", reserved()).add("proof", proof())
    ledger.add("claimed", claimed(0, 10)).add("committed", committed(5, 10))
    ledger.add("claimed", claimed(10, 10)).add("charged", charged(7, 10))
    return ledger.add("claimed", claimed(20, 10)).add("committed", committed(9, 4))


def whole() -> Ledger:
    """Every kind of entry."""
    ledger = campaign().add("aborted", _round("late")).add("closed", closed(70))
    ledger.add("data_set", data_set(SET_B, SET_A)).add("limit_set", limit(4, SET_B))
    refused = {"data_set": SET_B, "mechanism": mechanism(10**6), "steps_that_fit": 17}
    ledger.add("refused", {"campaign_id": "c2", "reason": "it exceeds the limit"} | refused)
    ledger.add("released_other", released())
    guesses = {"campaign_id": "c1", "commitment": digest("guesses")}
    return ledger.add("audit_guesses", guesses).add("audit_result", audit(17))


def _round(reason: str) -> Json:
    return {"campaign_id": "c1", "round": 2, "attempt": 0, "reason": reason}


# --- vectors -------------------------------------------------------------------------------------


def good(what: str, ledger: Ledger, spent: dict[str, int], *checkpoints: str) -> Vector:
    leaves = [leaf(data) for data in ledger.entries]
    return _vector(what, ledger.text, checkpoints) | {
        "size": len(leaves),
        "root": root(leaves).hex(),
        "spent_steps": spent,
        "faults": [],
    }


def bad(what: str, text: str, fault: Fault, *checkpoints: str) -> Vector:
    return _vector(what, text, checkpoints) | {"faults": [list(fault)]}


def _vector(what: str, text: str, checkpoints: Sequence[str]) -> Vector:
    return {
        "what": what,
        "owner_key": public_of(EDGE).hex(),
        "coordinator_key": public_of(COORDINATOR).hex(),
        "ledger": text,
        "checkpoints": list(checkpoints),
    }


def good_vectors() -> Iterator[tuple[str, Vector]]:
    ledger = campaign()
    kept = [ledger.checkpoint(size) for size in (1, 6, 11)]
    yield "good_campaign", good("a campaign, one crash, three receipts", ledger, {"c1": 30}, *kept)
    yield "good_all_kinds", good("every kind of entry", whole(), {"c1": 30})
    yield "good_opened", good("a new ledger", Ledger().add("opened", opened()), {})
    alone = ledger.checkpoint(11, countersigned=False)
    yield "good_not_countersigned", good("a checkpoint of the edge", ledger, {"c1": 30}, alone)


def order_vectors() -> Iterator[tuple[str, Vector]]:
    """What is done to whole lines and to bytes."""
    ledger = campaign()
    lines = ledger.lines

    def case(what: str, changed: Sequence[str], fault: Fault) -> Vector:
        return bad(what, "".join(changed), fault)

    def line(at: int, old: str, new: str) -> list[str]:
        assert old in lines[at]
        return [*lines[:at], lines[at].replace(old, new), *lines[at + 1 :]]

    def rewritten(at: int, data: bytes, number: int = EDGE) -> list[str]:
        return [*lines[:at], line_of(data, number), *lines[at + 1 :]]

    changed = ("changed", 5, 5, "does not verify")
    yield (
        "bad_flipped_entry",
        case("15 steps instead of 10", line(5, '"steps":10', '"steps":15'), changed),
    )
    flipped = lines[5][:-2] + ("0" if lines[5][-2] != "0" else "1") + "\n"
    yield (
        "bad_flipped_signature",
        case("a changed signature", [*lines[:5], flipped, *lines[6:]], changed),
    )
    yield (
        "bad_signature_upper_case",
        case(
            "another form of a signature",
            [*lines[:5], lines[5][:-129] + lines[5][-129:].upper(), *lines[6:]],
            ("changed", 5, 5, "128 hex digits"),
        ),
    )
    yield (
        "bad_signed_by_another",
        case("a stranger's entry", rewritten(5, ledger.entries[5], STRANGER), changed),
    )
    yield (
        "bad_removed",
        case("two entries are gone", lines[:5] + lines[7:], ("removed", 5, 6, "nothing stands")),
    )
    yield (
        "bad_removed_first",
        case("the opening is gone", lines[1:], ("removed", 0, 0, "nothing stands")),
    )
    yield (
        "bad_swapped",
        case(
            "two entries in each other's place",
            [*lines[:4], lines[6], lines[5], lines[4], *lines[7:]],
            ("swapped", 4, 6, "each other's place"),
        ),
    )
    yield (
        "bad_moved",
        case(
            "one entry further down",
            [*lines[:4], *lines[5:9], lines[4], *lines[9:]],
            ("swapped", 4, 4, "another place"),
        ),
    )
    yield (
        "bad_duplicated",
        case(
            "one entry twice", [*lines[:7], lines[6], *lines[7:]], ("duplicated", 6, 6, "2 times")
        ),
    )
    other = Ledger(lines[:6]).add("committed", committed(5, 1)).lines[-1]
    yield (
        "bad_fork",
        case("two entries 6, both signed", [*lines, other], ("forked", 6, 6, "two entries")),
    )
    yield (
        "bad_fork_spliced",
        case(
            "entry 6 of another history",
            [*lines[:6], other, *lines[7:]],
            ("forked", 7, 7, "after another entry"),
        ),
    )
    yield (
        "bad_torn",
        case("an append that was cut", [*lines[:-1], lines[-1][:90]], ("torn", 10, 10, "90 bytes")),
    )


def form_vectors() -> Iterator[tuple[str, Vector]]:
    """Entries that are signed, and are none."""
    before = Ledger(campaign().lines[:5])

    def case(what: str, data: bytes, says: str) -> Vector:
        return bad(what, before.text + line_of(data), ("changed", 5, 5, says))

    def header(**changes: object) -> bytes:
        return before.entry("claimed", claimed(0, 10), **changes)

    entry = header()
    loose = json.dumps(json.loads(entry), sort_keys=True).encode()
    yield "bad_spaces", case("another form of JSON", loose, "another form")
    yield (
        "bad_number_form",
        case("5.0 for 5", entry.replace(b'"seq":5,', b'"seq":5.0,'), "another form"),
    )
    yield (
        "bad_repeated_field",
        case("a field twice", entry.replace(b'{"body"', b'{"body":0,"body"'), "another form"),
    )
    yield "bad_not_json", case("no JSON", entry[:-1], "canonical JSON")
    yield "bad_schema", case("a later schema", header(schema=2), "schema 1, found 2")
    yield "bad_kind", case("an unknown kind", before.entry("spent", claimed(0, 10)), "known kind")
    yield "bad_salt", case("no salt", header(salt=""), "salt: expected 16 bytes")
    yield "bad_header_field", case("a field too many", header(note="hi"), "with the fields")
    seeded = claimed(0, 10) | {"seed": 7}
    yield "bad_seed", case("a seed", before.entry("claimed", seeded), "expected the fields")
    none = claimed(0, 0)
    yield "bad_no_steps", case("no steps", before.entry("claimed", none), "steps: expected at")
    wrong = claimed(0, 10) | {"round": "0"}
    yield "bad_type", case("a round that is a text", before.entry("claimed", wrong), "expected int")
    scope = reserved("c2")
    scope["implementation"] = dict(scope["implementation"]) | {"loss_scope": "token_mean"}  # type: ignore[call-overload]
    yield (
        "bad_loss_scope",
        case("a loss that couples examples", before.entry("reserved", scope), "LossScope"),
    )
    rate = reserved("c2", mechanism=mechanism(1, sampling="0.01"))
    yield "bad_rate", case("a rate that is no fraction", before.entry("reserved", rate), "fraction")
    silent = reserved("c2", mechanism=mechanism(1, noise_multiplier=0))
    yield "bad_no_noise", case("no noise", before.entry("reserved", silent), "without noise")


def checkpoint_vectors() -> Iterator[tuple[str, Vector]]:
    """What only somebody who kept a checkpoint can know."""
    ledger = campaign()
    receipts = [ledger.checkpoint(6), ledger.checkpoint(11)]
    short = "".join(ledger.lines[:9])
    yield (
        "bad_truncated",
        bad("the last two are gone", short, ("truncated", 9, 10, "counts 11"), *receipts),
    )
    other = Ledger(ledger.lines[:7])
    for data in ledger.entries[7:]:
        document = json.loads(data)
        other.add(document["kind"], document["body"], time_unix_s=NOW + 9999)
    yield (
        "bad_rewritten",
        bad("signed anew from 7 on", other.text, ("rewritten", 6, 10, "of others"), *receipts),
    )
    fresh = Ledger().add("opened", opened(software="offsite 0.2.0"))
    yield (
        "bad_new_ledger",
        bad("begun anew", fresh.text, ("rewritten", 0, 0, "began otherwise"), ledger.checkpoint(1)),
    )

    def unattested(what: str, note: str, says: str) -> Vector:
        return bad(what, ledger.text, ("unattested", 0, 10, says), note)

    note = ledger.checkpoint(11, countersigned=False)
    yield "bad_note_text", unattested("a changed size", note.replace("\n11\n", "\n10\n"), "verify")
    yield "bad_note_form", unattested("no blank line", note.replace("\n\n", "\n"), "blank line")
    yield (
        "bad_note_extension",
        unattested("an extension line", note.replace("=\n\n", "=\nx\n\n"), "4 lines"),
    )
    by_another = ledger.checkpoint(11, countersigned=False, by=STRANGER)
    yield "bad_note_signer", unattested("signed by a stranger", by_another, "signed by offsite/")
    text = note.partition("\n\n")[0] + "\n"
    cosigned_by_another = note + cosignature(text, STRANGER)
    yield (
        "bad_cosigner",
        unattested("counter-signed by a stranger", cosigned_by_another, "offsite/coordinator"),
    )
    early = cosignature(text, time=NOW)
    name, blob = early.removesuffix("\n").rsplit(" ", 1)
    raw = bytearray(base64.b64decode(blob))
    raw[11] ^= 1  # the last byte of its time
    moved = f"{name} {base64.b64encode(bytes(raw)).decode()}\n"
    yield "bad_cosignature_time", unattested("another time", note + moved, "does not verify")


def meaning_vectors() -> Iterator[tuple[str, Vector]]:
    """What a ledger says in its owner's own hand, and must not."""

    def case(what: str, kind: str, body: Json, fault: str, says: str, *before: Json) -> Vector:
        ledger = campaign()
        for one in before:
            ledger.add(str(one["kind"]), one["body"])  # type: ignore[arg-type]
        ledger.add(kind, body)
        at = len(ledger.lines) - 1
        return bad(what, ledger.text, (fault, at, at, says))

    def first(kind: str, body: Json) -> Json:
        return {"kind": kind, "body": body}

    begun = first("claimed", claimed(30, 10))
    yield (
        "bad_refund_unexecuted",
        case("steps 24 to 29 again", "claimed", claimed(24, 5), "refund", "24 to 29 were claimed"),
    )
    yield (
        "bad_refund_charge",
        case("a crash that costs 9 of 10", "charged", charged(11, 9), "refund", "9 of 10", begun),
    )
    yield (
        "bad_refund_close",
        case("71 steps given back", "closed", closed(71), "refund", "70 were never claimed"),
    )
    yield (
        "bad_double_claim",
        case("steps 5 to 9 again", "claimed", claimed(5, 5), "double_spending", "5 to 9 were"),
    )
    yield (
        "bad_double_commit",
        case("one claim, two updates", "committed", committed(5, 10), "double_spending", "before"),
    )
    again = reserved()
    again["adaptivity"] = "filter"
    yield (
        "bad_double_reservation",
        case("campaign c1 again", "reserved", again, "double_spending", "reservation already"),
    )
    yield (
        "bad_claim_after_close",
        case(
            "steps after the end",
            "claimed",
            claimed(30, 1),
            "double_spending",
            "is closed",
            first("closed", closed(70)),
        ),
    )
    yield (
        "bad_gap",
        case("steps 30 to 39 unclaimed", "claimed", claimed(40, 10), "gap", "steps 30 to 39"),
    )
    yield (
        "bad_overdrawn",
        case("more than reserved", "claimed", claimed(30, 71), "overdrawn", "step 101 of 100"),
    )
    yield (
        "bad_overrun",
        case(
            "more than claimed", "committed", committed(11, 11), "overdrawn", "11 steps ran", begun
        ),
    )
    yield (
        "bad_unsettled",
        case("a claim left open", "claimed", claimed(40, 1), "inconsistent", "entry 11", begun),
    )
    yield (
        "bad_unproven",
        case(
            "trained with a broken engine",
            "claimed",
            claimed(30, 1),
            "unproven",
            "start-up proof",
            first("proof", proof(False)),
        ),
    )
    yield (
        "bad_planned_late",
        case("an exact sum, too late", "reserved", reserved("c2"), "inconsistent", "in advance"),
    )
    persons = released(mechanism=mechanism(1, unit="person"))
    yield (
        "bad_unit",
        case("persons among records", "released_other", persons, "inconsistent", "by record"),
    )
    yield (
        "bad_unknown_set",
        case("a set nobody saw", "limit_set", limit(8, SET_B), "unknown", "not in the ledger"),
    )
    yield (
        "bad_unblinded",
        case("no guesses before it", "audit_result", audit(None), "unknown", "labels were seen"),
    )
    yield (
        "bad_opened_twice",
        case("opened again", "opened", opened(), "inconsistent", "only once"),
    )
    yield (
        "bad_other_key",
        bad(
            "opened for another key",
            Ledger().add("opened", opened(signer_key=public_of(STRANGER).hex())).text,
            ("inconsistent", 0, 0, "another key"),
        ),
    )
    backwards = campaign().add("closed", closed(70), time_unix_s=NOW)
    yield (
        "bad_time",
        bad("a time before", backwards.text, ("inconsistent", 11, 11, "before that of")),
    )


def limit_vectors() -> Iterator[tuple[str, Vector]]:
    """What takes accountants to see: campaign c1 costs about 1.3 by itself."""

    def case(what: str, ledger: Ledger, says: str) -> Vector:
        at = len(ledger.lines) - 1
        return bad(what, ledger.text, ("overspent", at, at, says)) | {"accountants": True}

    def begun(**changes: float) -> Ledger:
        return Ledger(campaign().lines[:1]).add("limit_set", limit(**changes))  # type: ignore[arg-type]

    lowered = campaign().add("limit_set", limit(0.5)).add("claimed", claimed(30, 10))
    yield "bad_limit_lowered", case("steps beyond a lowered limit", lowered, "its limit is 0.5")
    stopped = campaign().add("limit_set", limit(0.5)).add("closed", closed(70))
    unclaimed = good("a limit lowered, and nothing claimed since", stopped, {"c1": 30})
    yield "good_limit_lowered", unclaimed | {"accountants": True}
    alone = begun(campaign_epsilon=0.5).add("data_set", data_set(SET_A))
    alone.add("reserved", reserved())
    yield "bad_campaign_limit", case("a campaign beyond its own limit", alone, "at most 0.5 at")
    later = campaign().add("limit_set", limit(8, None, 0.5)).add("claimed", claimed(30, 10))
    yield (
        "bad_campaign_limit_lowered",
        case("steps beyond a campaign's lowered limit", later, "at most 0.5 at"),
    )


GROUPS: Final[tuple[Callable[[], Iterator[tuple[str, Vector]]], ...]] = (
    good_vectors,
    order_vectors,
    form_vectors,
    checkpoint_vectors,
    meaning_vectors,
    limit_vectors,
)


def build() -> dict[str, str]:
    """Every vector file by its name."""
    return {
        f"{name}.json": json.dumps(vector, indent=1, ensure_ascii=False) + "\n"
        for group in GROUPS
        for name, vector in group()
    }


def main(arguments: list[str]) -> int:
    wanted = build()
    found = {path.name: path.read_text() for path in HERE.glob("*.json")}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if arguments == ["--check"]:
        for name in wrong:
            print(f"not as generated: {name}")
        return 1 if wrong else 0
    for name in wrong:
        if name in wanted:
            (HERE / name).write_text(wanted[name])
        else:
            (HERE / name).unlink()
        print(f"wrote {name}" if name in wanted else f"removed {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
