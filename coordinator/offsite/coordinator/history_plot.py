"""The history of a campaign as a picture: gate, updates and seconds by round.

Notable: equal histories give equal files; a rollback is an arrow from where it was ordered to the
round that was gone back to, and the rounds between stay where they are. matplotlib is imported here
alone, and only when there is something to draw.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.coordinator.history import Attempt, History
from offsite.coordinator.policy.orders import Command
from offsite.coordinator.tables.campaigns import RoundState
from offsite.emulator.durable import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (8.0, 8.0)


def write_history_plot(path: Path, history: History) -> bool:
    """Writes an SVG; False, and nothing written, if no round is closed."""
    closed = [a for a in history.attempts if a.state is RoundState.CLOSED]
    if not closed:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "offsite", "svg.fonttype": "none"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        gate, updates, seconds = figure.subplots(3, sharex=True)
        figure.suptitle(f"Campaign {history.campaign_id}, {history.stage}")
        _draw_gate(gate, history, closed)
        _draw_updates(updates, closed)
        _draw_seconds(seconds, history)
        seconds.set_xlabel("round")
        seconds.set_xticks([a.round for a in closed])
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_atomic(path, data.getvalue())
    return True


def _draw_gate(axes: "Axes", history: History, closed: list[Attempt]) -> None:
    axes.set_ylabel("gate, accuracy")
    judged = [(a.round, a.gate, a.gate_stderr or 0.0) for a in closed if a.gate is not None]
    if not judged:
        axes.text(0.5, 0.5, "no gate judged a round", ha="center", transform=axes.transAxes)
        return
    x, y, error = zip(*judged, strict=True)
    axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label="plug-in, with standard error")
    if history.full_acc is not None:
        axes.axhline(history.full_acc, color="0.5", linestyle="--", label="full model")
    gate_of = {number: gate for number, gate, _ in judged}
    best = history.best_round
    if best in gate_of:
        axes.plot([best], [gate_of[best]], "*", color="C1", markersize=14, label="best")
    for given in history.orders:
        start, target = given.after_round, given.order.to_round
        if given.order.command is Command.ROLLBACK and target in gate_of and start in gate_of:
            arrow = {"arrowstyle": "->", "color": "C3", "connectionstyle": "arc3,rad=0.3"}
            axes.annotate("", (target, gate_of[target]), (start, gate_of[start]), arrowprops=arrow)
    axes.legend(fontsize="small")


def _draw_updates(axes: "Axes", closed: list[Attempt]) -> None:
    x = [a.round for a in closed]
    updates = [a.updates for a in closed]
    axes.bar(x, updates, label="in the sum")
    left_out = [a.left_out for a in closed]
    axes.bar(x, left_out, bottom=updates, color="C3", label="refused, late or dropped out")
    axes.set_ylabel("edges")
    axes.legend(fontsize="small")


def _draw_seconds(axes: "Axes", history: History) -> None:
    """Attempts of one round on top of each other; those that came to nothing are pale."""
    bottom: dict[int, float] = {}
    for attempt in history.attempts:
        if attempt.seconds is None:
            continue
        counts = attempt.state is RoundState.CLOSED
        base = bottom.get(attempt.round, 0.0)
        axes.bar(
            [attempt.round],
            [attempt.seconds],
            bottom=[base],
            color="C0" if counts else "0.8",
        )
        bottom[attempt.round] = base + attempt.seconds
    axes.set_ylabel("seconds (grey: came to nothing)")
