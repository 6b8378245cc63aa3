"""Who is asked for which sum: drawn once for an attempt, found again after a restart.

Of the clients that are there the policy's share is drawn (`policy.sampling`). They stand in the order
of SHA-256(beacon, id), with a beacon that follows from the plan's seed, and are cut into cohorts of nearly equal size: who meets whom changes from
round to round and from attempt to attempt, and nobody chooses it by name.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offsite.coordinator.attempt import Attempt, wait_for_clients
from offsite.coordinator.campaign_parts import Campaign, group_id
from offsite.coordinator.policy.sampling import sampled
from offsite.coordinator.secure_sums.decisions import Decision, decided
from offsite.coordinator.secure_sums.secure_sum import RESULT, Cohort
from offsite.coordinator.secure_sums.terms import signed_terms
from offsite.coordinator.tables.campaigns import RoundRow
from offsite.emulator.durable import machine_errors
from offsite.secure import envelope
from offsite.secure.aggregation.encoding import Reader, pack, pack_list
from offsite.secure.aggregation.messages import MESSAGE_BYTES
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.secure.directory import Directory, Role, Status, open_directory
from offsite.secure.errors import ConfigError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.limits import CLIENT_NAME_CHARS, CLIENTS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What is kept of the draw."""

    directory: bytes
    names: tuple[tuple[str, ...], ...]
    terms: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        lists = [pack_list([name.encode() for name in names]) for names in self.names]
        return pack((self.directory, pack_list(lists), pack_list(self.terms)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Drawn":
        reader = Reader(data, "cohorts of an attempt")
        directory = reader.field("directory", 2 * MESSAGE_BYTES)
        lists = reader.items("cohorts", CLIENTS, CLIENTS * (CLIENT_NAME_CHARS + 8))
        terms = reader.items("terms", CLIENTS, MESSAGE_BYTES)
        reader.close()
        return cls(directory, tuple(map(_names, lists)), terms)


def draw_cohorts(campaign: Campaign, attempt: Attempt) -> tuple[Cohort, ...]:
    """The cohorts of an attempt with their signed terms.

    Raises:
        ConfigError: a cohort would be too small or too large.
    """
    name = attempt_id(attempt.row)
    drawn = _Drawn.from_bytes(
        decided(
            campaign.secure.decisions,
            name,
            Decision.COHORTS,
            lambda: _draw(campaign, attempt).to_bytes(),
        )
    )
    keys = _identity_keys(campaign, drawn.directory)
    return tuple(
        Cohort(
            f"{name}.{number}",
            f"{attempt.group_id}.{number}",
            terms,
            drawn.directory,
            {client_id: keys[client_id] for client_id in names},
        )
        for number, (names, terms) in enumerate(zip(drawn.names, drawn.terms, strict=True))
    )


def attempt_id(row: RoundRow) -> str:
    """Begins the names of an attempt's sums."""
    return f"{row.campaign_id}.{group_id(row)}"


def forget_attempt(campaign: Campaign, row: RoundRow) -> None:
    """Withdraws an attempt's messages, and erases what is left of sums that came to nothing.

    The evidence of a sum that was unmasked stays: the coordinator has learnt it.
    """
    campaign.close_messages(group_id(row))
    name, evidence = attempt_id(row), campaign.secure.evidence
    campaign.secure.decisions.forget(name)
    with machine_errors(evidence):
        for folder in evidence.glob(f"{name}.*"):
            if not (folder / RESULT).is_file():
                shutil.rmtree(folder)


def _draw(campaign: Campaign, attempt: Attempt) -> _Drawn:
    directory, names = _clients(campaign, attempt.row.campaign_id)
    version = _opened(campaign, directory).version
    cohorts, settings = campaign.settings.sums.cohorts, campaign.settings
    asked = sampled(names, settings.policy.sample, cohorts * settings.min_cohort, attempt.plan.seed)
    split = divide(asked, cohorts, attempt.plan.seed)
    check_sizes(split, campaign.settings.min_replies)
    terms = tuple(
        signed_terms(campaign, attempt, number, len(cohort), (version, directory))
        for number, cohort in enumerate(split)
    )
    return _Drawn(directory, split, terms)


def _clients(campaign: Campaign, campaign_id: int) -> tuple[bytes, list[str]]:
    """The newest directory, and who of it is there: enough for a round."""
    while True:
        wait_for_clients(campaign, campaign_id)  # there already, unless we were killed
        directory, members = campaign.secure.directory(), campaign.members()
        keys = _identity_keys(campaign, directory)
        ids = [members[node].client_id for node in campaign.eligible() if node in members]
        names = [client_id for client_id in ids if client_id in keys]
        if len(names) >= campaign.settings.min_clients:
            return directory, names
        campaign.pause(campaign.settings.poll_s)


def divide(names: Sequence[str], cohorts: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The names in `cohorts` parts whose sizes differ by one at most; each part sorted."""
    beacon = hashlib.sha256(f"offsite/cohorts/1/{seed}".encode()).digest()
    ordered = sorted(names, key=lambda name: hashlib.sha256(beacon + name.encode()).digest())
    return tuple(tuple(sorted(ordered[number::cohorts])) for number in range(cohorts))


def check_sizes(cohorts: Sequence[Sequence[str]], least: int) -> None:
    """Raises ConfigError for a cohort of less than `least`, or of more than a sum can take."""
    sizes = [len(cohort) for cohort in cohorts]
    if min(sizes) < least:
        raise ConfigError(
            f"campaign.cohorts: expected cohorts of at least min_replies = {least}, found "
            f"{sum(sizes)} clients for {len(sizes)}: set fewer cohorts or a higher min_clients"
        )
    if max(sizes) > MOST_MEMBERS:
        raise ConfigError(
            f"campaign.cohorts: expected cohorts of at most {MOST_MEMBERS}, found {sum(sizes)} "
            f"clients for {len(sizes)}: set at least {-(-sum(sizes) // MOST_MEMBERS)} cohorts"
        )


def _identity_keys(campaign: Campaign, signed: bytes) -> Mapping[str, IdentityPublicKey]:
    """Of the active clients."""
    return {
        entry.client_id: entry.identity_key
        for entry in _opened(campaign, signed).entries
        if (entry.role, entry.status) == (Role.CLIENT, Status.ACTIVE)
    }


def _opened(campaign: Campaign, signed: bytes) -> Directory:
    """Our own signed directory; whether it has expired, its readers decide."""
    return open_directory(envelope.from_bytes(signed), campaign.keys.authority, 0.0)


def _names(packed: bytes) -> tuple[str, ...]:
    reader = Reader(pack((packed,)), "names of a cohort")
    names = reader.items("names", CLIENTS, CLIENT_NAME_CHARS)
    reader.close()
    return tuple(name.decode() for name in names)
