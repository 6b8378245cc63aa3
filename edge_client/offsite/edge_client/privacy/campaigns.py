"""Campaigns of the ledger as their owner names them: by a beginning that only one of them has."""

from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.secure.errors import ConfigError


def chosen(ledger: LedgerFolder, beginning: str | None) -> str:
    """The campaign that begins so; the last one for None.

    Raises:
        ConfigError: none does, or several do.
    """
    known = list(ledger.budget.campaigns)
    if beginning is None and known:
        return known[-1]
    found = [name for name in known if beginning is not None and name.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(known) or "none"
    raise ConfigError(f"--campaign: expected the beginning of one of {names}, found {beginning}")
