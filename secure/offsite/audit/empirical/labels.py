"""Who is in: a fair coin for each canary, bound by a digest before the run, opened once after it.

    bits        SHAKE-256( "offsite/1 canary labels" | name | key )
    commitment  SHA-256( "offsite/1 canary labels" | name | count | key )

Whoever reads the labels before guessing can make any mechanism look broken, and whoever chooses a
threshold after reading them does so without noticing. So the guesses are committed first: labels
open for the digest of the guesses that they were bound to, and for no other. The key is part of the
evidence afterwards, so that anybody can count again.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError, PolicyError

KEY_BYTES: Final = 32
_DOMAIN: Final = b"offsite/1 canary labels\0"


def labels_from(key: bytes, name: str, count: int) -> NDArray[np.bool_]:
    """Which of `count` canaries are in."""
    stream = hashlib.shake_256(_DOMAIN + name.encode() + b"\0" + key).digest((count + 7) // 8)
    return np.unpackbits(np.frombuffer(stream, np.uint8))[:count].astype(np.bool_)


def commitment_to(key: bytes, name: str, count: int) -> bytes:
    """What is published before the run."""
    return hashlib.sha256(_DOMAIN + name.encode() + b"\0" + count.to_bytes(8) + key).digest()


class SealedLabels:
    """Labels that only the run may see until the guesses are committed.

    Guarantees: `test_labels_open_only_for_committed_guesses`.
    """

    __slots__ = ("_bound_to", "_key", "count", "name")

    def __init__(self, key: bytes, name: str, count: int) -> None:
        if len(key) != KEY_BYTES or count < 1:
            raise ConfigError(
                f"canary labels: expected a key of {KEY_BYTES} bytes and 1 canary or more, found "
                f"{len(key)} bytes and {count} canaries"
            )
        self._key = key
        self._bound_to: bytes | None = None
        self.name = name
        self.count = count

    @property
    def commitment(self) -> bytes:
        return commitment_to(self._key, self.name, self.count)

    def for_the_run(self) -> NDArray[np.bool_]:
        """Whom the run includes. No score may depend on it."""
        return labels_from(self._key, self.name, self.count)

    def bind(self, guesses_sha256: bytes) -> None:
        """Says which guesses were committed; they cannot be exchanged afterwards.

        Raises:
            PolicyError: other guesses were committed before.
        """
        if self._bound_to not in (None, guesses_sha256):
            raise PolicyError("canary labels: expected the guesses that were committed, not others")
        self._bound_to = guesses_sha256

    def open(self, guesses_sha256: bytes) -> bytes:
        """The key, for the guesses that were committed.

        Raises:
            PolicyError: no guesses, or others, were committed.
        """
        if self._bound_to is None or self._bound_to != guesses_sha256:
            raise PolicyError(
                "canary labels: expected guesses that were committed before the labels are "
                "opened, found none: a bound from guesses made afterwards means nothing"
            )
        return self._key

    def __repr__(self) -> str:
        return f"SealedLabels({self.name!r}, {self.count})"
