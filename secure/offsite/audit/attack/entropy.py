"""Random numbers of the audits: from given entropy, so that evidence can be recomputed.

They split rows and resample them; none of them hides anything, so numpy's generator will do. Noise
of a private mechanism never comes from here.
"""

import hashlib

import numpy as np

ENTROPY_BYTES = 32


def generator(domain: bytes, entropy: bytes) -> np.random.Generator:
    """One for each purpose."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"expected {ENTROPY_BYTES} bytes of entropy, found {len(entropy)}")
    digest = hashlib.sha256(domain + b"|" + entropy).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
