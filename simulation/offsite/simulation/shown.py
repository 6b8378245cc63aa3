"""A simulation for a person: one line for each strategy and round."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offsite.simulation.figures import RoundFigures, RunFigures, comparison

NOT_THERE = "–"
CAPTION = (
    "in: in the sum; left: dropped out after tuning; late: not tuned in time, or gone; *: best "
    "round; r: rolled back; sim.: seconds by the simulated clock"
)
COLUMNS = ("asked", "in", "left", "late", "gate", "±", "sim.", "real", "epsilon")


def render(runs: Sequence[RunFigures]) -> RenderableType:
    """The table, why campaigns failed, and the comparison."""
    table = Table(
        title="Simulated campaigns",
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("strategy", no_wrap=True)
    for header in ("round", "", *COLUMNS):
        table.add_column(header, justify="right", no_wrap=True)
    for run in runs:
        for one in run.rounds:
            mark = "r" if one.is_rolled_back else "*" if one.round == run.best_round else ""
            table.add_row(run.strategy, str(one.round), mark, *_cells(one))
    failed = [Text(f"{run.strategy} failed: {run.reason}") for run in runs if run.is_failed]
    return Group(table, *failed, Text(comparison(runs)))


def _cells(one: RoundFigures) -> tuple[str, ...]:
    return (
        str(one.asked),
        str(one.answered),
        str(one.dropped),
        str(one.late),
        f"{one.gate:.4f}",
        f"{one.gate_stderr:.4f}",
        f"{one.simulated_s:.0f} s",
        f"{one.real_s:.1f} s",
        NOT_THERE if one.epsilon is None else f"{one.epsilon:.3f}",
    )
