"""`edge-client join`: everything a data owner does, in one command that can always be repeated.

(1) read the data, so that a wrong file is found before anything else happens
(2) enrol with the token, or remember the enrolment
(3) choose an emulator of the release, fetch it, verify every chunk, then the whole
(4) tune and return, round after round, until the campaign ends
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import grpc

from offsite.edge_client.attack.attack_rounds import AttackRounds
from offsite.edge_client.attack.choice import AttackChoice, AttackWish, read_choice
from offsite.edge_client.attack.opening import open_attack
from offsite.edge_client.bars import Bars
from offsite.edge_client.channel import open_channel
from offsite.edge_client.client_app import Listener, Machine, build_client_app
from offsite.edge_client.data import Data, DataReport, read_data
from offsite.edge_client.emulator_choice import AUTO, Chooser, kept_in
from offsite.edge_client.engines.choice import run_rounds
from offsite.edge_client.enrol import enrol, is_renewal_due, refresh_directory, renew_if_due
from offsite.edge_client.facts import Facts, facts_of, settled_choice
from offsite.edge_client.facts import described as told_in_words
from offsite.edge_client.fetch import Source, fetch_release
from offsite.edge_client.outcome import TuningMetrics
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit, PrivacyWish, read_limit
from offsite.edge_client.privacy.opening import open_budget
from offsite.edge_client.privacy.private_rounds import PrivateRounds
from offsite.edge_client.privacy.receipts import receipt_renewed
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.secure_folder import erase_sums
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.edge_client.state import EdgeState, Membership
from offsite.edge_client.worker import CampaignEnd, Ears, Edge, Ending
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.report import describe, render
from offsite.emulator.durable import FILE_MODE, machine_errors
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, TransportError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.token import JoinToken

PROGRESS_S = 10.0
"""How often a line says how far tuning is."""
RENEWAL_PAUSE_S = 3600.0
"""Least time between two renewals: a certificate that is due at once must not become a loop."""
STANDARD_INPUT = "-"
TOKEN_CHARS = 1 << 16
"""Most of a line of standard input that is read."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What the command line said."""

    token: str
    data: Path
    state: Path
    threads: int
    inspect_only: bool
    emulator: str = AUTO
    least_cohort: int | None = None
    most_norm: float | None = None
    most_coordinate: float | None = None
    """Of the policy; None: as it was before."""
    privacy: PrivacyWish = field(default_factory=PrivacyWish)
    attack: AttackWish = field(default_factory=AttackWish)
    tell: str | None = None
    """What the coordinator may know of this machine; None: as it was before."""


def join_campaign(request: JoinRequest, terminal: Terminal) -> None:
    """Works until the campaign ends.

    Raises:
        TransportError: the coordinator stayed away, or the campaign failed.
    """
    token = JoinToken.parse(_token_text(request.token))
    # (1) The data, and what may be spent on them.
    limit = request.privacy.settled(read_limit(request.state))
    data = read_data(request.data, None if limit is None else limit.person_column)
    rows = _RowNotes(terminal)
    rows.note(data.report)
    with EdgeState.open(request.state) as state:
        _log_into(state)
        _settle_policy(request, state, terminal)
        told = settled_choice(state.root, request.tell, is_private=limit is not None)
        terminal.note(told_in_words(told))
        # (2) The membership.
        membership = enrol(token, state)
        terminal.note(f"joined as {membership.client_id}, coordinator at {membership.address}")
        budget = open_budget(state, request.privacy, data, membership.client_id, terminal.note)
        limit, ledger = (None, None) if budget is None else budget
        attack = request.attack.settled(read_choice(state.attack))
        open_attack(state, attack, data, terminal.note)
        # (3) and (4), on a new channel whenever the certificate was renewed.
        session = _Session(
            state,
            membership,
            data,
            request.threads,
            Chooser(
                request.emulator,
                terminal.note,
                kept=partial(kept_in, state.bundle, state.rounds),
            ),
            terminal,
            rows,
            _Renewals(state),
            limit,
            ledger,
            attack,
            facts_of(told, len(data.rows)),
        )
        if request.inspect_only:
            session.inspect()
            return
        end = session.work()
        while end is None:
            end = session.work()
        erase_sums(state.sums)
    if end.ending is Ending.FAILED:
        raise TransportError(f"the campaign failed: {end.reason}")
    terminal.result(
        f"the campaign has ended: {end.reason}",
        {"client": membership.client_id, "ending": end.ending.name.lower(), "reason": end.reason},
    )


@dataclass(frozen=True, slots=True)
class _Session:
    """An enrolled edge at work."""

    state: EdgeState
    membership: Membership
    data: Data
    threads: int
    chooser: Chooser
    terminal: Terminal
    rows: "_RowNotes"
    renewals: "_Renewals"
    limit: PrivacyLimit | None
    ledger: LedgerFolder | None
    attack: AttackChoice | None
    facts: Facts

    def inspect(self) -> None:
        """Fetches and shows the release."""
        with self._channel() as channel, Bars(self.terminal) as bars:
            coordinator_key = self._coordinator_key(channel)
            bundle = self._fetch(channel, coordinator_key, bars)
        document = describe(bundle, time.time(), coordinator_key)
        self.terminal.result(render(document), document)

    def work(self) -> CampaignEnd | None:
        """Rounds until the campaign ends; None for a new certificate or another release."""
        with self._channel() as channel, Bars(self.terminal) as bars:
            coordinator_key = self._coordinator_key(channel)
            bundle = self._fetch(channel, coordinator_key, bars)
            pulse, privacy = Pulse(channel, self.facts), self._privacy(channel, coordinator_key)
            client_id = self.membership.client_id
            app = build_client_app(
                bundle,
                self.data,
                self._secure_rounds(coordinator_key),
                self.state.rounds,
                privacy=privacy,
                attack=self._attack(coordinator_key),
                listener=_listener(pulse, self.terminal, self.rows),
                machine=Machine(threads=self.threads),
            )
            edge = Edge(
                channel=channel,
                client_id=client_id,
                rounds=self.state.rounds,
                pulse=pulse,
                ears=Ears(
                    self.terminal.note,
                    receiving=bars.bar("receiving the instruction"),
                    sending=bars.bar("sending the update"),
                ),
                pause_due=self.renewals.is_due,
            )
            end = run_rounds(edge, app, self.state)
            if privacy is not None and end is not None and end.ending is Ending.ENDED:
                privacy.close()
            return end

    def _privacy(
        self, channel: grpc.Channel, coordinator_key: IdentityPublicKey
    ) -> PrivateRounds | None:
        if self.ledger is None or self.limit is None:
            return None
        renewed = partial(
            receipt_renewed, channel, self.ledger, coordinator_key, self.terminal.note
        )
        renewed()
        return PrivateRounds(self.ledger, self.limit, coordinator_key, self.terminal.note, renewed)

    def _attack(self, coordinator_key: IdentityPublicKey) -> AttackRounds | None:
        if self.attack is None:
            return None
        return AttackRounds(self.state.attack, self.attack, coordinator_key, self.terminal.note)

    def _secure_rounds(self, coordinator_key: IdentityPublicKey) -> SecureRounds:
        state, membership = self.state, self.membership
        trust = Trust(
            coordinator_key,
            membership.directory_key,
            directory=lambda: state.directory(time.time()),
            keep_directory=state.save_directory,
            policy=state.policy(),
        )
        return SecureRounds(
            membership.client_id,
            state.identity_key(),
            trust,
            state.sums,
            time.time,
            threads=self.threads or os.cpu_count() or 1,
        )

    def _channel(self) -> grpc.Channel:
        self.renewals.renew()
        return open_channel(self.state)

    def _coordinator_key(self, channel: grpc.Channel) -> IdentityPublicKey:
        return refresh_directory(channel, self.state).coordinator().identity_key

    def _fetch(
        self, channel: grpc.Channel, coordinator_key: IdentityPublicKey, bars: Bars
    ) -> Bundle:
        bundle = fetch_release(
            Source(channel, coordinator_key, time.time()),
            self.state.bundle,
            choose=self.chooser,
            report=bars.bar("fetching bytes"),
            report_check=bars.bar("checking"),
        )
        bundle.check_tuning_bytes()
        facts = bundle.manifest.facts
        variant = "" if bundle.main is None else f", emulator {bundle.variant}"
        self.terminal.note(
            f"release {facts.release_version} of {facts.base_model}{variant}, "
            f"{bundle.manifest.bundle_bytes} bytes, verified"
        )
        return bundle


def _settle_policy(request: JoinRequest, state: EdgeState, terminal: Terminal) -> None:
    """Stores what was asked for over what was stored before, and says what holds."""
    given = {
        "least_cohort": request.least_cohort,
        "most_norm_bound": request.most_norm,
        "most_coordinate_bound": request.most_coordinate,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    policy = replace(state.policy(), **changes)  # type: ignore[arg-type]
    if changes:
        state.save_policy(policy)
    norm = "any norm" if math.isinf(policy.most_norm_bound) else f"norm {policy.most_norm_bound:g}"
    terminal.note(
        f"policy: updates only into sums of at least {policy.least_cohort}, clipped to {norm} and "
        f"to changes of {policy.most_coordinate_bound:g} at most"
    )
    if policy.least_cohort == 2:
        terminal.note("in a sum of two, each learns the other's update; see docs/guarantees.md")


class _Renewals:
    """Renews the certificate in time, and at most once in `RENEWAL_PAUSE_S`."""

    def __init__(self, state: EdgeState, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._clock = state, clock
        self._next_s = float("-inf")

    def is_due(self) -> bool:
        return self._clock() >= self._next_s and is_renewal_due(self._state)

    def renew(self) -> None:
        if self.is_due():
            self._next_s = self._clock() + RENEWAL_PAUSE_S
            renew_if_due(self._state)


class _RowNotes:
    """Says what became of the rows, and again when encoding them for a model changed that."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lines: list[str] = []

    def note(self, report: DataReport) -> None:
        """Nothing is said twice."""
        lines = report.lines()
        if lines == self._lines:
            return
        self._lines = lines
        for line in lines:
            self._terminal.note(line)


def _token_text(given: str) -> str:
    """The token itself, the first line of standard input, or what stands in the file of that name."""
    if given == STANDARD_INPUT:
        return _token_from_standard_input()
    path = Path(given)
    if given.startswith("offsite1.") or not _is_file(path):
        return given.strip()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a file that holds a join token: {error}") from error


def _token_from_standard_input() -> str:
    try:
        text = sys.stdin.readline(TOKEN_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"standard input: expected a join token: {error}") from error
    if not text:
        raise ConfigError("standard input: expected a line with the join token, found none")
    return text


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a token may be longer than a file name can be
        return False


def _log_into(state: EdgeState) -> None:
    """Details of what fails stay on this machine, in `edge.log`, for its owner alone."""
    with machine_errors(state.log):
        descriptor = os.open(state.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        try:
            os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)
        handler = logging.FileHandler(state.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("offsite")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False


def _listener(pulse: Pulse, terminal: Terminal, rows: _RowNotes) -> Listener:
    """Tells the person what happens here, and the coordinator no more than a few words."""

    def status(text: str) -> None:
        pulse.say(text)
        terminal.note(text)

    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            terminal.note(
                f"{done} of {total}"
            )  # of rows, or of steps that follow from their number

    def tuned(plan: RoundPlan, metrics: TuningMetrics) -> None:
        terminal.note(
            f"round {plan.round} of {plan.total_rounds}: {metrics.steps} steps on "
            f"{metrics.examples} examples in {metrics.seconds:.0f} s, loss "
            f"{metrics.first_loss:.3f} to {metrics.last_loss:.3f}"
        )

    return Listener(
        status=status,
        alone=terminal.note,
        progress=progress,
        data=rows.note,
        tuned=tuned,
        between_steps=pulse.check,
    )
