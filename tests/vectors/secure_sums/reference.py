"""OTSA/1 a second time, from its documentation: everybody's part of one secure sum, at once.

Written to disagree where the product is wrong: nothing of it is imported. Only Ed25519, X25519,
HKDF's hash, AES and ChaCha20 themselves are the library's. All randomness comes from labels, so a
transcript can be made again, bit for bit.

Source: the module docstrings of `offsite.secure.aggregation`; RFC 5869, 6962, 9180; FIPS 203.
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from tests.vectors.secure_sums.mlkem import encapsulate, encapsulate_x_wing

TYPE: Final = "application/vnd.offsite.secagg."
COORDINATOR: Final = "coordinator"
PHASES: Final = ("advertise", "share", "acknowledge", "mask", "confirm", "reveal")


# Encodings.


def pack(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(each)) + each for each in fields)


def integer(value: int) -> bytes:
    return struct.pack(">Q", value)


def real(value: float) -> bytes:
    return struct.pack(">d", value)


def digest(label: str, *fields: bytes) -> bytes:
    return hashlib.sha256(b"OTSA/1 " + label.encode() + pack(*fields)).digest()


def info(label: str, *fields: bytes) -> bytes:
    return b"OTSA/1 " + label.encode() + pack(*fields)


def random(*labels: str, size: int = 32) -> bytes:
    return hashlib.shake_256("/".join(("secure sums", *labels)).encode()).digest(size)


# Signatures.


def identity(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random("identity", name))


def public_of(name: str) -> bytes:
    return identity(name).public_key().public_bytes_raw()


def signed(kind: str, payload: bytes, name: str) -> bytes:
    fields = pack((TYPE + kind).encode(), payload)
    signature = identity(name).sign(b"OFFSITE/1" + fields)
    return b"OFFSENV1" + fields + hashlib.sha256(public_of(name)).digest() + signature


def payload_of(message: bytes) -> bytes:
    """Of an envelope that was made here."""
    start = 8 + 8 + int.from_bytes(message[8:16], "big")
    size = int.from_bytes(message[start : start + 8], "big")
    return message[start + 8 : start + 8 + size]


# Derivations.


def expand(key: bytes, context: bytes, size: int = 32) -> bytes:
    out = block = b""
    counter = 1
    while len(out) < size:
        block = hmac.digest(key, block + context + bytes([counter]), "sha256")
        out, counter = out + block, counter + 1
    return out[:size]


def derive(secret: bytes, salt: bytes, context: bytes) -> bytes:
    return expand(hmac.digest(salt, secret, "sha256"), context)


def hpke_key(secret: bytes, context: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of RFC 9180's base mode: X-Wing, HKDF-SHA256, AES-256-GCM."""
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")

    schedule = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", context)
    root = extract(secret, b"secret", b"")

    def output(label: bytes, size: int) -> bytes:
        return expand(root, struct.pack(">H", size) + b"HPKE-v1" + suite + label + schedule, size)

    return output(b"key", 32), output(b"base_nonce", 12)


def seal(public: bytes, plain: bytes, context: bytes, randomness: bytes) -> bytes:
    secret, encapsulated = encapsulate_x_wing(public, randomness)
    numbers = integer(0) + integer(1) + integer(len(context))
    key, nonce = hpke_key(secret, b"offsite/1 seal" + numbers + context)
    return b"OFFSEAL1" + encapsulated + AESGCM(key).encrypt(nonce, plain, b"")


# Shares.


def product(a: int, b: int) -> int:
    result = 0
    while b:
        result ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return result


def share_at(point: int, secret: bytes, coefficients: Sequence[bytes]) -> bytes:
    """The highest power comes first, the secret last."""
    values = bytes(len(secret))
    for row in (*coefficients, secret):
        values = bytes(product(v, point) ^ r for v, r in zip(values, row, strict=True))
    return values


# Trees.


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if index < half:
        return [*proof(leaves[:half], index), root(leaves[half:])]
    return [*proof(leaves[half:], index - half), root(leaves[:half])]


# Parties.


@dataclass(frozen=True)
class Party:
    """One member's secrets, from its entropy."""

    name: str

    @cached_property
    def entropy(self) -> bytes:
        return random("entropy", self.name)

    def secret(self, label: str) -> bytes:
        return expand(self.entropy, info(label))

    @cached_property
    def sigma(self) -> bytes:
        return self.secret("sigma")

    @cached_property
    def x25519(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(expand(self.sigma, info("x25519")))

    @cached_property
    def mlkem_public(self) -> bytes:
        seed = expand(self.sigma, info("mlkem"), 64)
        return MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()

    @cached_property
    def channel_public(self) -> bytes:
        wide = hashlib.shake_256(self.secret("channel")).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(wide[:64]).public_key().public_bytes_raw()
        x25519 = X25519PrivateKey.from_private_bytes(wide[64:])
        return mlkem + x25519.public_key().public_bytes_raw()

    def coin(self, other: str) -> bytes:
        return expand(expand(self.sigma, info("coins")), info("pair", other.encode()))


@dataclass(frozen=True)
class Terms:
    """The configuration, in the order in which it is signed."""

    values: int
    most_members: int
    generator: int = 1  # ChaCha20; 2 is AES-256 in counter mode
    fraction_bits: int = 20
    coordinate_bound: float = 1.0
    norm_bound: float = float("inf")
    suite: str = "OTSA/1"
    round_id: bytes = bytes(16)

    def to_bytes(self) -> bytes:
        return pack(
            self.suite.encode(),
            b"offsite",
            b"7",
            self.round_id,
            integer(1),  # attempt
            integer(0),  # cohort
            integer(3),  # directory version
            random("directory"),
            random("binding"),
            random("schema"),
            integer(self.values),
            integer(self.fraction_bits),
            real(self.coordinate_bound),
            real(self.norm_bound),
            integer(0),  # noise tail
            integer(100),  # full weight
            integer(self.generator),
            integer(2),  # least members
            integer(self.most_members),
            real(0.0),  # noise
            b"".join(real(10.0 * phase) for phase in range(1, 6)),
        )

    @property
    def digest(self) -> bytes:
        return digest("config", self.to_bytes())


@dataclass
class Played:
    """Everything that was said in one sum. Names are in order; who dropped out said less."""

    terms: Terms
    updates: Mapping[str, tuple[Sequence[float], float]]
    """Values and weight of each member."""
    drops: Mapping[str, str] = field(default_factory=dict)
    """In which phase a member vanishes, before it says anything."""

    def there(self, phase: str) -> list[str]:
        at = PHASES.index(phase)
        left = {name: PHASES.index(drop) for name, drop in self.drops.items()}
        return [name for name in sorted(self.updates) if left.get(name, len(PHASES)) > at]

    @cached_property
    def parties(self) -> dict[str, Party]:
        return {name: Party(name) for name in self.updates}

    # (1)

    def advertisement(self, name: str) -> bytes:
        party, config = self.parties[name], self.terms.digest
        payload = pack(
            config,
            name.encode(),
            party.channel_public,
            party.x25519.public_key().public_bytes_raw(),
            party.mlkem_public,
            digest("b", config, name.encode(), party.secret("self")),
            party.secret("nonce"),
        )
        return signed("advertisement", payload, name)

    @cached_property
    def advertisements(self) -> dict[str, bytes]:
        return {name: self.advertisement(name) for name in self.there("advertise")}

    @cached_property
    def roster(self) -> bytes:
        return digest("roster", self.terms.digest, *self.advertisements.values())

    @property
    def threshold(self) -> int:
        return 2 * len(self.advertisements) // 3 + 1

    # (2)

    def shares(self, dealer: str) -> dict[str, bytes]:
        party, rows = self.parties[dealer], self.threshold - 1
        stream = hashlib.shake_256(expand(party.entropy, info("coefficients", self.roster)))
        wide = stream.digest(rows * 64)
        coefficients = [wide[64 * row : 64 * (row + 1)] for row in range(rows)]
        secret = party.secret("self") + party.sigma
        return {
            holder: share_at(point, secret, coefficients)
            for point, holder in enumerate(self.advertisements, 1)
        }

    def commitment(self, dealer: str, holder: str, half: bytes, value: bytes) -> bytes:
        return digest("share", self.roster, dealer.encode(), holder.encode(), half, value)

    def part(self, dealer: str, holder: str, share: bytes) -> bytes:
        commitments = [
            self.commitment(dealer, holder, b"b", share[:32]),
            self.commitment(dealer, holder, b"s", share[32:]),
        ]
        if dealer == holder:
            return pack(b"", b"", *commitments)
        context = info("sealed share", self.roster, dealer.encode(), holder.encode())
        drawn = random("seal", dealer, holder, size=64)
        sealed = seal(self.parties[holder].channel_public, share, context, drawn)
        wrap = b""
        if dealer < holder:
            mlkem = self.parties[holder].mlkem_public
            secret, encapsulated = encapsulate(mlkem, random("wrap", dealer, holder))
            pair = info("wrap", dealer.encode(), holder.encode())
            key = AESGCM(derive(secret, self.roster, pair))
            wrap = encapsulated + key.encrypt(bytes(12), self.parties[dealer].coin(holder), None)
        return pack(sealed, wrap, *commitments)

    @cached_property
    def parts(self) -> dict[str, dict[str, bytes]]:
        """By dealer, by holder."""
        return {
            dealer: {
                holder: self.part(dealer, holder, share)
                for holder, share in self.shares(dealer).items()
            }
            for dealer in self.there("share")
        }

    def sharing(self, dealer: str, parts: Sequence[bytes]) -> bytes:
        tree = root([leaf(part) for part in parts])
        return signed("sharing", pack(self.roster, dealer.encode(), tree), dealer)

    @cached_property
    def sharings(self) -> dict[str, bytes]:
        return {name: self.sharing(name, [*parts.values()]) for name, parts in self.parts.items()}

    # (2b)

    @cached_property
    def acknowledgements(self) -> dict[str, bytes]:
        accepted = pack(*(name.encode() for name in self.parts))
        return {
            name: signed("acknowledgement", pack(self.roster, name.encode(), accepted, b""), name)
            for name in self.there("acknowledge")
        }

    # (3)

    @property
    def member_names(self) -> list[str]:
        return [*self.acknowledgements]

    def members_message(self, names: Sequence[str], signer: str = COORDINATOR) -> bytes:
        payload = pack(self.roster, pack(*(name.encode() for name in names)))
        return signed("members", payload, signer)

    @cached_property
    def members(self) -> bytes:
        return self.members_message(self.member_names)

    @cached_property
    def members_digest(self) -> bytes:
        return digest("members", self.roster, *(name.encode() for name in self.member_names))

    def words(self, name: str) -> list[int]:
        """The update, clipped, weighted and rounded, and the weight."""
        values, weight = self.updates[name]
        terms, one = self.terms, 2.0**self.terms.fraction_bits
        norm = sum(value * value for value in values) ** 0.5
        scale = 1.0 if norm <= terms.norm_bound else terms.norm_bound / norm
        bound = terms.coordinate_bound
        clipped = [min(max(value * scale, -bound), bound) for value in values]
        return [round(value * weight * one) % 2**32 for value in clipped] + [round(weight * one)]

    def keystream(self, key: bytes) -> list[int]:
        count = self.terms.values + 1
        if self.terms.generator == 1:
            cipher = Cipher(ChaCha20(key, bytes(16)), None)
        else:
            cipher = Cipher(AES(key), CTR(bytes(16)))
        return [*struct.unpack(f"<{count}I", cipher.encryptor().update(bytes(4 * count)))]

    def pair_key(self, first: str, second: str) -> bytes:
        public = X25519PublicKey.from_public_bytes(
            self.parties[second].x25519.public_key().public_bytes_raw()
        )
        secret = self.parties[first].x25519.exchange(public) + self.parties[first].coin(second)
        return derive(secret, self.roster, info("mask", first.encode(), second.encode()))

    def masked(self, name: str) -> bytes:
        own = derive(self.parties[name].secret("self"), self.roster, info("self", name.encode()))
        total = [a + b for a, b in zip(self.words(name), self.keystream(own), strict=True)]
        for other in self.member_names:
            if other != name:
                sign = 1 if name < other else -1
                stream = self.keystream(self.pair_key(*sorted((name, other))))
                total = [a + sign * b for a, b in zip(total, stream, strict=True)]
        return struct.pack(f"<{len(total)}I", *(word % 2**32 for word in total))

    @cached_property
    def vectors(self) -> dict[str, bytes]:
        return {name: self.masked(name) for name in self.there("mask")}

    def upload(self, name: str, words: int, vector: bytes) -> bytes:
        sha256 = hashlib.sha256(vector).digest()
        fields = (self.roster, self.members_digest, name.encode(), integer(words), sha256)
        return signed("upload", pack(*fields), name)

    @cached_property
    def uploads(self) -> dict[str, bytes]:
        count = self.terms.values + 1
        return {name: self.upload(name, count, vector) for name, vector in self.vectors.items()}

    # (4)

    @cached_property
    def survivors(self) -> bytes:
        return digest("survivors", self.members_digest, *self.uploads.values())

    def confirmation(self, name: str, survivors: bytes) -> bytes:
        return signed("confirmation", pack(self.roster, name.encode(), survivors), name)

    @cached_property
    def confirmations(self) -> dict[str, bytes]:
        return {name: self.confirmation(name, self.survivors) for name in self.there("confirm")}

    # (5)

    def halves(self, holder: str) -> list[bytes]:
        """b of survivors, sigma of the others."""
        shares = {dealer: self.shares(dealer)[holder] for dealer in self.member_names}
        return [
            share[:32] if dealer in self.uploads else share[32:] for dealer, share in shares.items()
        ]

    def revealing(self, name: str, halves: Sequence[bytes]) -> bytes:
        return signed(
            "reveal", pack(self.roster, name.encode(), self.survivors, pack(*halves)), name
        )

    @cached_property
    def reveals(self) -> dict[str, bytes]:
        return {name: self.revealing(name, self.halves(name)) for name in self.there("reveal")}

    # (6)

    @cached_property
    def total(self) -> bytes:
        """The sum of what the survivors put in: no mask is left in it."""
        columns = zip(*(self.words(name) for name in self.uploads), strict=True)
        words = [sum(column) % 2**32 for column in columns]
        return struct.pack(f"<{len(words)}I", *words)

    @cached_property
    def signed_terms(self) -> bytes:
        return signed("config", self.terms.to_bytes(), COORDINATOR)

    @cached_property
    def result(self) -> bytes:
        leaves = [
            self.signed_terms,
            *self.advertisements.values(),
            *self.sharings.values(),
            *self.acknowledgements.values(),
            self.members,
            *self.uploads.values(),
            *self.confirmations.values(),
            *self.reveals.values(),
        ]
        fields = (
            self.terms.digest,
            self.roster,
            self.survivors,
            hashlib.sha256(self.total).digest(),
            root([leaf(each) for each in leaves]),
        )
        return signed("result", pack(*fields), COORDINATOR)
