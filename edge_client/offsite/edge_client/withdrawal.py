"""Updates that were tuned before their owner asked for more protection, and have not left: erased.

A killed edge goes on where it was: a reply that is there is sent, an encoded update is masked and given to
its sum. What was tuned without a limit of privacy, or without the attack that was asked for since, must not
leave by that way, so both are erased before the new promise is written down. The round that they were
for is sat out, the next one is tuned as it was asked for.
"""

from collections.abc import Callable

from offsite.edge_client.inbox import Inbox
from offsite.edge_client.secure_folder import erase_sums, sums_of
from offsite.edge_client.state import EdgeState
from offsite.secure.errors import MachineError


def withdraw_updates(state: EdgeState, tell: Callable[[str], None]) -> None:
    """Erases what was encoded, answered or tuned in part, and says so where there was anything.

    Raises:
        MachineError: something could not be erased, so nothing may be promised yet.

    Guarantees: `test_an_update_of_before_the_limit_is_erased_before_the_ledger_begins`.
    """
    inbox = Inbox(state.rounds)
    was_there = bool(inbox.under_way() or sums_of(state.sums))
    inbox.erase_others(None)
    erase_sums(state.sums)
    if inbox.under_way() or sums_of(state.sums):
        raise MachineError(
            f"expected to erase the updates in {state.rounds} and {state.sums} that were tuned before "
            "this was asked for, found some that stay: erase these folders' contents, but keep the "
            "file taken, and start again"
        )
    if was_there:
        tell("an update that was tuned before this was asked for is erased, and does not leave")
