"""What passes between a SuperNode and the SuperLink behind our port: the rules both ends keep.

A SuperLink serves nodes, operators and apps on one port, and whoever reaches it may start runs on
every node. So nothing passes but the calls of a node that signs them, by their exact paths, with the
headers that Flower checks and none other. The path is compared whole: there is no prefix to climb
out of.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from offsite.secure import limits
from offsite.secure.errors import PeerError

PREFIX: Final = "/v1/fleet/"
PULL_MESSAGES: Final = PREFIX + "pull-messages"
PUSH_OBJECT: Final = PREFIX + "push-object"
PATHS: Final = frozenset(
    {
        PULL_MESSAGES,
        PUSH_OBJECT,
        PREFIX + "activate-node",
        PREFIX + "confirm-message-received",
        PREFIX + "deactivate-node",
        PREFIX + "get-fab",
        PREFIX + "get-run",
        PREFIX + "pull-object",
        PREFIX + "push-messages",
        PREFIX + "send-node-heartbeat",
    }
)
"""Of Flower's Fleet API all but registering and unregistering oneself: who may be a node, we say."""
PUBLIC_KEY: Final = "flwr-public-key"
HEADERS: Final = frozenset({"content-type", PUBLIC_KEY, "flwr-timestamp", "flwr-signature"})
HEADER_CHARS: Final = 1024
CONTENT_TYPE_CHARS: Final = 128
BODY_BYTES: Final = 16 * limits.MIB
"""Arrays travel in parts of 5 MiB; everything else is smaller by far."""
KEY_PEM_BYTES: Final = 1024
HOLD_S: Final = 15.0
"""How long a question for messages may be held while there are none; Flower waits 30 s for an answer."""


@dataclass(frozen=True, slots=True)
class FleetCall:
    """A call of a SuperNode."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class FleetAnswer:
    """What the SuperLink answered."""

    status: int
    content_type: str
    body: bytes

    @property
    def is_empty(self) -> bool:
        """An answer without anything in it: to a question for messages, that there are none."""
        return self.status == 200 and not self.body


def passing_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of what a SuperNode sent, what passes."""
    named = {name.lower(): value for name, value in headers.items()}
    return {name: named[name] for name in HEADERS & named.keys()}


def check_call(path: str, headers: Mapping[str, str]) -> None:
    """Raises PeerError for what is no call of a node."""
    if path not in PATHS:
        raise PeerError(f"expected a call of Flower's Fleet API, found {path[:64]!r}")
    if not headers.keys() <= HEADERS:
        raise PeerError("expected the headers that a SuperNode signs with, found others")
    for value in headers.values():
        if len(value) > HEADER_CHARS or not value.isascii() or not value.isprintable():
            raise PeerError(f"expected headers of at most {HEADER_CHARS} printable characters")


def check_body_bytes(found: int) -> None:
    """Raises PeerError for a body above the limit."""
    if found > BODY_BYTES:
        raise PeerError(f"expected a body of at most {BODY_BYTES} bytes, found at least {found}")


def chunks(body: bytes) -> Iterator[bytes]:
    """The parts of a body, as large as any message of a service may be."""
    view = memoryview(body)
    for start in range(0, len(body), limits.CHUNK_BYTES):
        yield bytes(view[start : start + limits.CHUNK_BYTES])
