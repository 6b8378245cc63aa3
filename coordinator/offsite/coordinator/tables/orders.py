"""What the owner ordered of each campaign; rows are added and never changed (`policy.orders`)."""

import sqlite3

from offsite.coordinator.policy.orders import Command, GivenOrder, Order
from offsite.coordinator.tables.database import Database


class OrderTable:
    """Rows of `campaign_orders`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, campaign_id: int, after: int = 0) -> list[GivenOrder]:
        """The orders of a campaign in the order they were given, behind a position."""
        found = self._database.rows(
            "SELECT * FROM campaign_orders WHERE campaign_id = ? AND position > ?"
            " ORDER BY position",
            campaign_id,
            after,
        )
        return [_given(row) for row in found]

    def add(self, campaign_id: int, order: Order, after_round: int, now_unix_s: float) -> None:
        self._database.execute(
            "INSERT INTO campaign_orders (campaign_id, command, at_once, to_round, after_round,"
            " reason, given_unix_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
            campaign_id,
            order.command,
            int(order.at_once),
            order.to_round,
            after_round,
            order.reason,
            now_unix_s,
        )


def _given(row: sqlite3.Row) -> GivenOrder:
    order = Order(Command(row["command"]), row["reason"], bool(row["at_once"]), row["to_round"])
    return GivenOrder(row["position"], order, row["after_round"], row["given_unix_s"])
