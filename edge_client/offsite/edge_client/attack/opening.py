"""What is asked of the attack, settled before anything is fetched or tuned."""

from collections.abc import Callable

from offsite.edge_client.attack.choice import AttackChoice, read_choice, save_choice
from offsite.edge_client.data import Data
from offsite.edge_client.state import EdgeState
from offsite.edge_client.withdrawal import withdraw_updates


def open_attack(
    state: EdgeState, choice: AttackChoice | None, data: Data, tell: Callable[[str], None]
) -> None:
    """Stores what holds from now on, and says it.

    An update that was tuned under another choice and has not left is erased first: it did not stand
    this attack.

    Raises ConfigError where the data have too few rows, or persons, to hold some out.
    """
    if choice is None:
        return
    if choice.is_on:
        choice.held_out(len(data.rows if data.persons is None else set(data.persons)))
        if choice != read_choice(state.attack):
            withdraw_updates(state, tell)
    save_choice(state.attack, choice)
    tell(choice.describe() if choice.is_on else "attack: none; updates leave as they are")
