"""`edge-client close`: a campaign is over for this edge; steps that nobody claimed are reserved no longer.

An edge closes by itself the campaigns that it sees end. One whose coordinator failed or went away
would hold what it reserved for ever; its owner closes it. What was claimed stays spent. As long as the
account is added up exactly (PLD), the steps that nobody claimed count as spent, too, for when the campaign
ended may depend on what it released; once a later campaign is accounted by the filter, only claims count.
"""

from pathlib import Path

from offsite.edge_client.privacy.campaigns import chosen
from offsite.edge_client.privacy.limit import read_limit
from offsite.edge_client.privacy.opening import NO_LEDGER, open_ledger
from offsite.edge_client.privacy.spent import spent_of
from offsite.edge_client.state import EdgeState
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.ledger.bodies import Closed


def close_campaign(root: Path, campaign: str, terminal: Terminal) -> None:
    """Closes a campaign of the ledger.

    Raises:
        ConfigError: there is no ledger, no such campaign, or it is closed already.
    """
    if read_limit(root) is None:
        raise ConfigError(NO_LEDGER.format(root=root))
    with EdgeState.open(root) as state:
        ledger = open_ledger(state, state.membership().client_id)
        name = chosen(ledger, campaign)
        found = ledger.budget.campaigns[name]
        if not found.is_open:
            raise ConfigError(f"campaign {name} is closed already")
        ledger.append(Closed(name, found.unclaimed))
        spent = spent_of(ledger.budget, found.reserved.data_set)
    document = {
        "campaign": name,
        "returned_steps": found.unclaimed,
        "spent": spent.spent,
        "steps_that_never_ran": spent.never_ran,
    }
    terminal.result(
        f"{name}: {found.unclaimed} steps are reserved no longer; {spent.describe()}", document
    )
