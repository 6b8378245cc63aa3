"""The evidence of an attack: its numbers as JSON, from which everything else follows again.

It holds the losses of every row, by place and without a word of the row, the settings, the entropy
and the result. `read_evidence` does the analysis again and refuses a result that does not follow.

Rule: it is as private as the rows are: who can get at the rows of others learns from it which were
learnt. The ledger takes its SHA-256 alone.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from offsite.audit.attack.analysis import Attack, Measured, analyse
from offsite.audit.attack.losses import Losses, Pair
from offsite.audit.attack.settings import MOST_CANDIDATES, MOST_ROWS, AttackSettings
from offsite.audit.attack.verdict import Verdict
from offsite.emulator.strict_json import Fields, JsonObject, JsonValue, canonical_json, parse_json
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.privacy.ledger.bodies import AuditKind, AuditResult

FORMAT = "offsite/attack-evidence/1"
MOST_BYTES = 64 << 20
_MOST_SECRETS = 1_000
_MOST_NATS = 1e12
_TOLERANCE = 1e-9
_SERIES = ("before_nats", "after_nats", "tokens")


def to_bytes(attack: Attack) -> bytes:
    """Canonical JSON; `sha256` of it is what a ledger entry names."""
    return canonical_json(_document(attack))


def sha256(evidence: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(evidence).hexdigest()


def result_json(attack: Attack) -> JsonObject:
    """The figures and the verdict, without anything about a single row."""
    exposure = attack.exposure
    return {
        "before_sha256": attack.measured.before_sha256,
        "after_sha256": attack.measured.after_sha256,
        "membership": attack.membership.to_json(),
        "exposure": None if exposure is None else exposure.to_json(),
        "judgement": attack.judgement.to_json(),
    }


def audit_result(campaign_id: str, attack: Attack, evidence: bytes) -> AuditResult:
    """The entry that binds a data owner to this evidence, before it looks for a better one."""
    passed = attack.judgement.verdict is not Verdict.EXCEEDED
    digest = hashlib.sha256(evidence).digest()
    confidence = attack.settings.confidence
    return AuditResult(campaign_id, AuditKind.ATTACK, digest, passed, confidence=confidence)


def read_evidence(data: bytes) -> Attack:
    """The attack of some evidence, its analysis done again.

    Raises:
        IntegrityError: the stated result does not follow from the stated losses.
        PeerError: it is no evidence.

    Guarantees: a changed loss, setting or verdict is refused where it changes the result
    (`test_a_changed_verdict_is_refused`).
    """
    fields = Fields(parse_json(data, "evidence", MOST_BYTES), "evidence")
    if fields.text("format", 64) != FORMAT:
        raise PeerError(f"evidence: expected the format {FORMAT}")
    settings = AttackSettings.from_json(fields.value("settings"))
    entropy = fields.sha256("entropy")
    measured = _measured(fields)
    stated = fields.object("result", 16)
    fields.close()
    attack = analyse(measured, settings, entropy)
    if not _agrees(result_json(attack), stated):
        raise IntegrityError(
            "the evidence of an attack: expected the result that follows from its losses, found "
            "another: losses, settings or result were changed, or another version of NumPy drew"
        )
    return attack


def _agrees(found: JsonValue, stated: JsonValue) -> bool:
    """Equal but for the last digits of numbers, which depend on how a machine adds up."""
    if isinstance(found, Mapping) and isinstance(stated, Mapping):
        return found.keys() == stated.keys() and all(
            _agrees(value, stated[name]) for name, value in found.items()
        )
    if isinstance(found, list) and isinstance(stated, list):
        return len(found) == len(stated) and all(map(_agrees, found, stated))
    if isinstance(found, float) and isinstance(stated, int | float):
        return math.isclose(found, stated, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return found == stated


def _document(attack: Attack) -> JsonObject:
    measured = attack.measured
    return {
        "format": FORMAT,
        "settings": attack.settings.to_json(),
        "entropy": attack.entropy.hex(),
        "before_sha256": measured.before_sha256,
        "after_sha256": measured.after_sha256,
        "members": _losses_json(measured.members),
        "held_out": _losses_json(measured.held_out),
        "planted": [_losses_json(pair) for pair in measured.planted],
        "result": result_json(attack),
    }


def _losses_json(pair: Pair) -> JsonObject:
    series = (pair.before.nats, pair.after.nats, pair.before.tokens)
    return {name: values.tolist() for name, values in zip(_SERIES, series, strict=True)}


def _measured(fields: Fields) -> Measured:
    return Measured(
        _pair(fields.value("members"), "members", MOST_ROWS),
        _pair(fields.value("held_out"), "held_out", MOST_ROWS),
        tuple(
            _pair(value, "planted", MOST_CANDIDATES + 1)
            for value in fields.items("planted", _MOST_SECRETS)
        ),
        fields.sha256("before_sha256").hex(),
        fields.sha256("after_sha256").hex(),
    )


def _pair(value: JsonValue, what: str, most: int) -> Pair:
    fields = Fields(value, what)
    series = [fields.items(name, most) for name in _SERIES]
    fields.close()
    numbers = [value for values in series for value in values]
    right = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not right or len({len(values) for values in series}) != 1:
        raise PeerError(f"{what}: expected three arrays of as many numbers")
    before, after, tokens = (np.array(values, np.float64) for values in series)
    if not (tokens >= 1).all() or max(map(abs, (*before, *after)), default=0.0) > _MOST_NATS:
        raise PeerError(f"{what}: expected losses of rows of at least one token")
    return Pair(Losses(before, tokens), Losses(after, tokens))
