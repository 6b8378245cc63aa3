"""The account that a planned campaign would be added to: the ledger's, looked at and never written.

What it would be reserved with is found as `reserve` finds it, so that a plan names the noise that a
campaign will have: what was spent of these records and of those that share any counts, and so does what
is reserved for campaigns that are open.
"""

import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from offsite.edge_client.data import Data
from offsite.edge_client.privacy.least_noise import MOST_NOISE, adaptivity_of, least_noise
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.admission import epsilon_of_account
from offsite.secure.privacy.ledger.bodies import (
    Body,
    DataSetAdded,
    Implementation,
    LossScope,
    NoiseType,
    Opened,
    RandomSource,
    Reserved,
    Sampler,
)
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.ledger.entries import NO_ENTRY, SALT_BYTES, Entry
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.units import Adjacency, Unit

_NOTHING = bytes(32)
_PLANNED = Implementation(
    "planned",
    *(_NOTHING,) * 4,
    LossScope.PER_UNIT,
    Sampler.POISSON,
    RandomSource.CHACHA20,
    NoiseType.FLOAT64_ON_A_GRID,
)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """An account, in memory."""

    budget: Budget
    data_set: bytes

    @classmethod
    def fresh(cls, unit: Unit) -> Self:
        """Of records that nothing was ever spent of."""
        budget = Budget()
        _post(budget, Opened("planned", _NOTHING, _NOTHING, "planned"))
        _post(budget, DataSetAdded(_NOTHING, unit, Adjacency.ZERO_OUT))
        return cls(budget, _NOTHING)

    @classmethod
    def of(cls, ledger: LedgerFolder, data: Data, unit: Unit) -> Self:
        """Of a ledger. Its budget is added to: it must not be used for anything else."""
        added = ledger.recognised(data, unit)
        if added.data_set not in ledger.budget.data_sets:
            _post(ledger.budget, added)
        return cls(ledger.budget, added.data_set)

    def spent(self, limit: PrivacyLimit) -> float:
        """Epsilon, at the limit's delta."""
        budget, accounting = self._under(limit), AccountantsOfRecord()
        return epsilon_of_account(budget, self.data_set, accounting, only_spent=True)

    def noise(self, limit: PrivacyLimit, sampling: Fraction, steps: int) -> float | None:
        """With which so many steps would be reserved under this limit; None if with none."""
        mechanism = PoissonGaussian(MOST_NOISE, sampling, steps, limit.unit)
        budget = self._under(limit)
        adaptivity, batch = adaptivity_of(budget, self.data_set), 1.0
        proposed = Reserved("planned", self.data_set, mechanism, adaptivity, 1.0, batch, _PLANNED)
        chosen = least_noise(budget, limit, proposed, AccountantsOfRecord())
        return None if chosen is None else chosen.mechanism.noise_multiplier

    def _under(self, limit: PrivacyLimit) -> Budget:
        budget = copy.copy(self.budget)
        budget.limits = {None: limit.stated}
        return budget


def _post(budget: Budget, body: Body) -> None:
    budget.post(Entry(budget.size, NO_ENTRY, bytes(SALT_BYTES), budget.time_unix_s, body))
