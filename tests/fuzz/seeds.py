"""Writes the seeds of the corpus: what a valid round says, one file for each form of each input.

    python -m tests.fuzz.seeds [--ledger]     (--ledger: only those of `ledger_targets`)

Files named `valid-*` must be taken by their target for ever (`test_corpus.py`); regressions, which
are named after the defect, only must not break it. Sealing draws randomness, so a second run writes
other bytes that say the same: run it when the protocol's suite changes, not before.
"""

import sys
from pathlib import Path
from typing import Final

from tests.fuzz.ledger_targets import ledger_seeds
from tests.fuzz.scenes import LIAR, TERMS, VICTIM, payload_of, scene, signed_terms
from tests.fuzz.targets import DEALT, MANY, RAW, SIGNED

from offsite.emulator.rounds import exchange
from offsite.secure.aggregation.encoding import pack_list
from offsite.secure.aggregation.journal import Step, journal_to_bytes, pack_deliveries

CORPUS: Final = Path(__file__).parent / "corpus"
_MODES: Final = {RAW: "raw", SIGNED: "signed", MANY: "list", DEALT: "dealt"}


def seeds() -> dict[str, dict[int, bytes]]:
    """By target, by mode."""
    found = scene()

    def both(message: bytes) -> dict[int, bytes]:
        return {RAW: message, SIGNED: payload_of(message)}

    def said(step: Step) -> dict[int, bytes]:
        return both(found.said[step][LIAR])

    place = found.victims[Step.ACKNOWLEDGE]._frozen().position(VICTIM)
    deliveries = pack_deliveries(found.deliveries)
    return {
        "member_config": {RAW: signed_terms(), SIGNED: TERMS.to_bytes()},
        "member_share": said(Step.ADVERTISE) | {MANY: pack_list(found.roster)},
        "member_acknowledge": {
            RAW: pack_deliveries({LIAR: found.deliveries[LIAR]})[0],
            SIGNED: found.parts[LIAR][place],
            MANY: pack_list(deliveries),
            DEALT: bytes(64),
        },
        "member_mask": both(found.members),
        "member_confirm": said(Step.MASK) | {MANY: pack_list(found.uploads)},
        "member_reveal": said(Step.CONFIRM) | {MANY: pack_list(found.confirmations)},
        "gathering_advertisement": said(Step.ADVERTISE),
        "gathering_sharing": said(Step.SHARE) | {MANY: pack_list(found.parts[LIAR])},
        "gathering_acknowledgement": said(Step.ACKNOWLEDGE),
        "gathering_upload": said(Step.MASK),
        "gathering_confirmation": said(Step.CONFIRM),
        "gathering_reveal": said(Step.REVEAL),
        "exchange": {
            0: exchange.pack_share_request(b"directory", found.roster),
            1: exchange.pack_sharing(found.said[Step.SHARE][LIAR], found.parts[LIAR]),
            2: exchange.pack_messages(found.uploads),
            3: exchange.pack_messages(deliveries),
        },
    }


def _name(target: str, mode: int) -> str:
    if target == "gathering_sharing" and mode != MANY:
        return f"seed-{_MODES[mode]}"  # of parts that were sealed at random
    return f"valid-{_MODES[mode] if target != 'exchange' else mode}"


def write() -> None:
    found = scene()
    assert found.evidence is not None and found.finished is not None
    files = {
        f"{target}/{_name(target, mode)}": bytes([mode]) + rest
        for target, forms in seeds().items()
        for mode, rest in forms.items()
    }
    files["evidence/valid"] = found.evidence.to_bytes()
    files["journal/valid"] = journal_to_bytes(found.finished.journal)
    _store(files | ledger_seeds())


def _store(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    _store(ledger_seeds()) if "--ledger" in sys.argv else write()
