"""Members and coordinator killed between any two steps, by a hypothesis state machine.

Whatever is killed, and however often: the sum is exact, no member speaks twice with different
words, and shares are revealed for one set of survivors.
"""

import hashlib

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.secure.aggregation.fleets import COORDINATOR, config, gathering, member, name_of

from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.journal import Step, journal_from_bytes, journal_to_bytes
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import Member
from offsite.secure.aggregation.messages import Members, opened
from offsite.secure.aggregation.runner import MemoryLatch

MEMBERS, VALUES = 4, 6
COMPLETED: list[int] = []


class CrashingFleet(RuleBasedStateMachine):
    """Each member has its journal and its latch on a disk; the coordinator has what it received."""

    @initialize()
    def begin(self) -> None:
        self.terms = config(MEMBERS, VALUES)
        self.members = {name_of(i): member(name_of(i), self.terms) for i in range(MEMBERS)}
        self.journals: dict[str, bytes] = dict.fromkeys(self.members, journal_to_bytes([]))
        self.latches = {name: MemoryLatch() for name in self.members}
        self.inputs = {
            name: np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * (VALUES + 1)), "<u4")
            for name in self.members
        }
        self.coordinator = gathering(self.terms)
        self.total = np.zeros(VALUES + 1, np.uint32)
        self.stage = Step.ADVERTISE
        self.said: dict[tuple[str, Step], bytes] = {}

    @rule(index=st.integers(0, MEMBERS - 1))
    def kill_a_member(self, index: int) -> None:
        """Its memory is gone; it goes on from its journal."""
        name = name_of(index)
        again = member(name, self.terms)
        again.restore(journal_from_bytes(self.journals[name]))
        self.members[name] = again

    @rule()
    def kill_the_coordinator(self) -> None:
        """Its memory is gone; it goes on from the signed bytes that it stored."""
        self.coordinator = _restored(self.coordinator)

    @rule(index=st.integers(0, MEMBERS - 1))
    def take_a_step(self, index: int) -> None:
        """Somebody who has not yet does what the stage asks; when all have, the next one begins."""
        waiting = [name for name, each in self.members.items() if each.next is self.stage]
        if not waiting:
            self._close_the_stage()
            return
        name = waiting[index % len(waiting)]
        each = self.members[name]
        self._act(name, each)
        self.journals[name] = journal_to_bytes(each.journal)

    @rule(index=st.integers(0, MEMBERS - 1))
    def send_again(self, index: int) -> None:
        """What was sent may arrive twice, and is the same bytes after a crash."""
        name = name_of(index)
        each = self.members[name]
        if each.next.value > self.stage.value:
            sent = each.journal[self.stage.value].sent[0]
            assert self.said.setdefault((name, self.stage), sent) == sent
            self._deliver(name, each)

    def _close_the_stage(self) -> None:
        for name, each in self.members.items():
            self._deliver(name, each)
        if self.stage is not Step.REVEAL:
            self.stage = self.stage.after
            return
        total = self.total.copy()
        masks = [mask.opposite for mask in self.coordinator.masks()]
        apply_masks(total, masks, self.terms.generator)
        assert np.array_equal(total, np.add.reduce(list(self.inputs.values()), dtype=np.uint32))
        COMPLETED.append(1)

    @invariant()
    def nobody_reveals_for_two_sets(self) -> None:
        for latch in getattr(self, "latches", {}).values():
            if latch.survivors is not None:
                assert latch.survivors == self.coordinator.agreement.survivors_digest

    def _act(self, name: str, each: Member) -> None:
        match self.stage:
            case Step.ADVERTISE:
                each.advertise(0)
            case Step.SHARE:
                each.share(self.coordinator.freeze_roster(), 0)
            case Step.ACKNOWLEDGE:
                each.acknowledge(self.coordinator.deliveries(name), 0)
            case Step.MASK:
                words = self.inputs[name].copy()
                each.mask(self.coordinator.freeze_members(), words, self.latches[name], 0)
                self.total += words
            case Step.CONFIRM:
                each.confirm(self.coordinator.freeze_survivors(), 0)
            case Step.REVEAL:
                each.reveal(self.coordinator.confirmations(), self.latches[name], 0)

    def _deliver(self, name: str, each: Member) -> None:
        sent = each.journal[self.stage.value].sent
        match self.stage:
            case Step.ADVERTISE:
                self.coordinator.add_advertisement(sent[0])
            case Step.SHARE:
                self.coordinator.add_sharing(sent[0], sent[1:], name)
            case Step.ACKNOWLEDGE:
                self.coordinator.add_acknowledgement(sent[0], name)
            case Step.MASK:
                self.coordinator.add_upload(sent[0], name)
            case Step.CONFIRM:
                self.coordinator.add_confirmation(sent[0], name)
            case Step.REVEAL:
                self.coordinator.add_reveal(sent[0], name)


def _restored(old: Gathering) -> Gathering:
    """Only signed bytes survive; what was frozen is frozen again from them."""
    new, box = gathering(old.config), old.received
    for data in box.advertisements.values():
        new.add_advertisement(data)
    if box.sharings or old._roster:
        new.freeze_roster()
    for name, data in box.sharings.items():
        new.add_sharing(data, box.parts[name], name)
    for name, data in box.acknowledgements.items():
        new.add_acknowledgement(data, name)
    if old._members:
        new.adopt_members(opened(Members, old.freeze_members(), COORDINATOR.public))
    for name, data in box.uploads.items():
        new.add_upload(data, name)
    if old._agreement:
        new.freeze_survivors()
    for name, data in box.confirmations.items():
        new.add_confirmation(data, name)
    for name, data in box.reveals.items():
        new.add_reveal(data, name)
    return new


def test_members_and_coordinator_may_be_killed_between_any_two_steps() -> None:
    COMPLETED.clear()
    run_state_machine_as_test(
        CrashingFleet, settings=settings(max_examples=12, stateful_step_count=100, deadline=None)
    )
    assert COMPLETED, "no run came as far as the sum"
