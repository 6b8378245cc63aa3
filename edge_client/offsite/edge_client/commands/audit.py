"""`edge-client audit`: attack this edge's own mechanism, on the terms of a campaign in its ledger.

Opening and guesses are committed to in the ledger before the labels are opened, so nobody can choose
guesses afterwards; the result is an entry, too, and raises the campaign's level of assurance. Runs on
made-up data: nothing of the owner's is used and nothing is spent.
"""

import hashlib
import time
from pathlib import Path
from typing import Final

from offsite.audit.empirical.mechanism import Terms
from offsite.audit.empirical.plan import AuditPlan
from offsite.audit.empirical.report import render
from offsite.audit.empirical.run import run_empirical
from offsite.edge_client.privacy.campaigns import chosen
from offsite.edge_client.privacy.limit import read_limit
from offsite.edge_client.privacy.opening import NO_LEDGER, open_ledger
from offsite.edge_client.state import EdgeState
from offsite.emulator.durable import private_folder, write_atomic
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.ledger.bodies import AuditGuesses, AuditKind, AuditResult
from offsite.secure.privacy.mechanisms import PoissonGaussian

AUDITS: Final = "audits"


def audit_own_mechanism(
    root: Path, campaign: str | None, canaries: int, duels: int, terminal: Terminal
) -> None:
    """Audits the terms of a campaign; the evidence lies beside the ledger.

    Raises:
        ConfigError: there is no ledger, or no such campaign.
        PolicyError: the mechanism does not keep its claim; shown and written down nevertheless.
    """
    if read_limit(root) is None:
        raise ConfigError(NO_LEDGER.format(root=root))
    with EdgeState.open(root) as state:
        ledger = open_ledger(state, state.membership().client_id)
        name = chosen(ledger, campaign)
        reserved = ledger.budget.campaigns[name].reserved
        mechanism, limit = reserved.mechanism, ledger.budget.limit_of(reserved.data_set)
        assert isinstance(mechanism, PoissonGaussian) and limit is not None  # it was admitted
        terms = Terms(mechanism.noise_multiplier, mechanism.sampling, mechanism.steps)
        plan = AuditPlan(terms, limit.delta, canaries=canaries, duels=duels)
        committed: list[int] = []

        def commit(document: bytes) -> str:
            digest = hashlib.sha256(document).digest()
            seq = ledger.append(AuditGuesses(name, digest)).entry.seq
            committed.append(seq)
            return f"ledger entry {seq}"

        started = time.monotonic()
        with terminal.progress("runs, in thousandths") as report:
            audit, evidence = run_empirical(plan, commit=commit, report=report)
        terminal.note(f"took {time.monotonic() - started:.0f} s")
        data = evidence.to_bytes()
        private_folder(ledger.root / AUDITS)
        write_atomic(ledger.root / AUDITS / f"{hashlib.sha256(data).hexdigest()}.json", data)
        ledger.append(
            AuditResult(
                name,
                AuditKind.EMPIRICAL,
                hashlib.sha256(data).digest(),
                not audit.is_refuted,
                committed[-1],
                max(0.0, audit.epsilon_lower_bound),
                1 - plan.significance,
            )
        )
    terminal.result(render(audit), audit.document())
    if audit.is_refuted:
        raise PolicyError(
            f"the mechanism of {name} does not keep its claim of epsilon {audit.claimed_epsilon:.2f}: "
            "do not go on with it"
        )
