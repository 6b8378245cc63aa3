"""A round of secure aggregation that a test plays step by step, up to where it interferes."""

import numpy as np
from tests.secure.aggregation.fleets import config, gathering, member, name_of

from offsite.secure.aggregation.member import Member
from offsite.secure.aggregation.runner import MemoryLatch


class Round:
    """A real round of `members` clients, played step by step."""

    def __init__(self, members: int = 4, **terms: object) -> None:
        self.terms = config(members, 8, **terms)
        self.coordinator = gathering(self.terms)
        self.members = {name_of(i): member(name_of(i), self.terms) for i in range(members)}
        self.latches = {name: MemoryLatch() for name in self.members}

    @property
    def victim(self) -> Member:
        return self.members[name_of(0)]

    def advertise(self) -> list[bytes]:
        for each in self.members.values():
            self.coordinator.add_advertisement(each.advertise(0))
        return list(self.coordinator.freeze_roster())

    def share(self, adverts: list[bytes] | None = None) -> None:
        adverts = adverts or self.advertise()
        for name, each in self.members.items():
            self.coordinator.add_sharing(*each.share(adverts, 0), name)

    def acknowledge(self) -> bytes:
        self.share()
        for name, each in self.members.items():
            given = self.coordinator.deliveries(name)
            self.coordinator.add_acknowledgement(each.acknowledge(given, 0), name)
        return self.coordinator.freeze_members()

    def upload(self, leave_out: tuple[str, ...] = ()) -> list[bytes]:
        chosen = self.acknowledge()
        for name, each in self.members.items():
            words = np.zeros(9, np.uint32)
            header = each.mask(chosen, words, self.latches[name], 0)
            if name not in leave_out:
                self.coordinator.add_upload(header, name)
        return list(self.coordinator.freeze_survivors())

    def confirm(self, leave_out: tuple[str, ...] = ()) -> list[bytes]:
        uploads = self.upload(leave_out)
        for name, each in self.members.items():
            if name not in leave_out:
                self.coordinator.add_confirmation(each.confirm(uploads, 0), name)
        return list(self.coordinator.confirmations())
