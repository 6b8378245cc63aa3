"""The directory: who takes part, with which identity key, and who was revoked.

It is one JSON document with a version, signed by the enrolment authority, whose key every client
pinned when it joined. Clients take it from the coordinator, so the rules that keep the coordinator
from rewriting history are checked here: the version only grows, no entry vanishes, no key or role
changes, and who was revoked stays revoked.

Reading is strict: unknown and missing fields, wrong types, repeated names and repeated keys are
refused, and there is one encoding of a directory (sorted keys, no spaces, entries by client id).
Idea: TUF's root role (monotonic version, expiry), reduced to one signer.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from offsite.secure import limits, names
from offsite.secure.envelope import Envelope, sign, verify
from offsite.secure.errors import ExpiredError, IdentityError, IntegrityError, PolicyError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

PAYLOAD_TYPE = "application/vnd.offsite.directory+json"
FORMAT = 1
REASON_CHARS = 200
TLS_FINGERPRINT_BYTES = 32
_MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    IdentityError,
    PolicyError,
)
_MAX_VERSION = 2**53 - 1  # the largest integer that every JSON reader keeps exact


class Role(StrEnum):
    """What an entry's key may sign for."""

    CLIENT = "client"
    COORDINATOR = "coordinator"


class Status(StrEnum):
    """Whether an entry counts."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One party. `since_unix_s` is when its status began; `reason` says why it was revoked."""

    client_id: str
    identity_key: IdentityPublicKey
    role: Role
    status: Status
    since_unix_s: float
    reason: str = ""
    tls_fingerprint: bytes | None = None

    def __post_init__(self) -> None:
        names.check_client_id(self.client_id)
        if len(self.reason) > REASON_CHARS or not self.reason.isprintable():
            raise PolicyError(
                f"expected a reason of at most {REASON_CHARS} printable characters, found "
                f"{self.reason[:REASON_CHARS]!r}: shorten it, on one line"
            )
        if not math.isfinite(self.since_unix_s):
            raise IntegrityError(f"expected a time, found {self.since_unix_s}")
        if self.tls_fingerprint is not None and len(self.tls_fingerprint) != TLS_FINGERPRINT_BYTES:
            raise IntegrityError(
                f"expected a TLS fingerprint of {TLS_FINGERPRINT_BYTES} bytes, "
                f"found {len(self.tls_fingerprint)}"
            )


@dataclass(frozen=True, slots=True)
class Directory:
    """All parties at one version, ordered by client id. Version 0 is the empty start."""

    version: int = 0
    entries: tuple[DirectoryEntry, ...] = ()
    expires_unix_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.version <= _MAX_VERSION:
            raise IntegrityError(f"expected a directory version, found {self.version}")
        if len(self.entries) > limits.CLIENTS:
            raise PolicyError(
                f"expected at most {limits.CLIENTS} directory entries, found {len(self.entries)}"
            )
        ids = [entry.client_id for entry in self.entries]
        if ids != sorted(set(ids)):
            raise IntegrityError("expected directory entries with one id each, in order")
        if len({entry.identity_key for entry in self.entries}) != len(ids):
            raise IdentityError(
                "expected one identity key per directory entry, found one key twice: a client has "
                "to make a new key to join again"
            )

    def find(self, client_id: str) -> DirectoryEntry | None:
        """The entry of that name, of any role and status."""
        return next((entry for entry in self.entries if entry.client_id == client_id), None)

    def active(self, client_id: str) -> DirectoryEntry:
        """The entry of a client that takes part.

        Raises:
            IdentityError: unknown, revoked, or no client.
        """
        entry = self.find(client_id)
        if entry is None or entry.role is not Role.CLIENT:
            raise IdentityError(
                f"expected a client of the directory, found {client_id[:80]!r}, which is not in "
                f"version {self.version}: join first"
            )
        if entry.status is Status.REVOKED:
            raise IdentityError(
                f"expected an active client, found {client_id!r}, which was revoked"
                + (f" ({entry.reason})" if entry.reason else "")
                + ": ask the coordinator's operator"
            )
        return entry

    def coordinator(self) -> DirectoryEntry:
        """The one active coordinator, whose key signs manifests and plans.

        Raises:
            IdentityError: none, or several.
        """
        found = [
            entry
            for entry in self.entries
            if entry.role is Role.COORDINATOR and entry.status is Status.ACTIVE
        ]
        if len(found) != 1:
            raise IdentityError(
                f"expected one active coordinator in the directory, found {len(found)}"
            )
        return found[0]

    def with_entry(self, entry: DirectoryEntry) -> "Directory":
        """The next version with one more entry.

        Raises:
            IdentityError: the name or the key is taken, also by a revoked entry.
        """
        if self.find(entry.client_id) is not None:
            raise IdentityError(
                f"expected a new name, found {entry.client_id!r}, which the directory already "
                "has: choose another name"
            )
        return self._next((*self.entries, entry))

    def with_revoked(self, client_id: str, reason: str, now_unix_s: float) -> "Directory":
        """The next version with one entry revoked, for ever.

        Raises:
            IdentityError: unknown, or revoked before.
        """
        entry = self.find(client_id)
        if entry is None or entry.status is Status.REVOKED:
            raise IdentityError(
                f"expected an active entry to revoke, found {client_id[:80]!r}, which is "
                + ("unknown" if entry is None else "revoked already")
            )
        revoked = dataclasses.replace(
            entry, status=Status.REVOKED, since_unix_s=now_unix_s, reason=reason
        )
        return self._next(tuple(revoked if old is entry else old for old in self.entries))

    def _next(self, entries: tuple[DirectoryEntry, ...]) -> "Directory":
        ordered = tuple(sorted(entries, key=lambda entry: entry.client_id))
        return dataclasses.replace(self, version=self.version + 1, entries=ordered)


def check_successor(old: Directory, new: Directory) -> None:
    """Raises `IdentityError` unless `new` may follow `old`, or is the same.

    Guarantees: no rollback, no second history, no vanished entry, no changed key or role, no
    revoked entry that comes back (`test_what_may_not_follow_a_directory`, one case each).
    """
    if new == old:
        return
    if new.version <= old.version:
        raise IdentityError(
            f"expected a directory newer than version {old.version}, found version {new.version}"
            + (" with other entries" if new.version == old.version else "")
            + ": the coordinator went back in time; ask its operator"
        )
    successors = {entry.client_id: entry for entry in new.entries}
    for entry in old.entries:
        problem = _problem_of_change(entry, successors.get(entry.client_id))
        if problem:
            raise IdentityError(
                f"expected version {new.version} of the directory to keep {entry.client_id!r} as "
                f"it was in version {old.version}, found that {problem}: ask the coordinator's "
                "operator"
            )


def sign_directory(directory: Directory, authority_key: IdentityKey) -> Envelope:
    """The directory in an envelope of the enrolment authority.

    Raises:
        PolicyError: more entries than one message holds.
    """
    payload = to_json(directory)
    if len(payload) > limits.MANIFEST_BYTES:
        raise PolicyError(
            f"expected a directory of at most {limits.MANIFEST_BYTES} bytes, found {len(payload)} "
            f"with {len(directory.entries)} entries: start another coordinator for more clients"
        )
    return sign(PAYLOAD_TYPE, payload, authority_key)


def open_directory(
    envelope: Envelope, authority_key: IdentityPublicKey, now_unix_s: float
) -> Directory:
    """The directory once signature, form and expiry were checked.

    Raises:
        SignatureError: not signed by the pinned authority.
        IntegrityError: signed, but no directory.
        ExpiredError: past its time.
    """
    directory = from_json(verify(envelope, PAYLOAD_TYPE, authority_key))
    expires = directory.expires_unix_s
    if expires is not None and now_unix_s > expires + limits.CLOCK_SKEW_S:
        raise ExpiredError(
            f"expected a current directory, found version {directory.version}, which expired "
            f"{now_unix_s - expires:.0f} s ago: fetch a new one, and check this machine's clock"
        )
    return directory


def to_json(directory: Directory) -> bytes:
    """The one encoding of a directory."""
    document = {
        "format": FORMAT,
        "version": directory.version,
        "expires_unix_s": directory.expires_unix_s,
        "entries": [_entry_to_json(entry) for entry in directory.entries],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def from_json(data: bytes) -> Directory:
    """Reads what `to_json` wrote.

    Raises:
        IntegrityError: anything else.
    """
    if len(data) > limits.MANIFEST_BYTES:
        raise IntegrityError(
            f"expected a directory of at most {limits.MANIFEST_BYTES} bytes, found {len(data)}"
        )
    try:
        directory = _directory_from(json.loads(data))
        canonical = to_json(directory) == data
    except _MALFORMED as error:
        raise IntegrityError(f"expected a directory, found a document that is none: {error}") from (
            None
        )
    if not canonical:
        raise IntegrityError(
            "expected a directory in its one encoding, found unknown fields or another form: use "
            "the same version of offsite on both sides"
        )
    return directory


def _entry_to_json(entry: DirectoryEntry) -> dict[str, object]:
    tls = entry.tls_fingerprint
    return {
        "client_id": entry.client_id,
        "identity_key": entry.identity_key.raw.hex(),
        "role": entry.role.value,
        "status": entry.status.value,
        "since_unix_s": entry.since_unix_s,
        "reason": entry.reason,
        "tls_fingerprint": None if tls is None else tls.hex(),
    }


def _directory_from(document: object) -> Directory:
    fields = _object(document)
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']!r} instead of {FORMAT}")
    entries = fields["entries"]
    if not isinstance(entries, list):
        raise TypeError("entries are no list")
    expires = fields["expires_unix_s"]
    return Directory(
        version=_integer(fields["version"]),
        entries=tuple(_entry_from(_object(entry)) for entry in entries),
        expires_unix_s=None if expires is None else _time(expires),
    )


def _entry_from(fields: Mapping[str, object]) -> DirectoryEntry:
    tls = fields["tls_fingerprint"]
    return DirectoryEntry(
        client_id=_text(fields["client_id"]),
        identity_key=IdentityPublicKey(bytes.fromhex(_text(fields["identity_key"]))),
        role=Role(_text(fields["role"])),
        status=Status(_text(fields["status"])),
        since_unix_s=_time(fields["since_unix_s"]),
        reason=_text(fields["reason"]),
        tls_fingerprint=None if tls is None else bytes.fromhex(_text(tls)),
    )


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError("a field is no object")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a field is no text")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a field is no integer")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError("a field is no time")
    return value


def _problem_of_change(old: DirectoryEntry, new: DirectoryEntry | None) -> str | None:
    if new is None:
        return "it is gone"
    if new.identity_key != old.identity_key:
        return "its identity key changed"
    if new.role is not old.role:
        return "its role changed"
    if old.status is Status.REVOKED and new != old:
        return "its revocation was changed"
    return None
