"""One cohort's secure sum over Flower's `Grid`: from the members' advertisements to their mean.

`SecureSum.mean` is the protocol on one screen, phases numbered as in `offsite.secure.aggregation`.
Every phase is one exchange on the grid, in a group of its own; instructions that were sent before a
restart are found again, replies are read again, and the decisions between phases are durable
(`decisions`), so a killed coordinator continues the sum, and no member is told two things.

What one member sends wrong costs nobody else: it is logged, and that member is not in the sum.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Message

from offsite.coordinator.campaign_parts import Campaign, DurableGrid
from offsite.coordinator.pulling import pulled
from offsite.coordinator.secure_sums.decisions import Decision, decided
from offsite.coordinator.secure_sums.result_log import publish
from offsite.coordinator.secure_sums.vector_sum import VectorSum
from offsite.emulator.durable import write_atomic
from offsite.emulator.rounds.exchange import (
    Action,
    exchange_content,
    pack_messages,
    pack_share_request,
    read_exchange,
    read_messages,
    read_sharing,
    read_words,
)
from offsite.secure.aggregation.evidence import collect, words_sha256
from offsite.secure.aggregation.fixed_point import Mean, decode_in_place
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.journal import pack_deliveries
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.messages import (
    Advertisement,
    Members,
    Result,
    claimed,
    opened,
    signed,
)
from offsite.secure.errors import PeerError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.names import node_id

log = logging.getLogger(__name__)

DIRECTORY = "directory"
AUTHORITY = "authority"
"""The public key that signed the directory, in hex digits; an auditor compares its fingerprint."""
EVIDENCE = "evidence"
RESULT = "result"
"""Written last of its folder: with it the evidence is complete."""
POLL_S = 0.05
"""Between two looks for replies; an exchange takes less than tuning by far."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who is asked for one sum, under which terms."""

    sum_id: str
    group: str
    """Prefix of the message groups of this sum."""
    terms: bytes
    directory: bytes
    """The signed directory that the terms name."""
    keys: Mapping[str, IdentityPublicKey] = field(repr=False)
    """Identity keys of those who are asked, by client id."""


@dataclass(frozen=True, slots=True)
class CohortMean:
    """What the coordinator learns of a cohort."""

    mean: Mean
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


class SecureSum:
    """One sum. Its folder takes the evidence: messages, masked vectors, directory, result."""

    def __init__(self, campaign: Campaign, cohort: Cohort) -> None:
        self.campaign, self.cohort = campaign, cohort
        self.folder = campaign.secure.evidence / cohort.sum_id
        self.config = open_config(cohort.terms, campaign.keys.identity.public)
        self.gathering = Gathering(self.config, campaign.keys.identity, self._key_of)
        self.refused: set[str] = set()
        """Members of whom something was left out."""
        self.update_bytes = 0

    def add_advertisements(self, replies: Iterable[tuple[str, Message]]) -> None:
        """Phase 1: what the members answered once they had tuned."""
        for name, reply in replies:
            self._take(name, reply, lambda body, _, n=name: self._add_advertisement(n, body))  # type: ignore[misc]

    def mean(self) -> CohortMean:
        """Phases 2 to 6.

        Raises:
            PolicyError: too few members came through.
            PeerError: a member cheated in a way that spoils the sum; says who.
        """
        gathering = self.gathering
        # (2) The roster is drawn; everybody in it deals out shares of its secrets.
        roster = self._roster()
        request = pack_share_request(self.cohort.directory, roster)
        names = gathering.roster.client_ids
        self._exchange(Action.SHARE, dict.fromkeys(names, request), self._add_sharing)
        # (2b) Each gets what was dealt to it, and says what of it fits.
        dealt = {
            name: pack_messages(pack_deliveries(gathering.deliveries(name)))
            for name in gathering.received.sharings
        }
        self._exchange(Action.ACKNOWLEDGE, dealt, self._add(gathering.add_acknowledgement))
        # (3) The members are drawn; their masked vectors are added up as they come.
        members = self._members()
        vectors = VectorSum(self.folder, self.config.values + 1)
        chosen = gathering.members.client_ids
        self._exchange(
            Action.MASK, dict.fromkeys(chosen, members), partial(self._add_upload, vectors)
        )
        # (4) The survivors are drawn, and all of them confirm the same.
        headers = pack_messages(self._survivors(vectors))
        survivors = gathering.agreement.survivors
        confirm = self._add(gathering.add_confirmation)
        self._exchange(Action.CONFIRM, dict.fromkeys(survivors, headers), confirm)
        # (5) Shares: b of the survivors, sigma of the others.
        words = pack_messages(gathering.confirmations())
        reveal = self._add(gathering.add_reveal)
        self._exchange(Action.REVEAL, dict.fromkeys(survivors, words), reveal)
        # (6) The masks go; the sum is signed, and what led to it is kept.
        total, masks = vectors.words, [mask.opposite for mask in gathering.masks()]
        apply_masks(total, masks, self.config.generator, self.campaign.secure.threads)
        self._publish(total)
        mean = decode_in_place(total, len(survivors), self.config.fixed_point)
        return CohortMean(mean, survivors, gathering.agreement.dropped)

    # Lines between the phases.

    def _roster(self) -> tuple[bytes, ...]:
        drawn = self._decided(
            Decision.ROSTER, lambda: pack_messages(self.gathering.freeze_roster())
        )
        return self.gathering.adopt_roster(read_messages(drawn))

    def _members(self) -> bytes:
        drawn = self._decided(Decision.MEMBERS, self.gathering.freeze_members)
        self.gathering.adopt_members(opened(Members, drawn, self.campaign.keys.identity.public))
        return drawn

    def _survivors(self, vectors: VectorSum) -> tuple[bytes, ...]:
        """The survivors' headers. One that came in after the line was drawn is taken out again."""
        drawn = self._decided(
            Decision.SURVIVORS, lambda: pack_messages(self.gathering.freeze_survivors())
        )
        headers = read_messages(drawn)
        for name in self.gathering.adopt_survivors(headers):
            vectors.take_out(name)
        return headers

    def _decided(self, decision: Decision, decide: Callable[[], bytes]) -> bytes:
        return decided(self.campaign.secure.decisions, self.cohort.sum_id, decision, decide)

    # Exchanges.

    def _exchange(
        self,
        action: Action,
        bodies: Mapping[str, bytes],
        take: Callable[[str, bytes, Message], object],
    ) -> None:
        """Asks each client, takes in what comes in time.

        The terms say until when at the latest; a phase that began early has as long as any other.
        """
        settings = self.campaign.settings
        latest = self.config.deadlines_unix_s[_PHASE_OF[action]]
        deadline = min(latest, self.campaign.clock() + settings.sums.phase_s)
        group = f"{self.cohort.group}.{action.value}"
        by_node = {node_id(name): name for name in bodies}
        sent = self._sent(action, group, bodies, deadline)
        for reply in pulled(self.campaign, deadline, sent, min(settings.poll_s, POLL_S)):
            name = by_node.get(reply.metadata.src_node_id)
            if name is not None:
                self._take(name, reply, lambda body, r, n=name: take(n, body, r))  # type: ignore[misc]

    def _sent(
        self, action: Action, group: str, bodies: Mapping[str, bytes], deadline: float
    ) -> list[str]:
        """Ids of the instructions: those that were sent before a restart, or new ones."""
        grid = self.campaign.grid
        if isinstance(grid, DurableGrid) and (found := grid.find(group)):
            return found
        ttl = max(deadline - self.campaign.clock(), 1.0)
        messages = [
            Message(
                exchange_content(self.config.digest, body),
                dst_node_id=node_id(name),
                message_type=action.message_type,
                group_id=group,
                ttl=ttl,
            )
            for name, body in bodies.items()
        ]
        return list(grid.push_messages(messages))

    def _take(self, name: str, reply: Message, take: Callable[[bytes, Message], object]) -> None:
        try:
            digest, body = read_exchange(reply)
            if digest != self.config.digest:
                raise PeerError("expected a step of this sum, found one of another")
            take(body, reply)
        except PeerError as error:
            self.refused.add(name)
            log.warning("%s: %s left out: %s", self.cohort.sum_id, name, error)

    def _add(self, add: Callable[[bytes, str], object]) -> Callable[[str, bytes, Message], object]:
        return lambda name, body, _: add(body, name)

    def _add_advertisement(self, name: str, body: bytes) -> None:
        if (author := claimed(Advertisement, body)[1].client_id) != name:
            raise PeerError(f"expected its own advertisement, found one of {author}")
        self.gathering.add_advertisement(body)

    def _add_sharing(self, name: str, body: bytes, _: Message) -> None:
        sharing, parts = read_sharing(body)
        self.gathering.add_sharing(sharing, parts, name)

    def _add_upload(self, vectors: VectorSum, name: str, body: bytes, reply: Message) -> None:
        """Takes in a masked vector, if it is the one that its signed header is about."""
        words = read_words(reply, len(vectors.words))

        def check(sha256: bytes) -> None:
            self.gathering.check_upload(body, name, sha256)
            self.gathering.add_upload(body, name)

        vectors.add(name, words, check)
        self.update_bytes = max(self.update_bytes, words.num_bytes + len(body))

    # What is kept.

    def _publish(self, total: Words) -> None:
        """Signs and keeps what the sum is; one that was signed before a restart stays as it is.

        Confirmations and reveals that came since would make another transcript of the same sum.
        """
        key, secure = self.campaign.keys.identity, self.campaign.secure
        stored = self.folder / RESULT  # written last, so all the others are there
        if stored.is_file():
            published = stored.read_bytes()
            publish(secure.results, self.cohort.sum_id, published, secure.evidence, key)
            return
        agreement, evidence = self.gathering.agreement, collect(self.gathering, self.cohort.terms)
        result = Result(
            agreement.config,
            agreement.roster.digest,
            agreement.survivors_digest,
            words_sha256(total),
            evidence.transcript_root,
        )
        write_atomic(self.folder / DIRECTORY, self.cohort.directory)
        authority = self.campaign.keys.authority.raw.hex()
        write_atomic(self.folder / AUTHORITY, authority.encode())
        write_atomic(self.folder / EVIDENCE, evidence.to_bytes())
        published = signed(result, key)
        write_atomic(stored, published)
        publish(secure.results, self.cohort.sum_id, published, secure.evidence, key)

    def _key_of(self, client_id: str) -> IdentityPublicKey:
        key = self.cohort.keys.get(client_id)
        if key is None:
            raise PeerError(f"{client_id[:64]} is not, or no longer, in the directory")
        return key


_PHASE_OF = {
    Action.SHARE: 1,
    Action.ACKNOWLEDGE: 2,
    Action.MASK: 3,
    Action.CONFIRM: 4,
    Action.REVEAL: 4,
}
