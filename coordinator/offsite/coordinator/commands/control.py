"""`coordinator pause`, `resume`, `abort` and `rollback`: what the owner orders of a campaign.

An order is one transaction on the database and done when the command ends, whether a coordinator
serves or not: a running one notices within a poll and withdraws what edges are busy with, one that
is started later finds the order.
"""

import time
from pathlib import Path

from offsite.coordinator.policy.orders import Order, Stage, stage_of
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError


def give_order(root: Path, order: Order, terminal: Terminal) -> None:
    """Writes the order down.

    Raises:
        ConfigError: there is no campaign yet, or the order makes no sense now.
    """
    with open_workspace(root, exclusive=False) as workspace:
        campaigns = workspace.store.campaigns
        row = campaigns.current()
        if row is None:
            raise ConfigError("no campaign yet: `coordinator serve` begins one")
        done = campaigns.give_order(row.campaign_id, order, time.time())
        now = campaigns.get(row.campaign_id) or row
        stage = stage_of(Stage(now.state.value), campaigns.orders(row.campaign_id))
    terminal.result(
        f"campaign {row.campaign_id}: {done.text}",
        {
            "campaign": row.campaign_id,
            "order": order.command.value,
            "stage": stage.value,
            "changed": done.is_kept,
            "text": done.text,
        },
    )
