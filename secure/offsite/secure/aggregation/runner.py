"""The whole protocol on one page: one function plays the coordinator and every member.

For tests, vectors and benchmarks, and for readers: the six phases stand one after another. A
party that drops out in a phase sends nothing in it and in any later one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import Latch, Member
from offsite.secure.errors import PolicyError


class Phase(IntEnum):
    """Where a member may vanish, before it sends anything of that phase."""

    ADVERTISE = 1
    SHARE = 2
    ACKNOWLEDGE = 3
    MASK = 4
    CONFIRM = 5
    REVEAL = 6


@dataclass(slots=True)
class MemoryLatch:
    """A `Latch` that lives as long as the process: for this runner alone."""

    roster: bytes | None = None
    survivors: bytes | None = None

    def close_for_upload(self, roster: bytes) -> None:
        if self.roster not in (None, roster):
            raise PolicyError("this update was given to another sum already")
        self.roster = roster

    def close_for_reveal(self, survivors: bytes) -> None:
        if self.survivors not in (None, survivors):
            raise PolicyError("shares were revealed for other survivors already")
        self.survivors = survivors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the coordinator learnt: the unmasked sum, and over whom."""

    total: Words
    survivors: tuple[str, ...]


@dataclass(slots=True)
class Fleet:
    """All parties of one sum; `drops` says who vanishes in which phase."""

    gathering: Gathering
    members: Mapping[str, Member]
    inputs: Mapping[str, Words]
    drops: Mapping[str, Phase] = field(default_factory=dict)
    now_unix_s: float = 0.0
    threads: int = 1

    def run(self) -> Outcome:
        """Plays all phases.

        Raises:
            PolicyError: too many dropped out.
        """
        gathering, now = self.gathering, self.now_unix_s
        latches: dict[str, Latch] = {name: MemoryLatch() for name in self.members}
        # (1) Public keys.
        for _, member in self._alive(Phase.ADVERTISE):
            gathering.add_advertisement(member.advertise(now))
        advertisements = gathering.freeze_roster()
        # (2) Shares, and coins of pairs.
        for name, member in self._alive(Phase.SHARE):
            gathering.add_sharing(*member.share(advertisements, now), name)
        # (2b) Whose shares fit.
        for name, member in self._alive(Phase.ACKNOWLEDGE):
            deliveries: dict[str, Delivery] = gathering.deliveries(name)
            gathering.add_acknowledgement(member.acknowledge(deliveries, now), name)
        chosen = gathering.freeze_members()
        # (3) Masked vectors, added up as they come.
        total = np.zeros(gathering.config.values + 1, np.uint32)
        for name, member in self._alive(Phase.MASK):
            if name in gathering.members.client_ids:
                words = self.inputs[name].copy()
                header = member.mask(chosen, words, latches[name], now, self.threads)
                gathering.add_upload(header, name)
                total += words
        uploads = gathering.freeze_survivors()
        # (4) One word of all survivors on who they are.
        for name, member in self._survivors(Phase.CONFIRM):
            gathering.add_confirmation(member.confirm(uploads, now), name)
        confirmations = gathering.confirmations()
        # (5) b of the survivors, sigma of the others.
        for name, member in self._survivors(Phase.REVEAL):
            gathering.add_reveal(member.reveal(confirmations, latches[name], now), name)
        # (6) The sum.
        masks = [mask.opposite for mask in gathering.masks()]
        apply_masks(total, masks, gathering.config.generator, self.threads)
        return Outcome(total, gathering.agreement.survivors)

    def _alive(self, phase: Phase) -> list[tuple[str, Member]]:
        return [
            (name, member) for name, member in self.members.items() if self._is_there(name, phase)
        ]

    def _survivors(self, phase: Phase) -> list[tuple[str, Member]]:
        names = self.gathering.agreement.survivors
        return [(name, member) for name, member in self._alive(phase) if name in names]

    def _is_there(self, name: str, phase: Phase) -> bool:
        return phase < self.drops.get(name, Phase.REVEAL + 1)
