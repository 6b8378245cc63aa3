"""The edge's state folder: layout, lock, and what it remembers of its coordinator.

Notable: the identity seed is on disk before it is ever used, so an interrupted enrolment goes on
with the same key; TLS key and certificate lie in one file, so a renewal replaces both or neither.
Everything is 0600 inside 0700 folders, and no file is ever seen half written.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from filelock import FileLock

from offsite.emulator.durable import lock_folder, private_folder, unreadable, write_atomic
from offsite.secure import directory, envelope, names
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.directory import Directory
from offsite.secure.envelope import Envelope
from offsite.secure.errors import ConfigError, OffsiteError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

SEED_BYTES: Final = 32
POLICY: Final = ("least_cohort", "most_norm_bound", "most_coordinate_bound")
"""What the owner of an edge may change of the policy."""
LAPSED: Final = (
    "the certificate of this edge has expired; ask the coordinator's operator to invite it again "
    "under the same name, then run `edge-client join` with the new token and the same state folder: "
    "nothing was lost"
)


@dataclass(frozen=True, slots=True)
class Membership:
    """What an enrolled edge knows: its name, where its coordinator is, and the pinned keys."""

    client_id: str
    address: str
    token_id: bytes
    directory_key: IdentityPublicKey

    def to_json(self) -> bytes:
        fields = {
            "client_id": self.client_id,
            "address": self.address,
            "token_id": self.token_id.hex(),
            "directory_key": self.directory_key.raw.hex(),
        }
        return json.dumps(fields, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        fields = json.loads(data)
        return cls(
            client_id=names.check_client_id(fields["client_id"]),
            address=str(fields["address"]),
            token_id=bytes.fromhex(fields["token_id"]),
            directory_key=IdentityPublicKey(bytes.fromhex(fields["directory_key"])),
        )


class EdgeState:
    """An opened state folder; a context manager that gives the lock back."""

    def __init__(self, root: Path, lock: FileLock | None) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def open(cls, root: Path, *, exclusive: bool = True) -> Self:
        """Opens a folder; one that is opened to work in is laid out and locked.

        Raises:
            StateLockedError: another process works in it.
            ConfigError: it belongs to somebody else, or others can write it.
        """
        state = cls(root, None)
        if exclusive:
            for folder in (root, state.keys, state.rounds):
                private_folder(folder)
            state._lock = lock_folder(root)
        return state

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def rounds(self) -> Path:
        return self.root / "rounds"

    @property
    def sums(self) -> Path:
        """The secure sums that this edge takes part in (`secure_folder`)."""
        return self.root / "secure"

    @property
    def ledger(self) -> Path:
        """What was spent of the privacy of the owner's data (`privacy.ledger_folder`)."""
        return self.root / "ledger"

    @property
    def attack(self) -> Path:
        """What is kept for the attack on updates, and its evidence (`attack.attack_rounds`)."""
        return self.root / "attack"

    @property
    def log(self) -> Path:
        return self.root / "edge.log"

    @property
    def _membership(self) -> Path:
        return self.root / "edge.json"

    @property
    def _tls(self) -> Path:
        return self.keys / "tls.pem"

    @property
    def _directory(self) -> Path:
        return self.root / "directory.envelope"

    @property
    def is_enrolled(self) -> bool:
        """True once every file of an enrolment is in place; the membership is written last."""
        return self._membership.exists()

    def membership(self) -> Membership:
        """Raises ConfigError before enrolment."""
        data = self._read(self._membership)
        try:
            return Membership.from_json(data)
        except (ValueError, KeyError, TypeError, OffsiteError) as error:
            raise _damaged(self._membership) from error

    def identity_key(self) -> IdentityKey:
        """The Ed25519 key of this edge, made and stored at first use."""
        path = self.keys / "identity.seed"
        if not path.exists():
            write_atomic(path, secrets.token_bytes(SEED_BYTES))
        seed = self._read(path)
        if len(seed) != SEED_BYTES:
            raise _damaged(path)
        return IdentityKey.from_seed(seed)

    def tls_pem(self) -> bytes:
        """Private key, client certificate and CA certificate, in this order."""
        return self._read(self._tls)

    def ca_pem(self) -> bytes:
        """The coordinator's CA, pinned by the join token."""
        return self._read(self.keys / "ca.pem")

    def save_tls(self, tls_pem: bytes) -> None:
        write_atomic(self._tls, tls_pem)

    def save_enrolment(
        self, membership: Membership, tls_pem: bytes, ca_pem: bytes, signed: Envelope
    ) -> None:
        """Stores an enrolment; the membership comes last and makes it count."""
        write_atomic(self.keys / "ca.pem", ca_pem)
        self.save_tls(tls_pem)
        self.save_directory(signed)
        write_atomic(self._membership, membership.to_json())

    def directory(self, now_unix_s: float) -> Directory:
        """The newest directory that was accepted, checked against the pinned key again."""
        signed = envelope.from_bytes(self._read(self._directory))
        return directory.open_directory(signed, self.membership().directory_key, now_unix_s)

    def save_directory(self, signed: Envelope) -> None:
        """Stores a directory that was verified, and checked to be a successor, before."""
        write_atomic(self._directory, envelope.to_bytes(signed))

    def policy(self) -> PolicyFloor:
        """What this machine demands of a sum: what its owner said, or the defaults."""
        path = self.root / "policy.json"
        if not path.exists():
            return PolicyFloor()
        try:
            return PolicyFloor(**{name: json.loads(self._read(path))[name] for name in POLICY})
        except (ValueError, KeyError, TypeError, OffsiteError) as error:
            raise _damaged(path) from error

    def save_policy(self, policy: PolicyFloor) -> None:
        fields = {name: getattr(policy, name) for name in POLICY}
        write_atomic(self.root / "policy.json", json.dumps(fields, indent=2).encode() + b"\n")

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path} is missing: this edge has not joined, or its state was damaged; run "
                "`edge-client join` with the token"
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is damaged; restore it from a backup, or join again with an empty state folder "
        "and a new token"
    )
