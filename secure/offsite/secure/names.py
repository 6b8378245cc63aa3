"""Names of the parties: client ids, their SPIFFE URIs, their node ids in Flower.

A client id is chosen by the inviter and is the only name of a client anywhere: in certificates, in
the directory and in messages. The rules here keep it safe as a part of a path, a URI and a log
line. Source of the URI form: the SPIFFE ID specification, section 2.
"""

import hashlib
import re

from offsite.secure import limits
from offsite.secure.errors import IdentityError

SERVER_NAME = "coordinator.offsite.internal"
"""The DNS name in every server certificate; edges expect it at whatever address they dial."""

COORDINATOR_URI = "spiffe://offsite/coordinator"
BOOTSTRAP_URI = "spiffe://offsite/bootstrap"
_CLIENT_URI_PREFIX = "spiffe://offsite/client/"
_CLIENT_ID = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{limits.CLIENT_NAME_CHARS - 1}}}")


def is_client_id(text: str) -> bool:
    """Whether `text` may name a client."""
    return _CLIENT_ID.fullmatch(text) is not None


def check_client_id(text: str) -> str:
    """Returns `text` if it may name a client, else raises `IdentityError`."""
    if not is_client_id(text):
        raise IdentityError(
            f"expected a client name of 1 to {limits.CLIENT_NAME_CHARS} characters from a-z, 0-9 "
            f"and '-' that does not begin with '-', found {text[:80]!r}: choose another name"
        )
    return text


def client_uri(client_id: str) -> str:
    """The SPIFFE URI that a client's certificate carries."""
    return _CLIENT_URI_PREFIX + check_client_id(client_id)


def client_id_from_uri(uri: str) -> str | None:
    """The client id in a SPIFFE URI, or None if the URI names no client."""
    client_id = uri.removeprefix(_CLIENT_URI_PREFIX)
    if client_id == uri or not is_client_id(client_id):
        return None
    return client_id


def node_id(client_id: str) -> int:
    """Flower's number for a client: 63 bits of SHA-256 of its id, never 0 or 1.

    Flower reserves 0 and 1 (unset, and the server's own node).
    """
    digest = hashlib.sha256(check_client_id(client_id).encode("ascii")).digest()
    return max(int.from_bytes(digest[:8], "big") & (2**63 - 1), 2)
