"""A finished round in a folder, as a coordinator keeps it, for audits."""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
from tests.secure.aggregation.fleets import COORDINATOR, config, fleet, identity_of, name_of

from offsite.audit.round import AUTHORITY, DIRECTORY, EVIDENCE, MASKED, RESULT
from offsite.secure import envelope
from offsite.secure.aggregation.evidence import collect, words_sha256
from offsite.secure.aggregation.messages import Result, signed
from offsite.secure.aggregation.round_config import CONFIG_TYPE
from offsite.secure.aggregation.runner import Fleet, Phase
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.identity import IdentityKey

ENROLMENT: Final = IdentityKey.from_seed(hashlib.sha256(b"authority").digest())
CLIENTS: Final = 5
LOST: Final = name_of(3)
VALUES: Final = 8


def directory(version: int = 1) -> bytes:
    """Signed; names the coordinator and all clients."""
    entries = [
        DirectoryEntry(name, identity_of(name).public, Role.CLIENT, Status.ACTIVE, 0.0)
        for name in map(name_of, range(CLIENTS))
    ]
    head = DirectoryEntry("coordinator", COORDINATOR.public, Role.COORDINATOR, Status.ACTIVE, 0.0)
    return envelope.to_bytes(sign_directory(Directory(version, (head, *entries)), ENROLMENT))


def write_round(folder: Path) -> np.ndarray:
    """Plays a round in which one of five drops out, and keeps its evidence; returns the sum."""
    terms = config(
        CLIENTS, VALUES, directory_sha256=hashlib.sha256(directory()).digest(), campaign_id="7"
    )
    parties, _ = fleet(CLIENTS, VALUES, {LOST: Phase.MASK}, terms)
    _keep_vectors(parties, folder)
    total = parties.run().total
    gathering = parties.gathering
    signed_terms = envelope.to_bytes(envelope.sign(CONFIG_TYPE, terms.to_bytes(), COORDINATOR))
    evidence = collect(gathering, signed_terms)
    agreement = gathering.agreement
    result = Result(
        terms.digest,
        agreement.roster.digest,
        agreement.survivors_digest,
        words_sha256(total),
        evidence.transcript_root,
    )
    (folder / EVIDENCE).write_bytes(evidence.to_bytes())
    (folder / RESULT).write_bytes(signed(result, COORDINATOR))
    (folder / DIRECTORY).write_bytes(directory())
    (folder / AUTHORITY).write_text(ENROLMENT.public.raw.hex() + "\n")
    return total


def _keep_vectors(parties: Fleet, folder: Path) -> None:
    for name, party in parties.members.items():
        mask = party.mask

        def keeping(
            members: bytes, words: np.ndarray, *rest: object, name: str = name, mask: object = mask
        ) -> bytes:
            header: bytes = mask(members, words, *rest)  # type: ignore[operator]
            (folder / f"{name}{MASKED}").write_bytes(words.astype("<u4").tobytes())
            return header

        party.mask = keeping  # type: ignore[method-assign]
