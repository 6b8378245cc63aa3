"""Which key the SuperNode of each client signs with: `flower/nodes/<client id>.pem`.

A client tells its key over its own authenticated call, so a key is as good as the certificate that
it was told under. The SuperLink knows keys and numbers of nodes; whose they are is known here alone.
"""

import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from offsite.emulator.durable import machine_errors, private_folder, write_atomic
from offsite.emulator.engines.flower.fleet_wire import KEY_PEM_BYTES
from offsite.secure.errors import IdentityError
from offsite.secure.names import check_client_id


class NodeKeys:
    """Keys by client id, on the disk. Safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        self._folder = folder
        self._lock = threading.Lock()
        with machine_errors(folder):
            self._keys = {path.stem: path.read_bytes() for path in folder.glob("*.pem")}

    def set(self, client_id: str, public_key_pem: bytes) -> bytes:
        """Remembers a client's key in place of an earlier one; returns it as Flower writes it.

        Raises:
            IdentityError: it is no key of the curve P-384, or another client's.
        """
        canonical = _canonical(public_key_pem)
        with self._lock:
            if any(key == canonical for name, key in self._keys.items() if name != client_id):
                raise IdentityError(
                    f"expected a key of {client_id}'s own, found that of another client"
                )
            if self._keys.get(client_id) != canonical:
                write_atomic(self._folder / f"{check_client_id(client_id)}.pem", canonical)
                self._keys[client_id] = canonical
        return canonical

    def of(self, client_id: str) -> bytes | None:
        """The key of a client (PEM), if it told one."""
        with self._lock:
            return self._keys.get(client_id)

    def clients(self) -> dict[bytes, str]:
        """Client ids by key."""
        with self._lock:
            return {key: client_id for client_id, key in self._keys.items()}


def _canonical(public_key_pem: bytes) -> bytes:
    try:
        if len(public_key_pem) > KEY_PEM_BYTES:
            raise ValueError
        key = load_pem_public_key(public_key_pem)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError("expected the PEM of a public key on the curve P-384, found another")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
