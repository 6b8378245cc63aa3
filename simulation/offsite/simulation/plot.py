"""The gate by round, a line for each strategy, as an SVG; equal figures give equal files."""

import io
from collections.abc import Sequence
from pathlib import Path

from offsite.emulator.durable import write_atomic
from offsite.simulation.figures import RunFigures


def write_plot(path: Path, runs: Sequence[RunFigures], title: str) -> None:
    """Writes the picture; round 0 is the full model without an adapter."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.hashsalt": "offsite", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for number, run in enumerate(runs):
            start = [] if run.baseline is None else [(0, run.baseline, 0.0)]
            points = start + [(one.round, one.gate, one.gate_stderr) for one in run.rounds]
            x, y, error = ([point[axis] for point in points] for axis in range(3))
            colour = f"C{number}"
            axes.plot(x, y, color=colour, marker="o", markersize=4, label=run.strategy)
            low = [gate - e for gate, e in zip(y, error, strict=True)]
            high = [gate + e for gate, e in zip(y, error, strict=True)]
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            lost = [one for one in run.rounds if one.is_rolled_back]
            axes.scatter(
                [one.round for one in lost], [one.gate for one in lost], c=colour, marker="x", s=60
            )
        if runs and runs[0].baseline is not None:
            axes.axhline(runs[0].baseline, color="0.5", linestyle="--", linewidth=1)
        axes.set_xlabel("round (0: the full model; x: rolled back)")
        axes.set_ylabel("gate: accuracy of the plug-in, band of one standard error")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize="small")
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_atomic(path, data.getvalue())
