"""A start-up proof as its edge stored it: one canonical JSON document, named by its digest."""

import hashlib
import math

from offsite.audit.privacy_report.facts import ProofCheck, ProofFacts
from offsite.emulator.privacy.proof.report import SCHEMA
from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.canonical import Json, parsed


def read_proof(data: bytes) -> ProofFacts:
    """The checks of a proof.

    Raises:
        IntegrityError: it is another document, or a check says that it passed and did not.
    """
    document = parsed(data, "start-up proof")
    try:
        if not isinstance(document, dict) or document["schema"] != SCHEMA:
            raise KeyError("schema")
        checks = document["checks"]
        if not isinstance(checks, list):
            raise TypeError("checks")
        return ProofFacts(hashlib.sha256(data).hexdigest(), tuple(map(_check, checks)))
    except (KeyError, TypeError, ValueError):
        raise IntegrityError("expected a start-up proof, found another document") from None


def _check(value: Json) -> ProofCheck:
    if not isinstance(value, dict):
        raise TypeError("check")
    least, most, found, miss = (
        float(str(value[name])) for name in ("least", "most", "statistic", "miss")
    )
    if value["passed"] is not (least <= found <= most):
        raise IntegrityError(
            f"check {value['name']}: expected what its number says, found not that"
        )
    expected = f"{value['least']} to {value['most']}"
    if math.isinf(least):
        expected = f"at most {value['most']}"
    elif math.isinf(most):
        expected = f"at least {value['least']}"
    passed = bool(value["passed"])
    name, looks_for = str(value["name"]), str(value["looks_for"])
    return ProofCheck(name, looks_for, expected, str(value["statistic"]), miss, passed)
