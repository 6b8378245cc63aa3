"""The limit and the ledger of an edge, settled before anything is fetched or tuned."""

import time
from collections.abc import Callable
from importlib.metadata import version

from offsite.edge_client.data import Data
from offsite.edge_client.privacy.ledger_folder import ENTRIES, LedgerFolder
from offsite.edge_client.privacy.limit import NAME, PrivacyLimit, save_limit
from offsite.edge_client.state import EdgeState
from offsite.secure.errors import ConfigError

NO_PRIVACY = (
    "no differential privacy: what your update reveals of single rows is not bounded; see --epsilon"
)


def open_budget(
    state: EdgeState,
    limit: PrivacyLimit | None,
    data: Data,
    owner: str,
    tell: Callable[[str], None],
) -> LedgerFolder | None:
    """The ledger under the owner's limit; None where there is neither.

    Raises:
        ConfigError: there is a ledger and no limit any more, or delta is too large for the data.
        IntegrityError: the ledger is damaged.
    """
    if limit is None:
        if (state.ledger / ENTRIES).exists():
            raise ConfigError(
                f"{state.root / NAME} is gone, and this edge has spent privacy under a limit: give "
                "--epsilon, and --delta and --person-column if they were given, as before"
            )
        tell(NO_PRIVACY)
        return None
    limit.check_units(data.unit_count)
    ledger = open_ledger(state, owner)
    ledger.settle_limit(limit)
    save_limit(state.root, limit)
    tell(f"privacy: {limit.describe()}")
    return ledger


def open_ledger(state: EdgeState, owner: str) -> LedgerFolder:
    """The ledger of an edge, a new one where there is none; what a crash left behind is settled."""
    software = f"offsite {version('offsite')}"
    return LedgerFolder.open(state.ledger, state.identity_key(), owner, software, time.time)
