"""The randomness of one private step: 32 bytes of entropy, used once and then gone.

    entropy ─┬─ sampling   key of the keystream that decides which units take part
             ├─ noise      key of the keystream from which the noise is drawn
             └─ identity   16 bytes, by which a second use of the same entropy is recognised

Whoever can guess the entropy subtracts the noise, so there is no way to name it by a number: a
seed, a generator of numpy or torch, or bytes that show a pattern are refused. Noise from a seed of
32 bits was taken off a real update in a second. Entropy is fresh for every step, handed in by the
shell around this core (`os.urandom(32)`), and never written down: after a crash the next step gets
other entropy, and the lost step is charged.

Both keys also depend on the step's name, so that two machines that were cloned with the state of
their random source still draw different noise.

Source: HKDF-Expand, RFC 5869, 2.3, whose input is uniformly random.
"""

import hashlib
from itertools import pairwise
from typing import Final, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.randomness.uniform import UniformStream

ENTROPY_BYTES: Final = 32
_IDENTITY_BYTES: Final = 16
_LEAST_DISTINCT: Final = 18
"""Of 32 random bytes fewer are distinct once in 10^10; of 16 and a padding always."""


class NoiseSource:
    """The two streams of one step; each is taken once.

    Args:
        entropy: 32 bytes of the operating system's random source, never used before.
        step: what names the step on this machine, for example its claim in the ledger.

    Raises:
        PolicyError: something else than entropy. Of entropy, one in 2^32 is refused too; draw again.

    Guarantees: `test_a_seed_is_an_error`, `test_a_source_gives_each_stream_once`,
    `test_a_source_cannot_be_copied`.
    """

    __slots__ = ("_keys", "identity")

    def __init__(self, entropy: bytes, step: bytes) -> None:
        _check_entropy(entropy)
        self.identity = _expand(entropy, "identity", b"", _IDENTITY_BYTES)
        self._keys = {use: _expand(entropy, use, step) for use in ("sampling", "noise")}

    def sampling(self) -> UniformStream:
        """The stream that decides who takes part.

        Raises:
            PolicyError: it was taken before.
        """
        return self._take("sampling")

    def noise(self) -> UniformStream:
        """The stream of which the noise is made.

        Raises:
            PolicyError: it was taken before.
        """
        return self._take("noise")

    def _take(self, use: str) -> UniformStream:
        key = self._keys.pop(use, None)
        if key is None:
            raise PolicyError(
                f"expected a fresh source, found one whose {use} was already drawn: noise that is "
                "used twice cancels out; take new entropy for every step"
            )
        return UniformStream(key)

    def __reduce__(self) -> NoReturn:
        raise PolicyError("a source of noise is never copied or stored; take new entropy instead")

    def __repr__(self) -> str:
        return "NoiseSource()"


def _check_entropy(entropy: object) -> None:
    advice = "a private step takes 32 bytes of the operating system's entropy, never a seed"
    if not isinstance(entropy, bytes):
        raise PolicyError(f"expected bytes of entropy, found {type(entropy).__name__}: {advice}")
    if len(entropy) != ENTROPY_BYTES:
        raise PolicyError(f"expected {ENTROPY_BYTES} bytes, found {len(entropy)}: {advice}")
    steps = {(b - a) % 256 for a, b in pairwise(entropy)}
    patterned = min(len(set(entropy)), len(steps)) < _LEAST_DISTINCT
    if patterned or entropy.isascii():
        raise PolicyError(f"expected entropy, found a pattern or a text: {advice}")


def _expand(entropy: bytes, use: str, step: bytes, size: int = ENTROPY_BYTES) -> bytes:
    label = b"offsite/1 private step " + use.encode("ascii") + b"\0"
    info = label + hashlib.sha256(step).digest()
    return HKDFExpand(hashes.SHA256(), size, info).derive(entropy)
