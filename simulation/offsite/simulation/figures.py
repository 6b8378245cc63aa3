"""What came of a simulated campaign: figures per round, and of the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from offsite.coordinator.campaign_parts import CampaignSettings
from offsite.coordinator.campaign_record import CampaignResult
from offsite.coordinator.round_metrics import BASELINE, GATE, GATE_STDERR, ROLLED_BACK
from offsite.coordinator.tables.campaigns import RoundRow, RoundState
from offsite.simulation.judging import Noted


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """A closed round. Clients are those of the attempt that counts; times those of all attempts."""

    round: int
    attempts: int
    asked: int
    answered: int
    dropped: int
    late: int
    refused: int
    gate: float
    gate_stderr: float
    is_rolled_back: bool
    simulated_s: float
    real_s: float
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A campaign."""

    strategy: str
    rounds: tuple[RoundFigures, ...]
    baseline: float | None
    best_round: int
    """0: none that is better than nothing."""
    best_gate: float | None
    released: bool
    reason: str
    """Why it ended, or failed."""
    is_failed: bool
    real_s: float

    @property
    def last_gate(self) -> float | None:
        """Of the last closed round."""
        return self.rounds[-1].gate if self.rounds else None

    @property
    def simulated_s(self) -> float:
        return sum(one.simulated_s for one in self.rounds)

    @property
    def epsilon(self) -> float | None:
        """The largest that a client has spent."""
        return self.rounds[-1].epsilon if self.rounds else None

    def lines(self) -> list[dict[str, object]]:
        """One JSON value for each round."""
        return [{"what": "round", "strategy": self.strategy, **asdict(one)} for one in self.rounds]

    def summary(self) -> dict[str, object]:
        """A dict of plain JSON values, without the rounds."""
        return {
            "strategy": self.strategy,
            "rounds": len(self.rounds),
            "gate_full": self.baseline,
            "best_round": self.best_round,
            "gate_best": self.best_gate,
            "gate_last": self.last_gate,
            "released": self.released,
            "failed": self.is_failed,
            "reason": self.reason,
            "simulated_s": round(self.simulated_s, 1),
            "real_s": round(self.real_s, 1),
            "epsilon": self.epsilon,
        }


def figures_of(
    settings: CampaignSettings,
    rows: Sequence[RoundRow],
    noted: Sequence[Noted],
    result: CampaignResult | None,
    failure: str,
    real_s: float,
) -> RunFigures:
    """The figures of a campaign from its rows.

    Args:
        noted: what the gate noted, one for each closed round.
        result: None where the campaign failed.
    """
    closed = [row for row in rows if row.state is RoundState.CLOSED]
    figures = tuple(
        _round(row, [r for r in rows if r.round == row.round], note)
        for row, note in zip(closed, noted, strict=True)
    )
    kept = [one for one in figures if not one.is_rolled_back]
    best = max(kept, key=lambda one: (one.gate, -one.round), default=None)
    return RunFigures(
        strategy=settings.strategy.name.value,
        rounds=figures,
        baseline=next((r.metrics[BASELINE] for r in closed if BASELINE in r.metrics), None),
        best_round=0 if best is None else best.round,
        best_gate=None if best is None else best.gate,
        released=result is not None and result.released,
        reason=failure if result is None else result.reason,
        is_failed=result is None,
        real_s=real_s,
    )


def _round(row: RoundRow, attempts: Sequence[RoundRow], noted: Noted) -> RoundFigures:
    counts = {name: int(row.metrics[name]) for name in ("updates", "dropped", "late", "refused")}
    assert row.closed_unix_s is not None  # it is closed
    begun = min(one.opened_unix_s for one in attempts)
    return RoundFigures(
        round=row.round,
        attempts=len(attempts),
        asked=sum(counts.values()),
        answered=counts["updates"],
        dropped=counts["dropped"],
        late=counts["late"],
        refused=counts["refused"],
        gate=row.metrics[GATE],
        gate_stderr=row.metrics[GATE_STDERR],
        is_rolled_back=ROLLED_BACK in row.metrics,
        simulated_s=round(row.closed_unix_s - begun, 1),
        real_s=round(noted.seconds, 2),
        epsilon=noted.epsilon,
    )


def comparison(runs: Sequence[RunFigures]) -> str:
    """One line that says which strategy did best."""
    judged = [run for run in runs if run.best_gate is not None]
    if not judged:
        return "no strategy closed a round that was kept"
    ordered = sorted(judged, key=lambda run: (-_gate(run), run.best_round))
    shown = ", ".join(
        f"{run.strategy} {_gate(run):.4f} (round {run.best_round})" for run in ordered
    )
    baseline = ordered[0].baseline
    full = "" if baseline is None else f"; full model {baseline:.4f}"
    errors: Mapping[str, float] = {
        run.strategy: run.rounds[run.best_round - 1].gate_stderr for run in ordered
    }
    text = f"best gate by strategy: {shown}{full}"
    if len(ordered) > 1:
        gap = _gate(ordered[0]) - _gate(ordered[1])
        error = errors[ordered[0].strategy]
        verdict = "more" if gap > error + 1e-9 else "no more"
        text += (
            f"; the first is ahead by {gap:.4f}, {verdict} than one standard error ({error:.4f})"
        )
    if failed := [run.strategy for run in runs if run.is_failed]:
        text += f"; failed: {', '.join(failed)}"
    return text


def _gate(run: RunFigures) -> float:
    assert run.best_gate is not None  # only those are compared
    return run.best_gate
