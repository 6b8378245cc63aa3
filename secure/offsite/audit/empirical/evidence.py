"""What an empirical audit leaves behind, so that anybody can count again.

    opening    plan, counts of guesses, commitments to the labels      committed before the first run
    guesses    SHA-256 of the opening, and every guess                 committed before labels open
    label keys                                                         opened last
    receipts   what the ledger answered to the two commitments

Canonical JSON (RFC 8785). Reading checks form; what the parts say of one another, and whether they
are what the ledger has the digests of, is checked in `judgement.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from offsite.audit.empirical.guesses import GuessCounts, GuessSheet
from offsite.audit.empirical.mechanism import MOST_CLIP_NORM, Terms
from offsite.audit.empirical.plan import CROWD, DUEL, AuditPlan
from offsite.audit.empirical.scores import Reading
from offsite.emulator.strict_json import Fields, JsonValue
from offsite.secure.errors import ConfigError, IntegrityError
from offsite.secure.privacy.ledger.canonical import Json, canonical, parsed
from offsite.secure.privacy.mechanisms import PoissonGaussian, mechanism_from_json

EVIDENCE_BYTES: Final = 64 << 20
_FORMAT: Final = "offsite empirical audit 1"
_MOST_GUESSES: Final = 1_000_000
_RECEIPT_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class Opening:
    """What is committed before the first run."""

    plan: AuditPlan
    counts: Mapping[Reading, GuessCounts]
    label_commitments: Mapping[str, bytes]
    """Of the crowd and of the duels."""

    def to_json(self) -> Json:
        plan, terms = self.plan, self.plan.terms
        return {
            "format": _FORMAT,
            "mechanism": dict(terms.mechanism.to_json()),
            "clip_norm": terms.clip_norm,
            "delta": plan.delta,
            "significance": plan.significance,
            "canaries": plan.canaries,
            "others": plan.others,
            "duels": plan.duels,
            "known_duels": plan.known_duels,
            "guess_counts": {
                reading.value: [counts.inside, counts.outside]
                for reading, counts in self.counts.items()
            },
            "label_commitments": {
                name: digest.hex() for name, digest in self.label_commitments.items()
            },
        }

    @classmethod
    def from_json(cls, value: JsonValue) -> "Opening":
        fields = Fields(value, "audit opening")
        if fields.text("format", 64) != _FORMAT:
            raise IntegrityError(f"audit evidence: expected the format {_FORMAT!r}, found another")
        plan = _plan(fields)
        counts = Fields(fields.object("guess_counts", len(Reading)), "guess counts")
        found = {reading: _counts(counts, reading) for reading in Reading}
        counts.close()
        commitments = Fields(fields.object("label_commitments", 2), "label commitments")
        digests = {name: commitments.sha256(name) for name in (CROWD, DUEL)}
        commitments.close()
        fields.close()
        return cls(plan, found, digests)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(canonical(self.to_json())).digest()


@dataclass(frozen=True, slots=True)
class AllGuesses:
    """What is committed before the labels open."""

    opening_sha256: bytes
    crowd: Mapping[Reading, GuessSheet]
    duel: GuessSheet

    def to_json(self) -> Json:
        return {
            "opening_sha256": self.opening_sha256.hex(),
            CROWD: {reading.value: _sheet_json(sheet) for reading, sheet in self.crowd.items()},
            DUEL: _sheet_json(self.duel),
        }

    @classmethod
    def from_json(cls, value: JsonValue) -> "AllGuesses":
        fields = Fields(value, "audit guesses")
        opening = fields.sha256("opening_sha256")
        crowd = Fields(fields.object(CROWD, len(Reading)), "guesses of the crowd")
        sheets = {reading: _sheet(crowd.value(reading.value)) for reading in Reading}
        crowd.close()
        duel = _sheet(fields.value(DUEL))
        fields.close()
        return cls(opening, sheets, duel)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(canonical(self.to_json())).digest()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it."""

    opening: Opening
    guesses: AllGuesses
    label_keys: Mapping[str, bytes]
    receipts: tuple[str, str]

    def to_bytes(self) -> bytes:
        return canonical(
            {
                "opening": self.opening.to_json(),
                "guesses": self.guesses.to_json(),
                "label_keys": {name: key.hex() for name, key in self.label_keys.items()},
                "receipts": list(self.receipts),
            }
        )

    @property
    def sha256(self) -> bytes:
        """What the ledger's entry about the result names."""
        return hashlib.sha256(self.to_bytes()).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Evidence":
        """Raises PeerError where the form is wrong."""
        if len(data) > EVIDENCE_BYTES:
            raise IntegrityError(
                f"audit evidence: expected at most {EVIDENCE_BYTES} bytes, found {len(data)}"
            )
        fields = Fields(parsed(data, "audit evidence"), "audit evidence")
        keys = Fields(fields.object("label_keys", 2), "label keys")
        label_keys = {name: keys.sha256(name) for name in (CROWD, DUEL)}
        keys.close()
        receipts = fields.items("receipts", 2)
        match receipts:
            case [str(first), str(second)] if max(len(first), len(second)) <= _RECEIPT_CHARS:
                pass
            case _:
                raise IntegrityError("audit evidence: expected two receipts, found others")
        try:
            opening = Opening.from_json(fields.value("opening"))
            guesses = AllGuesses.from_json(fields.value("guesses"))
        except ConfigError as error:  # a value that no audit of ours would have
            raise IntegrityError(f"audit evidence: {error}") from None
        fields.close()
        return cls(opening, guesses, label_keys, (first, second))


def _plan(fields: Fields) -> AuditPlan:
    mechanism = mechanism_from_json(fields.value("mechanism"))
    clip_norm = fields.number("clip_norm", 0, MOST_CLIP_NORM)
    if not isinstance(mechanism, PoissonGaussian):
        raise IntegrityError("audit evidence: expected Poisson-sampled Gaussian steps")
    terms = Terms(mechanism.noise_multiplier, mechanism.sampling, mechanism.steps, clip_norm)
    if terms.mechanism != mechanism:
        raise IntegrityError("audit evidence: expected records as units, found another mechanism")
    return AuditPlan(
        terms,
        fields.number("delta", 0, 1),
        fields.number("significance", 0, 1),
        fields.integer("canaries", 1, _MOST_GUESSES),
        fields.integer("others", 0, _MOST_GUESSES),
        fields.integer("duels", 1, _MOST_GUESSES),
        fields.integer("known_duels", 1, _MOST_GUESSES),
    )


def _counts(fields: Fields, reading: Reading) -> GuessCounts:
    inside, outside = _integers(fields.items(reading.value, 2), "guess counts", 2)
    return GuessCounts(inside, outside)


def _sheet_json(sheet: GuessSheet) -> Json:
    return {"in": list(sheet.inside), "out": list(sheet.outside)}


def _sheet(value: JsonValue) -> GuessSheet:
    fields = Fields(value, "guess sheet")
    inside = _integers(fields.items("in", _MOST_GUESSES), "guess sheet")
    outside = _integers(fields.items("out", _MOST_GUESSES), "guess sheet")
    fields.close()
    return GuessSheet(inside, outside)


def _integers(values: JsonValue, what: str, count: int | None = None) -> tuple[int, ...]:
    assert isinstance(values, list)  # Fields.items says so
    found = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))
    if len(found) != len(values) or count not in (None, len(found)):
        raise IntegrityError(f"{what}: expected {count or 'only'} integers, found others")
    if min(found, default=0) < 0 or max(found, default=0) > _MOST_GUESSES:
        raise IntegrityError(f"{what}: expected integers from 0 to {_MOST_GUESSES}")
    return found
