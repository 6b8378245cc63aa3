"""A ledger to play with: fixed keys, counted salts, and an accountant that a test can do by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.accountants import Terms
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    Body,
    Claimed,
    Committed,
    DataSetAdded,
    Implementation,
    LimitSet,
    LossScope,
    NoiseType,
    Opened,
    RandomSource,
    ReleasedOther,
    Reserved,
    Sampler,
)
from offsite.secure.privacy.ledger.chain import Record
from offsite.secure.privacy.ledger.ledger import Ledger
from offsite.secure.privacy.mechanisms import Gaussian, Mechanism, PoissonGaussian
from offsite.secure.privacy.units import Adjacency, Unit

OWNER = IdentityKey.from_seed(b"\x01" * 32)
COORDINATOR = IdentityKey.from_seed(b"\x02" * 32)
STRANGER = IdentityKey.from_seed(b"\x03" * 32)
NOW_UNIX_S = 1_780_000_000.0
SET_A, SET_B, SET_C = (bytes([letter]) * 32 for letter in b"ABC")
DIGEST = b"\xd1" * 32


class Simple:
    """Epsilon is the number of uses, over sigma; twice that for a filter."""

    def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
        total = math.fsum(item.uses / item.noise_multiplier for item in mechanisms)
        return total * (2.0 if terms.adaptivity is Adaptivity.FILTER else 1.0)

    def fits(self, mechanisms: Sequence[Mechanism], terms: Terms) -> bool:
        return self.epsilon(mechanisms, terms) <= terms.limit.epsilon


def steps(count: int, sigma: float = 1.0, unit: Unit = Unit.RECORD) -> PoissonGaussian:
    return PoissonGaussian(sigma, Fraction(1, 100), count, unit)


def count_release(sigma: float = 1.0, unit: Unit = Unit.RECORD) -> Gaussian:
    return Gaussian(sigma, 1, unit)


def implementation(sampler: Sampler = Sampler.POISSON) -> Implementation:
    return Implementation(
        "per_example/1",
        DIGEST,
        DIGEST,
        DIGEST,
        DIGEST,
        LossScope.PER_UNIT,
        sampler,
        RandomSource.CHACHA20,
        NoiseType.FLOAT64_ON_A_GRID,
    )


def reserved(
    campaign_id: str = "c1",
    data_set: bytes = SET_A,
    mechanism: Mechanism | None = None,
    adaptivity: Adaptivity = Adaptivity.PREREGISTERED,
) -> Reserved:
    return Reserved(
        campaign_id, data_set, mechanism or steps(100), adaptivity, 1.0, 8.0, implementation()
    )


def released(
    data_set: bytes = SET_A,
    mechanism: Mechanism | None = None,
    adaptivity: Adaptivity = Adaptivity.PREREGISTERED,
) -> ReleasedOther:
    return ReleasedOther("rows", data_set, mechanism or count_release(), adaptivity, DIGEST)


def data_set(name: bytes, *overlaps: bytes, unit: Unit = Unit.RECORD) -> DataSetAdded:
    return DataSetAdded(name, unit, Adjacency.ZERO_OUT, overlaps)


def claimed(first_step: int, count: int, campaign_id: str = "c1", at_round: int = 0) -> Claimed:
    return Claimed(campaign_id, at_round, 0, first_step, count, DIGEST)


@dataclass
class Book:
    """A ledger with its file."""

    ledger: Ledger = field(default_factory=Ledger)
    records: list[Record] = field(default_factory=list)

    def write(self, body: Body, now_unix_s: float | None = None) -> Record:
        """Appends or admits; the owner's machine in two lines."""
        seq = self.ledger.size
        now = NOW_UNIX_S + seq if now_unix_s is None else now_unix_s
        salt = seq.to_bytes(16, "big")
        if isinstance(body, Reserved | ReleasedOther):
            record, _ = self.ledger.admit(body, Simple(), OWNER, now, salt)
        else:
            record = self.ledger.append(body, OWNER, now, salt)
        self.records.append(record)
        return record

    def run(self, first_step: int, count: int, executed: int | None = None) -> None:
        """Claims and commits a block of steps of campaign c1."""
        claim = self.write(claimed(first_step, count))
        self.write(Committed(claim.entry.seq, count if executed is None else executed, DIGEST))

    @property
    def data(self) -> bytes:
        """The file."""
        return b"".join(record.to_line() for record in self.records)


def opened() -> Opened:
    return Opened("edge-1", OWNER.public.raw, DIGEST, "offsite 0.1.0")


def started(epsilon: float = 1000.0) -> Book:
    """A ledger with a limit for all sets, and set A."""
    book = Book()
    book.write(opened())
    book.write(LimitSet(epsilon, 1e-5))
    book.write(data_set(SET_A))
    return book


def campaign(blocks: int = 3) -> Book:
    """Entries 0 to 3 + 2 · blocks: set A, campaign c1 of 100 steps, blocks of 10 of them."""
    book = started()
    book.write(reserved())
    for block in range(blocks):
        book.run(10 * block, 10)
    return book


def joined(records: Sequence[Record]) -> bytes:
    """A file of these records, in this order."""
    return b"".join(record.to_line() for record in records)
