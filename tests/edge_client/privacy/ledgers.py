"""A ledger in a folder, with data and uses of it."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

from offsite.edge_client.data import Data, DataReport, Layout, TextRow
from offsite.edge_client.data_formats import Format
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.accountants import Terms
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    Implementation,
    LossScope,
    NoiseType,
    RandomSource,
    Reserved,
    Sampler,
)
from offsite.secure.privacy.mechanisms import Mechanism, PoissonGaussian
from offsite.secure.privacy.units import Unit

KEY: Final = IdentityKey.from_seed(hashlib.sha256(b"edge").digest())
LIMIT: Final = PrivacyLimit(8.0, 1e-5)
CODE: Final = Implementation(
    "per-example",
    *(bytes(32),) * 4,
    LossScope.PER_UNIT,
    Sampler.POISSON,
    RandomSource.CHACHA20,
    NoiseType.FLOAT64_ON_A_GRID,
)


class Steps:
    """An accountant in which every step costs 0.1."""

    def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
        return 0.1 * sum(mechanism.uses for mechanism in mechanisms)

    def fits(self, mechanisms: Sequence[Mechanism], terms: Terms) -> bool:
        return self.epsilon(mechanisms, terms) <= terms.limit.epsilon + 1e-9


def data_of(*texts: str, persons: tuple[str, ...] | None = None) -> Data:
    rows = tuple(TextRow(line, text) for line, text in enumerate(texts, start=1))
    report = DataReport("a", Format.JSONL, Layout.TEXT, len(rows), len(rows), 0, ())
    return Data(rows, report, persons)


def opened(root: Path, key: IdentityKey = KEY) -> LedgerFolder:
    return LedgerFolder.open(root, key, "edge-a", "offsite 0.1.0", lambda: 1e9)


def reserved(
    data_set: bytes,
    steps: int = 20,
    campaign_id: str = "c 1",
    mechanism: PoissonGaussian | None = None,
) -> Reserved:
    mechanism = mechanism or PoissonGaussian(1.0, Fraction(1, 10), steps, Unit.RECORD)
    return Reserved(campaign_id, data_set, mechanism, Adaptivity.PREREGISTERED, 1.0, 4.0, CODE)
