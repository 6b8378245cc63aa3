"""The edge's part of a round, as a Flower `ClientApp`: check, tune, take part in a secure sum.

    train            checked, tuned; the reply offers keys, and holds nothing of the update
    train.<action>   the steps of the sum (`secure_rounds`)

The same object serves every engine (`grpc`, `local`, `flower`), and nothing that arrives is ever
executed: a message holds a signed plan and tensors, and what it is answered with is installed code.

Notable: the app lives as long as the release, so the emulator and the encoded data stay warm from
round to round. Of what was tuned only masked words leave, and the number of examples is one of
them; no loss, no count, no time. The data, the tuned adapter and the checkpoint of a run stay in
the edge's folders. The app prints nothing and reports through callbacks.

Rules: nothing is used before the plan's signature, deadline, release and adapter digest and the
terms of the sum were checked, nothing is obeyed that asks more of the machine than `EdgeLimits`,
and no release serves longer than it is valid; the update is bound to the plan's digest and thereby
to its campaign, round and attempt (`tests/edge_client/tuning/test_client_app.py`).
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from offsite.edge_client.attack.attack_rounds import AttackRounds, Keep
from offsite.edge_client.attack.learnt import learnt_examples
from offsite.edge_client.attack.ledger_entry import into_ledger
from offsite.edge_client.attack.parting import Parted
from offsite.edge_client.checkpoint import Binding, Checkpoint
from offsite.edge_client.data import Data, DataReport
from offsite.edge_client.edge_limits import EdgeLimits
from offsite.edge_client.inbox import ROUND_FOLDER
from offsite.edge_client.machine_memory import free_bytes
from offsite.edge_client.outcome import TuningMetrics, TuningOutcome
from offsite.edge_client.privacy.private_rounds import UNIFORM, PrivateRounds
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.secure_rounds import SecureRounds
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, Tune, tune
from offsite.edge_client.tuning_room import room_warnings
from offsite.edge_client.workbench import Examples, Warm, Workbench
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.durable import FOLDER_MODE, machine_errors
from offsite.emulator.progress import Report, silent
from offsite.emulator.rounds.exchange import Action
from offsite.emulator.rounds.instruction import read_adapter, read_plan, read_terms
from offsite.emulator.rounds.plan import RoundPlan, SignedPlan
from offsite.emulator.rounds.vector import to_vector
from offsite.secure import limits
from offsite.secure.errors import (
    ExpiredError,
    MachineError,
    OffsiteError,
    SitsOutError,
    StaleReleaseError,
)

CHECKPOINT_NAME = "tuning.safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what the app does; every callback is optional.

    ``status`` may be told to the coordinator, so it never holds a path, a row or a setting;
    ``alone`` is for whoever runs this edge, and nobody else.
    ``between_steps`` may raise to stop a run; a checkpoint is written first.
    """

    status: Callable[[str], None] = lambda text: None
    alone: Callable[[str], None] = lambda text: None
    progress: Report = silent
    data: Callable[[DataReport], None] = lambda report: None
    tuned: Callable[[RoundPlan, TuningMetrics], None] = lambda plan, metrics: None
    between_steps: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it runs; ``threads`` 0 leaves torch's setting, ``device`` None chooses.

    ``warm`` and ``tune`` are for many clients in one process: the emulator that they share, and
    another loop than the one that tunes one client at a time.
    """

    device: torch.device | None = None
    threads: int = 0
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    warm: Warm | None = None
    tune: Tune = field(default_factory=lambda: tune)  # looked up when it is made


def build_client_app(
    bundle: Bundle,
    data: Data,
    secure: SecureRounds,
    work_folder: Path,
    *,
    privacy: PrivateRounds | None = None,
    attack: AttackRounds | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> ClientApp:
    """Return the app that tunes on ``data`` with the emulator of a verified ``bundle``.

    ``secure`` says who answers, whose plans are obeyed and what time it is; ``privacy`` what may be
    spent of the data, where its owner set a limit; ``attack`` what every update has to stand before it
    leaves, where its owner asked for that.
    ``work_folder`` takes the checkpoint where the engine names no folder for the message.
    """
    listener, machine = listener or Listener(), machine or Machine()
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = machine.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workbench = Workbench(bundle, data, device, listener.status, listener.progress, machine.warm)
    rounds = _Rounds(workbench, secure, privacy, attack, work_folder, listener, machine)
    app = ClientApp()
    app.train()(rounds.answer)
    for action in Action:
        app.train(action.value)(rounds.step(action))
    return app


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Answers instructions, one after the other."""

    workbench: Workbench
    secure: SecureRounds
    privacy: PrivateRounds | None
    attack: AttackRounds | None
    work_folder: Path
    listener: Listener
    machine: Machine

    def answer(self, message: Message, context: Context) -> Message:
        """The edge's part of one round.

        Raises:
            StaleReleaseError: it is for another release than the one of this app.
            PeerError: the instruction is not to be obeyed; nothing of it was used.
            PolicyError: it asks more of this machine than the edge lends.
            ConfigError: no row is usable, or tuning came to nothing.
        """
        # (1) An instruction of our coordinator: in time, for this release, with this adapter.
        signed, base = self._check(message)
        # (2) The terms of the sum that the update is for, before anything is tuned.
        terms, schema = read_terms(message), self.workbench.bundle.adapter_schema
        if self.secure.check_terms(terms, signed, schema):
            return Message(self.secure.resume(terms), reply_to=message)  # killed after (4)
        # (3) The data and the emulator, warm; tuned, from a checkpoint if there is one; attacked.
        folder = Path(str(context.node_config.get(ROUND_FOLDER, self.work_folder)))
        delta, examples = self._tune(signed, base, folder)
        # (4) The update stays here, encoded; keys for the sum leave.
        update = to_vector(delta, schema)
        return Message(self.secure.begin(terms, signed, update, examples), reply_to=message)

    def step(self, action: Action) -> Callable[[Message, Context], Message]:
        """Answers one kind of step of a sum."""

        def answer(message: Message, context: Context) -> Message:
            if action is Action.MASK:
                self.listener.status("adding the masked update to the sum")
            return self.secure.answer(action, message)

        return answer

    def _check(self, message: Message) -> tuple[SignedPlan, dict[str, torch.Tensor]]:
        bundle, now_unix_s = self.workbench.bundle, self.secure.clock()
        signed = read_plan(message, self.secure.trust.coordinator_key, now_unix_s)
        plan = signed.plan
        self.machine.limits.check(plan, now_unix_s)
        # Before the adapter, which is of the plan's release too and may have another schema.
        if plan.bundle_sha256 != bundle.release_digest.hex():
            raise StaleReleaseError(
                f"round {plan.round}: expected the release {bundle.release_digest.hex()[:16]}, found a "
                f"plan for {plan.bundle_sha256[:16]}; fetch the release again"
            )
        # The release was valid when it was fetched, which may be long ago.
        if now_unix_s > bundle.manifest.facts.expires_unix_s + limits.CLOCK_SKEW_S:
            raise ExpiredError(
                f"round {plan.round}: the release has expired; expected a plan for one that is "
                "valid: publish a new release"
            )
        return signed, read_adapter(message, signed, bundle.adapter_schema)

    def _tune(
        self, signed: SignedPlan, base: dict[str, torch.Tensor], folder: Path
    ) -> tuple[dict[str, torch.Tensor], float]:
        """The update, and by how many examples it is weighed."""
        plan = signed.plan
        ready = self.workbench.examples(plan.settings.max_tokens)
        self.listener.data(ready.report)
        if not self.workbench.is_warm:
            for line in room_warnings(self.workbench.bundle, plan.settings, free_bytes()):
                self.listener.alone(line)
        with machine_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        callbacks = Callbacks(
            self.listener.progress, self.listener.status, lambda: self._go_on(plan)
        )

        parted = self._part(plan)
        used = ready if parted is None else parted.used(ready)

        def checkpoint(more: bytes = b"") -> Checkpoint:
            binding = _binding(signed, self.workbench.bundle, used, more)
            return Checkpoint(folder / CHECKPOINT_NAME, binding)

        if self.privacy is not None:
            units = None if parted is None else parted.tuned
            delta = self._tune_privately(self.privacy, plan, base, checkpoint, callbacks, units)
            self._judge(plan, parted, None, base, delta)
            return delta, UNIFORM
        tuned = self._tune_plainly(plan, base, used, checkpoint(), callbacks)
        self.listener.tuned(plan, tuned.metrics)
        seen = learnt_examples(used.examples, Task.of(plan), tuned.metrics.steps)
        self._judge(plan, parted, seen, base, tuned.delta)
        return tuned.delta, tuned.metrics.examples

    def _tune_privately(
        self,
        privacy: PrivateRounds,
        plan: RoundPlan,
        base: dict[str, torch.Tensor],
        checkpoint: Callable[[bytes], Checkpoint],
        callbacks: Callbacks,
        units: UnitExamples | None,
    ) -> dict[str, torch.Tensor]:
        with self._abort_noted(plan):
            return privacy.tune(plan, self.workbench, base, checkpoint, callbacks, units).delta

    @contextmanager
    def _abort_noted(self, plan: RoundPlan) -> Iterator[None]:
        """Of a private edge, an attempt that fails is an entry, and why it failed stays here."""
        try:
            yield
        except OffsiteError as error:
            if self.privacy is None:
                raise
            try:
                self.privacy.abort(plan, error)
            except OffsiteError:  # a ledger that cannot be written says so by `error`, too
                _log.exception("the attempt could not be noted in the ledger")
            if isinstance(error, ExpiredError | SitsOutError | MachineError):
                raise  # these tell of nothing, or never leave this machine
            raise SitsOutError(str(error)) from error

    def _part(self, plan: RoundPlan) -> Parted | None:
        """What the attack holds out; None where there is none."""
        if self.attack is None:
            return None
        took_part = self.secure.took_part(plan) or (
            self.privacy is not None and self.privacy.took_part(plan)
        )
        with self._abort_noted(plan):
            return self.attack.part(plan, self.workbench, took_part)

    def _judge(
        self,
        plan: RoundPlan,
        parted: Parted | None,
        seen: frozenset[int] | None,
        base: dict[str, torch.Tensor],
        delta: dict[str, torch.Tensor],
    ) -> None:
        """Lets an update pass, or raises PolicyError."""
        if self.attack is None or parted is None:
            return
        keep: Keep | None = None
        if self.privacy is not None:
            keep = into_ledger(self.privacy, plan, self.workbench.data)
        with self._abort_noted(plan):
            self.attack.judge(plan, self.workbench, parted, parted.rows(seen), base, delta, keep)

    def _tune_plainly(
        self,
        plan: RoundPlan,
        base: dict[str, torch.Tensor],
        ready: Examples,
        checkpoint: Checkpoint,
        callbacks: Callbacks,
    ) -> TuningOutcome:
        model, parameters = self.workbench.model(plan.settings.dtype, base)
        callbacks.status(f"tuning, round {plan.round} of {plan.total_rounds}")
        return self.machine.tune(
            model,
            parameters,
            base,
            ready.examples,
            Task.of(plan),
            checkpoint=checkpoint,
            callbacks=callbacks,
        )

    def _go_on(self, plan: RoundPlan) -> None:
        """Stop where the listener wants it, and where nobody waits for the update any more."""
        self.listener.between_steps()
        if self.secure.clock() > plan.deadline_unix_s:
            raise ExpiredError(
                f"round {plan.round}: the deadline passed while tuning, so the update would be "
                "left out; ask for a later deadline or fewer local steps"
            )


def _binding(signed: SignedPlan, bundle: Bundle, ready: Examples, more: bytes = b"") -> Binding:
    """A run of another emulator of the release is not gone on with: it would be neither's."""
    run = hashlib.sha256(signed.digest + bundle.digest + more).hexdigest()
    return Binding(run, ready.sha256)
