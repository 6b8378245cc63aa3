"""What a coordinator keeps of a secure sum, and how anybody recomputes the sum from it.

The evidence of a round is every signed message, as the exact bytes that came, and the parts that
were dealt; beside it lie the masked vectors of the survivors. Whoever has both repeats phase 5 and
gets the published sum bit for bit (`verify_round`), offline and without trusting the coordinator.
Keeping masked vectors together with revealed b of survivors weakens nobody: the pair masks stay.

    transcript = Merkle tree over leaves in this order: terms, advertisements, sharings,
                 acknowledgements, members, uploads, confirmations, reveals

Its root stands in the signed result, and results are the leaves of the coordinator's log.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np

from offsite.secure.aggregation import merkle
from offsite.secure.aggregation.encoding import Reader, pack, pack_list
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.messages import (
    MESSAGE_BYTES,
    PART_BYTES,
    Acknowledgement,
    Members,
    Result,
    Reveal,
    Sharing,
    Upload,
    claimed,
    opened,
)
from offsite.secure.aggregation.roster import KeyOf
from offsite.secure.aggregation.round_config import MOST_MEMBERS, RoundConfig
from offsite.secure.aggregation.survivors import check_confirmations
from offsite.secure.errors import IntegrityError
from offsite.secure.identity import IdentityPublicKey

MAGIC: Final = b"offsite secure sum, evidence 1"
EVIDENCE_BYTES: Final = 1 << 30
_PARTS_BYTES: Final = MOST_MEMBERS * (PART_BYTES + 8)

VectorOf = Callable[[str], Words]
"""The masked vector of a survivor, uint32 (d + 1,)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Signed messages in the order of their authors' names; `result` comes last."""

    config: bytes
    advertisements: tuple[bytes, ...]
    sharings: tuple[bytes, ...]
    parts: tuple[tuple[bytes, ...], ...]  # in the order of `sharings`
    acknowledgements: tuple[bytes, ...]
    members: bytes
    uploads: tuple[bytes, ...]
    confirmations: tuple[bytes, ...]
    reveals: tuple[bytes, ...]

    @property
    def transcript(self) -> list[bytes]:
        """The leaves' digests. Parts hang on their sharings by a root of their own."""
        leaves: Iterable[bytes] = (
            self.config,
            *self.advertisements,
            *self.sharings,
            *self.acknowledgements,
            self.members,
            *self.uploads,
            *self.confirmations,
            *self.reveals,
        )
        return [merkle.leaf_digest(leaf) for leaf in leaves]

    @property
    def transcript_root(self) -> bytes:
        return merkle.root(self.transcript)

    def to_bytes(self) -> bytes:
        """For a file."""
        lists = (
            self.advertisements,
            self.sharings,
            [pack_list(parts) for parts in self.parts],
            self.acknowledgements,
            self.uploads,
            self.confirmations,
            self.reveals,
        )
        return pack((MAGIC, self.config, self.members, *(pack_list(items) for items in lists)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Evidence":
        """Reads what `to_bytes` wrote. Raises IntegrityError for anything else."""
        reader = Reader(data, "evidence")
        if reader.field("kind", len(MAGIC)) != MAGIC:
            raise IntegrityError("expected the evidence of a secure sum, found another file")
        config = reader.field("config", MESSAGE_BYTES)
        members = reader.field("members", MESSAGE_BYTES)

        def messages(name: str) -> tuple[bytes, ...]:
            return reader.items(name, MOST_MEMBERS, MESSAGE_BYTES)

        advertisements, sharings = messages("advertisements"), messages("sharings")
        packed = reader.items("parts", MOST_MEMBERS, _PARTS_BYTES)
        parts = tuple(
            Reader(pack((item,)), "parts").items("parts", MOST_MEMBERS, PART_BYTES)
            for item in packed
        )
        found = cls(
            config,
            advertisements,
            sharings,
            parts,
            messages("acknowledgements"),
            members,
            messages("uploads"),
            messages("confirmations"),
            messages("reveals"),
        )
        reader.close()
        return found


def collect(gathering: Gathering, config: bytes) -> Evidence:
    """The evidence of a sum that was unmasked; `config` are its signed terms."""
    received = gathering.received
    dealers = [name for name in gathering.roster.client_ids if name in received.sharings]

    def ordered(box: dict[str, bytes]) -> tuple[bytes, ...]:
        return tuple(box[name] for name in sorted(box))

    return Evidence(
        config=config,
        advertisements=gathering.roster.signed,
        sharings=tuple(received.sharings[name] for name in dealers),
        parts=tuple(received.parts[name] for name in dealers),
        acknowledgements=ordered(received.acknowledgements),
        members=gathering.freeze_members(),
        uploads=gathering.freeze_survivors(),
        confirmations=ordered(received.confirmations),
        reveals=ordered(received.reveals),
    )


@dataclass(frozen=True, slots=True)
class Verified:
    """What an audit established."""

    result: Result
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    total: Words


def verify_round(
    evidence: Evidence,
    result: bytes,
    coordinator: IdentityPublicKey,
    key_of: KeyOf,
    vector_of: VectorOf,
    threads: int = 1,
) -> Verified:
    """Recomputes a published sum and checks every signature and commitment that led to it.

    Raises:
        PeerError: something does not fit; says what.

    Guarantees: a result that another sum, other members or a changed message led to is refused
    (`test_a_changed_round_fails_its_audit`).
    """
    # (1) The coordinator's result and terms.
    stated = opened(Result, result, coordinator)
    terms = open_config(evidence.config, coordinator)
    if stated.config != terms.digest:
        raise IntegrityError("expected a result of these terms, found one of others")
    # (2) Every message of every member, taken in as the coordinator should have.
    gathering = _replayed(evidence, terms, coordinator, key_of)
    agreement = gathering.agreement
    found = (agreement.roster.digest, agreement.survivors_digest)
    if found != (stated.roster, stated.survivors):
        raise IntegrityError("expected a result of these members, found one of others")
    check_confirmations(
        agreement.roster,
        agreement.survivors_digest,
        agreement.survivors,
        evidence.confirmations,
        key_of,
    )
    # (3) The transcript that the result names.
    if evidence.transcript_root != stated.transcript_root:
        raise IntegrityError("expected the transcript that the result names, found another")
    # (4) The sum, from the masked vectors and what was revealed.
    total = np.zeros(terms.values + 1, np.uint32)
    for header in evidence.uploads:
        _add_vector(total, header, vector_of)
    masks = [mask.opposite for mask in gathering.masks()]
    apply_masks(total, masks, terms.generator, threads)
    if words_sha256(total) != stated.sum_sha256:
        raise IntegrityError("expected the published sum, found another: it was not made of these")
    return Verified(stated, agreement.survivors, agreement.dropped, total)


def words_sha256(words: Words) -> bytes:
    """SHA-256 of a vector's words, little-endian."""
    return sha256(words.astype("<u4", copy=False).view(np.uint8).data).digest()


def _add_vector(total: Words, header: bytes, vector_of: VectorOf) -> None:
    _, upload = claimed(Upload, header)
    words = vector_of(upload.client_id)
    if words.shape != total.shape or words_sha256(words) != upload.sha256:
        raise IntegrityError(
            f"{upload.client_id}: expected the masked vector that it signed, found another"
        )
    np.add(total, words, out=total)


def _replayed(
    evidence: Evidence, terms: RoundConfig, coordinator: IdentityPublicKey, key_of: KeyOf
) -> Gathering:
    """A gathering that took in all of it; only its coordinator's key is missing."""
    gathering = Gathering(terms, None, key_of)
    for data in evidence.advertisements:
        gathering.add_advertisement(data)
    gathering.freeze_roster()
    if len(evidence.sharings) != len(evidence.parts):
        raise IntegrityError(
            f"expected the parts of {len(evidence.sharings)} sharings, found those of "
            f"{len(evidence.parts)}"
        )
    for data, parts in zip(evidence.sharings, evidence.parts, strict=True):
        gathering.add_sharing(data, parts, _author(data, Sharing))
    for data in evidence.acknowledgements:
        gathering.add_acknowledgement(data, _author(data, Acknowledgement))
    gathering.adopt_members(opened(Members, evidence.members, coordinator))
    for data in evidence.uploads:
        gathering.add_upload(data, _author(data, Upload))
    gathering.freeze_survivors()
    for data in evidence.reveals:
        gathering.add_reveal(data, _author(data, Reveal))
    return gathering


def _author(data: bytes, kind: type[Sharing | Acknowledgement | Upload | Reveal]) -> str:
    """Whose message it claims to be; its signature is checked where it is taken in."""
    return claimed(kind, data)[1].client_id
