"""An edge that lives through the weather: the real inbox, the real folders of sums, a real ledger.

One call of `step` is one thing that an edge does; everything that it knows is on its disk, so that one
that was killed is simply asked again. Its tuning is a formula (`tests.coordinator.fleet`), paid for like
that of a private edge: claimed in the ledger, run, kept, committed.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Error, Message
from tests.coordinator.fleet import (
    AUTHORITY,
    COORDINATOR,
    DIRECTORY,
    KEYS,
    SCHEMA,
    delta_of,
    examples_of,
)
from tests.edge_client.privacy.ledgers import LIMIT, Steps, data_of, opened, reserved
from tests.system.chaos.weather import Cut, EdgeKilled, Fault, Weather

from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.spool import ReplyFile
from offsite.edge_client.inbox import Inbox
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.edge_client.worker import public_text
from offsite.emulator.durable import sha256_of, write_atomic
from offsite.emulator.rounds.exchange import Action
from offsite.emulator.rounds.instruction import adapter_digest, read_instruction, read_terms
from offsite.emulator.rounds.messages import message_from_file, message_to_bytes
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.rounds.vector import to_vector
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.errors import ExpiredError, OffsiteError, PeerError, SignatureError
from offsite.secure.privacy.ledger.bodies import Claimed, Committed
from offsite.secure.privacy.units import Unit

CAMPAIGN = "c 1"
STEPS = 2
"""Of tuning in a round."""
RESERVED = 4000


@dataclass
class Edge:
    """`step` does the next thing; `clock` is this machine's."""

    name: str
    folder: Path
    clock: Callable[[], float]
    weather: Weather
    tuned: list[tuple[int, int]] = field(default_factory=list)
    """Rounds and attempts whose tuning ran to its end."""
    acknowledged: set[str] = field(default_factory=set)
    """Messages whose reply the coordinator said to have."""
    busy: int = 0

    @property
    def inbox(self) -> Inbox:
        return Inbox(self.folder / "rounds")

    def step(self, mailbox: Mailbox) -> None:
        """Does one thing; killed in it, it has done some of it."""
        if self.busy or self.weather.strikes(Fault.DELAY, f"{self.name} tunes", 2.0):
            self.busy = self.busy - 1 if self.busy else self.weather.random.randrange(1, 8)
            return
        try:
            self._step(mailbox)
        except EdgeKilled:
            self.busy = self.weather.random.randrange(3)
        except Cut:
            pass

    def _step(self, mailbox: Mailbox) -> None:
        for message_id in self.inbox.unsent():
            self._send(mailbox, message_id)
            return
        row = mailbox.next_instruction(self.name)
        if row is None:
            return
        self.inbox.erase_others(row.message_id)
        folder = self.inbox.of(row.message_id)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "instruction"
        if not path.is_file():
            self.weather.may_end(Fault.CUT, "fetch of an instruction")
            data = mailbox.instruction_path(self.name, row.message_id).read_bytes()
            assert hashlib.sha256(data).digest() == row.sha256
            self._write("instruction", path, data)
        message = message_from_file(path)
        try:
            reply = self._answer(message)
        except OffsiteError as error:
            reply = Message(Error(2, public_text(error)), reply_to=message)
        self.weather.may_end(Fault.KILL_EDGE, "before reply")
        self.inbox.write_reply(row.message_id, message_to_bytes(reply))
        self.weather.may_end(Fault.KILL_EDGE, "after reply")

    def _write(self, what: str, path: Path, data: bytes) -> None:
        self.weather.around(Fault.KILL_EDGE, what, write_atomic)(path, data)

    # ---- the ClientApp

    def _answer(self, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == "train":
            return self._tune(message)
        action = next(action for action in Action if action.message_type == kind)
        return self.rounds.answer(action, message)

    @property
    def rounds(self) -> SecureRounds:
        policy = PolicyFloor(least_cohort=2)
        trust = Trust(
            COORDINATOR.public, AUTHORITY.public, lambda: DIRECTORY, lambda _: None, policy
        )
        return SecureRounds(
            self.name,
            KEYS[self.name],
            trust,
            self.folder / "secure",
            self.clock,
            entropy=lambda: self.weather.random.randbytes(32),
        )

    def _tune(self, message: Message) -> Message:
        signed, adapter = read_instruction(message, COORDINATOR.public, SCHEMA, self.clock())
        rounds, terms, plan = self.rounds, read_terms(message), signed.plan
        if rounds.check_terms(terms, signed, SCHEMA):
            return Message(rounds.resume(terms), reply_to=message)
        delta = delta_of(self.name, adapter, plan.seed)
        self._pay(plan, adapter_digest(adapter), adapter_digest(delta))
        update = to_vector(delta, SCHEMA)
        content = rounds.begin(terms, signed, update, examples_of(self.name))
        self.weather.may_end(Fault.KILL_EDGE, "after begin of a sum")
        return Message(content, reply_to=message)

    def _pay(self, plan: RoundPlan, parent: str, result: str) -> None:
        """Claims, runs, keeps, commits; what was kept before a kill is not paid for again."""
        ledger = self.ledger()
        kept = self.folder / f"tuned-{plan.round}-{plan.attempt}"
        if kept.is_file():
            return
        campaign = ledger.budget.campaigns[CAMPAIGN]
        claimed = Claimed(
            CAMPAIGN,
            plan.round,
            plan.attempt,
            campaign.next_step,
            STEPS,
            bytes.fromhex(parent),
        )
        self.weather.may_end(Fault.KILL_EDGE, "before claim")
        seq = ledger.append(claimed).entry.seq
        self.weather.may_end(Fault.KILL_EDGE, "while tuning", 3.0)
        self.tuned.append((plan.round, plan.attempt))
        self._write("checkpoint", kept, bytes.fromhex(result))
        ledger.append(Committed(seq, STEPS, bytes.fromhex(result)))
        self.weather.may_end(Fault.KILL_EDGE, "after commit")

    def ledger(self) -> LedgerFolder:
        """As after a start: what a kill left open is charged."""
        ledger = opened(self.folder / "ledger", KEYS[self.name])
        if CAMPAIGN not in ledger.budget.campaigns:
            ledger.settle_limit(LIMIT)
            data_set = ledger.data_set(data_of(self.name), Unit.RECORD)
            if CAMPAIGN not in ledger.budget.campaigns:
                ledger.admit(reserved(data_set, RESERVED), _Free())
        return ledger

    # ---- the upload

    def _send(self, mailbox: Mailbox, message_id: str) -> None:
        path = self.inbox.reply(message_id)
        data, digest = path.read_bytes(), sha256_of(path)
        try:
            stored = mailbox.stored_bytes(self.name, message_id, digest)
            if stored is not None:
                self._upload(mailbox, ReplyFile(message_id, len(data), digest), data, stored)
                self.weather.may_end(Fault.CUT, "acknowledgement of a reply", 2.0)
        except ExpiredError:
            self.inbox.erase(message_id)
            return
        except PeerError:  # withdrawn: the round went on without this edge
            self.inbox.erase(message_id)
            return
        self.acknowledged.add(message_id)
        if self.weather.strikes(Fault.DUPLICATE, "reply that was accepted", 3.0):
            self._send_again(mailbox, ReplyFile(message_id, len(data), digest), data)
        self.weather.may_end(Fault.KILL_EDGE, "before erasing a reply")
        self.inbox.erase(message_id)

    def _upload(self, mailbox: Mailbox, file: ReplyFile, data: bytes, at: int) -> None:
        upload = mailbox.open_upload(self.name, file, at)
        if upload is None:
            return
        with upload:
            for end in (len(data) // 2, len(data)):
                if end > at:
                    upload.write(data[at:end])
                    at = end
                self.weather.may_end(Fault.CUT, "bytes of a reply")
                self.weather.may_end(Fault.KILL_COORDINATOR, "bytes of a reply")
            mailbox.accept(self.name, upload)

    def _send_again(self, mailbox: Mailbox, file: ReplyFile, data: bytes) -> None:
        """The same reply is acknowledged again; another one is refused."""
        assert mailbox.open_upload(self.name, file, 0) is None
        other = hashlib.sha256(data + b"!").digest()
        try:
            mailbox.open_upload(self.name, ReplyFile(file.message_id, len(data) + 1, other), 0)
        except PeerError as error:
            assert not isinstance(error, SignatureError)
        else:
            raise AssertionError("a second reply was taken")


class _Free(Steps):
    """An accountant in which steps cost next to nothing: what is tested is that all are counted."""

    def epsilon(self, mechanisms, terms):  # type: ignore[no-untyped-def]
        return 1e-6 * super().epsilon(mechanisms, terms)


def update_of(name: str, adapter: dict[str, torch.Tensor], seed: int):
    """What this edge gives to a sum, in clear."""
    return to_vector(delta_of(name, adapter, seed), SCHEMA)
