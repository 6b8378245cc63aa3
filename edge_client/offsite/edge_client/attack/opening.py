"""What is asked of the attack, settled before anything is fetched or tuned."""

from collections.abc import Callable
from pathlib import Path

from offsite.edge_client.attack.choice import AttackChoice, save_choice
from offsite.edge_client.data import Data


def open_attack(
    root: Path, choice: AttackChoice | None, data: Data, tell: Callable[[str], None]
) -> None:
    """Stores what holds from now on, and says it.

    Raises ConfigError where the data have too few rows, or persons, to hold some out.
    """
    if choice is None:
        return
    if choice.is_on:
        choice.held_out(len(data.rows if data.persons is None else set(data.persons)))
    save_choice(root, choice)
    tell(choice.describe() if choice.is_on else "attack: none; updates leave as they are")
