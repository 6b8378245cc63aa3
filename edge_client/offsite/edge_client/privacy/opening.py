"""The limit and the ledger of an edge, settled before anything is fetched or tuned.

    no ledger, no limit      as the command line says: none, or a new ledger under its limit. Before that
                             begins, every update that was tuned without it and has not left is erased
    a ledger                 its last limit holds, until the command line says another
    a limit, no ledger       the ledger was lost, and with it what was spent: refused

Rules: whoever can write the disk, and has not this edge's key, can neither raise a limit nor take it away.
`privacy.json` is a copy: one that says another limit than the ledger is refused until the owner says which.
"""

import time
from collections.abc import Callable
from importlib.metadata import version

from offsite.edge_client.data import Data
from offsite.edge_client.privacy.ledger_folder import LedgerFolder, is_begun
from offsite.edge_client.privacy.limit import (
    NAME,
    PrivacyLimit,
    PrivacyWish,
    read_limit,
    save_limit,
)
from offsite.edge_client.secure_folder import taken_of
from offsite.edge_client.state import EdgeState
from offsite.edge_client.withdrawal import withdraw_updates
from offsite.secure.errors import ConfigError

NO_PRIVACY = (
    "no differential privacy: what your update reveals of single rows is not bounded; see --epsilon"
)
LEFT_BEFORE = (
    "privacy: this edge has taken part without a limit before. What its updates of then reveal is not "
    "bounded; the limit counts what leaves from now on"
)
NO_LEDGER = "{root}: expected an edge that joined with --epsilon, found none"


def open_budget(
    state: EdgeState,
    wish: PrivacyWish,
    data: Data,
    owner: str,
    tell: Callable[[str], None],
) -> tuple[PrivacyLimit, LedgerFolder] | None:
    """The limit that holds from now on, and the ledger under it; None where there is neither.

    Raises:
        ConfigError: limit and ledger do not belong together, or delta is too large for the data.
        IntegrityError: the ledger is damaged.
        MachineError: an update of before the limit cannot be erased.
    """
    stored = read_limit(state.root)
    is_new = stored is None and not is_begun(state.ledger)
    if is_new:
        limit = wish.settled(None)
        if limit is None:
            tell(NO_PRIVACY)
            return None
        limit.check_units(data.unit_count)
        withdraw_updates(state, tell)  # before the first entry, so that a kill leaves it to be done
    ledger = _opened(state, owner, is_expected=not is_new)
    limit = wish.settled(_standing(ledger, stored, wish))
    assert limit is not None  # something stands, or is wished for
    limit.check_units(data.unit_count)
    _check_unit(ledger, limit)
    ledger.settle_limit(limit)
    save_limit(state.root, limit)
    if is_new and taken_of(state.sums) is not None:
        tell(LEFT_BEFORE)
    tell(f"privacy: {limit.describe()}")
    return limit, ledger


def open_ledger(state: EdgeState, owner: str) -> LedgerFolder:
    """The ledger of an edge that has one; what a crash left behind is settled.

    Raises:
        ConfigError: it is gone.
    """
    return _opened(state, owner, is_expected=True)


def _opened(state: EdgeState, owner: str, *, is_expected: bool) -> LedgerFolder:
    software, key = f"offsite {version('offsite')}", state.identity_key()
    return LedgerFolder.open(state.ledger, key, owner, software, time.time, is_expected=is_expected)


def _standing(
    ledger: LedgerFolder, stored: PrivacyLimit | None, wish: PrivacyWish
) -> PrivacyLimit | None:
    """The limit of the ledger; None for one that a kill left without."""
    stood = ledger.budget.limits.get(None)
    if stored is None and wish.epsilon is None:
        raise ConfigError(
            f"{NAME} is gone, and this edge has spent privacy under a limit: give --epsilon, and "
            "--delta and --person-column if they were given, as before"
        )
    if stood is None:
        return stored
    found = PrivacyLimit.of(stood, wish.person_column if stored is None else stored.person_column)
    if stored is not None and stored != found and wish.is_silent:
        raise ConfigError(
            f"{NAME} says {stored.describe()}; the ledger, which this edge has signed, says "
            f"{found.describe()}. The ledger's holds until its owner says another: give --epsilon, "
            "--delta and --campaign-epsilon or --no-campaign-epsilon"
        )
    return found


def _check_unit(ledger: LedgerFolder, limit: PrivacyLimit) -> None:
    """What was spent on persons cannot be gone on with by rows, nor the other way round."""
    for added in ledger.budget.data_sets.values():
        if added.unit is not limit.unit:
            raise ConfigError(
                f"--person-column: expected privacy by {added.unit.value}, as the ledger has it, "
                f"found by {limit.unit.value}: what was spent by one unit says nothing about the other"
            )
