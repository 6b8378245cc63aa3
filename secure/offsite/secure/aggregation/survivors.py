"""Who is in a sum (U3), and that its members were told the same: the rules for both sides.

A member applies them before it reveals anything, the coordinator before it asks, an audit afterwards.
"""

from collections.abc import Sequence

from offsite.secure.aggregation.messages import Confirmation, Members, Upload, claimed, opened
from offsite.secure.aggregation.roster import KeyOf, Roster
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.errors import PeerError, PolicyError


def check_survivors(
    roster: Roster,
    members: Members,
    uploads: Sequence[bytes],
    config: RoundConfig,
    key_of: KeyOf,
) -> tuple[str, ...]:
    """The names of U3, in roster order, every header signed and about this sum.

    Raises:
        PeerError: a header that does not fit, or is not of a member.
        PolicyError: too few.
    """
    names = []
    for data in uploads:
        _, header = claimed(Upload, data)
        header = opened(Upload, data, key_of(header.client_id))
        fits = (header.roster, header.members, header.words) == (
            roster.digest,
            members.digest,
            config.values + 1,
        )
        if not fits or header.client_id not in members.client_ids:
            raise PeerError(f"{header.client_id}: expected an upload of this sum, found another")
        names.append(header.client_id)
    if names != sorted(set(names)):
        raise PeerError("expected survivors in the order of names, each once")
    least = max(roster.threshold, config.least_members)
    if len(names) < least:
        raise PolicyError(
            f"expected at least {least} survivors, found {len(names)}: the sum would say too much "
            "about each; the round is given up"
        )
    return tuple(names)


def check_confirmations(
    roster: Roster,
    survivors: bytes,
    names: Sequence[str],
    confirmations: Sequence[bytes],
    key_of: KeyOf,
) -> None:
    """That at least a threshold of the survivors signed this very set.

    Raises:
        PeerError: a confirmation of another set: somebody was told something else.
        PolicyError: too few.
    """
    found = set()
    for data in confirmations:
        _, message = claimed(Confirmation, data)
        message = opened(Confirmation, data, key_of(message.client_id))
        if (message.roster, message.survivors) != (roster.digest, survivors):
            raise PeerError(
                f"{message.client_id} confirmed another set of survivors: the coordinator told "
                "its members different things; nothing is revealed"
            )
        if message.client_id not in names:
            raise PeerError(f"expected the word of a survivor, found that of {message.client_id}")
        found.add(message.client_id)
    if len(found) < roster.threshold:
        raise PolicyError(
            f"expected {roster.threshold} confirmations, found {len(found)}: nothing is revealed"
        )
