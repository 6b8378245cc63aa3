"""ML-KEM-768 encapsulation with chosen randomness, and X-Wing's on top: for vectors alone.

The library that the product uses draws randomness itself, so a transcript made with it could not be
made again. Slow, not constant in time, and only as right as the tests that open what it made.

Source: FIPS 203, algorithms 4 to 14, 17 and 20; draft-connolly-cfrg-xwing-kem-06, section 5.4.
"""

import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

Q: Final = 3329
N: Final = 256
K: Final = 3
DU: Final = 10
DV: Final = 4
PUBLIC_BYTES: Final = 1184
Polynomial = list[int]


def _reversed_7(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS: Final = [pow(17, _reversed_7(i), Q) for i in range(128)]
GAMMAS: Final = [pow(17, 2 * _reversed_7(i) + 1, Q) for i in range(128)]


def encapsulate(public: bytes, randomness: bytes) -> tuple[bytes, bytes]:
    """Shared secret and ciphertext. `randomness`: 32 bytes, m of FIPS 203."""
    hashed = hashlib.sha3_512(randomness + hashlib.sha3_256(public).digest()).digest()
    return hashed[:32], _encrypt(public, randomness, hashed[32:])


def encapsulate_x_wing(public: bytes, randomness: bytes) -> tuple[bytes, bytes]:
    """Shared secret and ciphertext. `randomness`: 64 bytes, for ML-KEM and for X25519."""
    secret_m, cipher_m = encapsulate(public[:PUBLIC_BYTES], randomness[:32])
    ephemeral = X25519PrivateKey.from_private_bytes(randomness[32:])
    cipher_x = ephemeral.public_key().public_bytes_raw()
    public_x = public[PUBLIC_BYTES:]
    secret_x = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_x))
    label = rb"\.//^" + b"\\"
    secret = hashlib.sha3_256(secret_m + secret_x + cipher_x + public_x + label).digest()
    return secret, cipher_m + cipher_x


def _encrypt(public: bytes, message: bytes, seed: bytes) -> bytes:
    t = [_decode(public[384 * i : 384 * (i + 1)], 12) for i in range(K)]
    rho = public[384 * K :]
    y = [_ntt(_noise(seed, i)) for i in range(K)]
    e1 = [_noise(seed, K + i) for i in range(K)]
    e2 = _noise(seed, 2 * K)
    u = []
    for i in range(K):  # the transposed matrix: column i
        column = [_uniform(rho + bytes([i, j])) for j in range(K)]
        u.append(_add(_inverse_ntt(_dot(column, y)), e1[i]))
    mu = [bit * ((Q + 1) // 2) for bit in _decode(message, 1)]
    v = _add(_add(_inverse_ntt(_dot(t, y)), e2), mu)
    parts = [_encode(_compress(each, DU), DU) for each in u]
    return b"".join([*parts, _encode(_compress(v, DV), DV)])


def _decode(data: bytes, bits: int) -> Polynomial:
    number = int.from_bytes(data, "little")
    return [(number >> (bits * i)) & ((1 << bits) - 1) for i in range(N)]


def _encode(values: Polynomial, bits: int) -> bytes:
    number = sum(value << (bits * i) for i, value in enumerate(values))
    return number.to_bytes(N * bits // 8, "little")


def _compress(values: Polynomial, bits: int) -> Polynomial:
    return [((value << bits) + Q // 2) // Q % (1 << bits) for value in values]


def _uniform(seed: bytes) -> Polynomial:
    """SampleNTT."""
    stream, found = hashlib.shake_128(seed).digest(3 * 1024), []
    for start in range(0, len(stream), 3):
        a, b, c = stream[start : start + 3]
        found += [value for value in (a + 256 * (b % 16), b // 16 + 16 * c) if value < Q]
    assert len(found) >= N
    return found[:N]


def _noise(seed: bytes, index: int) -> Polynomial:
    """SamplePolyCBD with eta = 2, of PRF(seed, index)."""
    bits = _decode(hashlib.shake_256(seed + bytes([index])).digest(128), 4)
    return [((b & 1) + (b >> 1 & 1) - (b >> 2 & 1) - (b >> 3 & 1)) % Q for b in bits]


def _ntt(values: Polynomial) -> Polynomial:
    f, i, length = list(values), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = ZETAS[i] * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
            i += 1
        length //= 2
    return f


def _inverse_ntt(values: Polynomial) -> Polynomial:
    f, i, length = list(values), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = f[j]
                f[j] = (t + f[j + length]) % Q
                f[j + length] = ZETAS[i] * (f[j + length] - t) % Q
            i -= 1
        length *= 2
    return [value * 3303 % Q for value in f]


def _dot(left: list[Polynomial], right: list[Polynomial]) -> Polynomial:
    total = [0] * N
    for f, g in zip(left, right, strict=True):
        for i in range(128):
            a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
            total[2 * i] = (total[2 * i] + a0 * b0 + a1 * b1 * GAMMAS[i]) % Q
            total[2 * i + 1] = (total[2 * i + 1] + a0 * b1 + a1 * b0) % Q
    return total


def _add(left: Polynomial, right: Polynomial) -> Polynomial:
    return [(a + b) % Q for a, b in zip(left, right, strict=True)]
