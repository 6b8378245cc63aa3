"""`privacy-audit round`: a published sum recomputed, bit for bit, from what led to it.

    FOLDER/evidence      every signed message, and the parts that were dealt
    FOLDER/result        what the coordinator signed about the sum
    FOLDER/NAME.masked   the masked vector of every survivor, little-endian uint32
    FOLDER/directory     the signed directory that the terms name     (or --directory FILE)
    FOLDER/authority     the public key that signed it, 64 hex digits (or --key with the key itself)
    FOLDER/../log        every published result, see `audit.log`     (or --log FILE)

Offline, and with one thing taken on trust: that `--key` is the enrolment authority's, which every
data owner pinned when it joined. From it follow the directory, the coordinator's key, the members'
keys, and then every signature.

What it does not show: that members put honest updates in. Source: `docs/adr/0006-secure-aggregation.md`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from offsite.audit.files import read_file
from offsite.audit.log import LOG, LogPlace, find_in_log
from offsite.secure import envelope
from offsite.secure.aggregation.evidence import (
    EVIDENCE_BYTES,
    Evidence,
    Verified,
    verify_round,
    words_sha256,
)
from offsite.secure.aggregation.fixed_point import decode
from offsite.secure.aggregation.keystream import WORD_BYTES, Words
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.messages import MESSAGE_BYTES
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.directory import Directory, open_directory
from offsite.secure.errors import (
    ConfigError,
    IdentityError,
    IntegrityError,
    PolicyError,
    SignatureError,
)
from offsite.secure.identity import IdentityPublicKey

EVIDENCE: Final = "evidence"
RESULT: Final = "result"
DIRECTORY: Final = "directory"
AUTHORITY: Final = "authority"
MASKED: Final = ".masked"
_ENVELOPE_BYTES: Final = MESSAGE_BYTES + 1024
_KEY_DIGITS: Final = 64
_SHORT_CHARS: Final = 19

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was established about one round."""

    terms: RoundConfig
    verified: Verified
    authority: IdentityPublicKey
    coordinator: IdentityPublicKey
    members: tuple[str, ...]
    signatures: int
    total_weight: float
    unused: tuple[str, ...]
    """Names of masked vectors that lie in the folder but are not in the sum: they came late."""
    log: LogPlace | None
    """None where no log was given or lies beside the folder."""

    def document(self) -> dict[str, object]:
        """For `--json`."""
        terms, found = self.terms, self.verified
        return {
            "is_valid": True,
            "project": terms.project,
            "campaign_id": terms.campaign_id,
            "round_id": terms.round_id.hex(),
            "attempt": terms.attempt,
            "cohort": terms.cohort,
            "binding": terms.binding.hex(),
            "config_sha256": terms.digest.hex(),
            "directory_version": terms.directory_version,
            "authority_key": self.authority.short,
            "coordinator_key": self.coordinator.short,
            "members": list(self.members),
            "survivors": list(found.survivors),
            "dropped": list(found.dropped),
            "not_in_the_sum": list(self.unused),
            "signatures_verified": self.signatures,
            "values": terms.values,
            "total_weight": self.total_weight,
            "sum_sha256": words_sha256(found.total).hex(),
            "transcript_root": found.result.transcript_root.hex(),
            "log": None if self.log is None else self.log.document(),
        }


@dataclass(frozen=True, slots=True)
class Beside:
    """Files that need not lie in the folder of the round."""

    directory: Path | None = None
    """Default: the one in the folder."""
    log: Path | None = None
    """Default: `log` in the folder above, if there is one."""
    kept_head: Path | None = None
    """A log head that somebody else kept earlier."""


def audit_round(
    folder: Path,
    key: str,
    beside: Beside = Beside(),
    threads: int = 1,
    report: Report = lambda done, total: None,
) -> Audit:
    """Recomputes the sum in `folder` and verifies every signature that led to it.

    Args:
        key: the authority's public key (64 hex digits), or its fingerprint, short or long.
        report: called after each masked vector, with how many were read and how many there are.

    Raises:
        ConfigError: a file is missing, or the key cannot be one.
        PeerError: something does not fit; says what.

    Guarantees: a change of any bit of a file that was used is refused
    (`test_a_changed_bit_of_any_file_is_refused`).
    """
    evidence = Evidence.from_bytes(_read(folder / EVIDENCE, EVIDENCE_BYTES))
    result = _read(folder / RESULT, _ENVELOPE_BYTES)
    # (1) Who names everybody: the authority, and the directory that it signed.
    signed_directory = _read(beside.directory or folder / DIRECTORY, _ENVELOPE_BYTES)
    authority = _authority(folder, key, signed_directory)
    # (Its expiry was the members' concern, when they took part; an audit comes later.)
    directory = open_directory(envelope.from_bytes(signed_directory), authority, 0.0)
    coordinator = directory.coordinator().identity_key
    # (2) The terms, signed by that coordinator, name this very directory; where it was published.
    terms = open_config(evidence.config, coordinator)
    _check_directory(terms, directory, signed_directory)
    place = _log_place(folder, result, coordinator, beside)
    # (3) Every message of every member, every commitment, and the sum.
    vectors = _Vectors(folder, terms.values + 1, len(evidence.uploads), report)
    try:
        verified = verify_round(
            evidence,
            result,
            coordinator,
            lambda name: directory.active(name).identity_key,
            vectors.read,
            threads,
        )
    except PolicyError as error:  # what a running round would wait for
        raise IntegrityError(f"the evidence is not that of a finished round: {error}") from None
    # (4) What the sum says is what so many members can have said.
    mean = decode(verified.total, len(verified.survivors), terms.fixed_point)
    members = tuple(sorted((*verified.survivors, *verified.dropped)))
    return Audit(
        terms,
        verified,
        authority,
        coordinator,
        members,
        _signatures(evidence),
        mean.total_weight,
        vectors.unused(),
        place,
    )


def _log_place(
    folder: Path, result: bytes, coordinator: IdentityPublicKey, beside: Beside
) -> LogPlace | None:
    log = beside.log or folder.resolve().parent / LOG
    if beside.log is None and beside.kept_head is None and not log.exists():
        return None
    return find_in_log(log, result, coordinator, beside.kept_head)


@dataclass(slots=True)
class _Vectors:
    """The masked vectors of a folder, read one at a time, and not into memory."""

    folder: Path
    words: int
    total: int
    report: Report
    done: tuple[str, ...] = ()

    def read(self, name: str) -> Words:
        path = self.folder / f"{name}{MASKED}"
        expected = WORD_BYTES * self.words
        try:
            found = path.stat().st_size
            if found != expected:
                raise IntegrityError(
                    f"{path}: expected {expected} bytes, {self.words} words, found {found}: the "
                    "file was cut, or belongs to another round"
                )
            words: Words = np.memmap(path, "<u4", "r")
        except FileNotFoundError:
            raise ConfigError(
                f"expected the masked vector of every survivor, found no {path}: copy it from the "
                "coordinator's evidence"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        self.done = (*self.done, name)
        self.report(len(self.done), self.total)
        return words

    def unused(self) -> tuple[str, ...]:
        there = {path.name.removesuffix(MASKED) for path in self.folder.glob(f"*{MASKED}")}
        return tuple(sorted(there - set(self.done)))


def _read(path: Path, most: int) -> bytes:
    return read_file(
        path, most, "give the folder of one round, as the coordinator keeps it under evidence/"
    )


def _authority(folder: Path, key: str, signed_directory: bytes) -> IdentityPublicKey:
    """The authority's public key, which is the one that `key` says."""
    signer = envelope.from_bytes(signed_directory).key_id
    text = key.strip().lower()
    if _is_hex(text) and hashlib.sha256(bytes.fromhex(text)).digest() == signer:
        return IdentityPublicKey(bytes.fromhex(text))
    if not _is_hex(text) and len(text) != _SHORT_CHARS:
        raise ConfigError(
            f"--key: expected {_KEY_DIGITS} hex digits, or a fingerprint like abcd-efgh-ijkl-mnop, "
            f"found {key[:80]!r}"
        )
    stored = _read(folder / AUTHORITY, 2 * _KEY_DIGITS).decode("latin-1").removesuffix("\n")
    if not _is_hex(stored):
        raise IntegrityError(f"{folder / AUTHORITY}: expected {_KEY_DIGITS} hex digits")
    found = IdentityPublicKey(bytes.fromhex(stored))
    if text not in (found.short, found.fingerprint.hex(), found.raw.hex()):
        raise SignatureError(
            f"expected a directory signed by the authority {key}, found {found.short}: another "
            "authority made it, or --key is mistyped"
        )
    return found


def _is_hex(text: str) -> bool:
    return len(text) == _KEY_DIGITS and set(text) <= set("0123456789abcdef")


def _check_directory(terms: RoundConfig, directory: Directory, signed: bytes) -> None:
    stated = (terms.directory_version, terms.directory_sha256)
    if stated != (directory.version, hashlib.sha256(signed).digest()):
        raise IdentityError(
            f"expected the directory that the terms name, version {terms.directory_version}, found "
            f"version {directory.version}: give the one that this round was made with"
        )


def _signatures(evidence: Evidence) -> int:
    """How many were verified: of the members' messages, and of directory, terms, members, result."""
    return 4 + sum(
        len(messages)
        for messages in (
            evidence.advertisements,
            evidence.sharings,
            evidence.acknowledgements,
            evidence.uploads,
            evidence.confirmations,
            evidence.reveals,
        )
    )
