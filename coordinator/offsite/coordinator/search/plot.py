"""The frontier as a picture: recovery by the plug-in against what a thief has after healing.

Notable: the area of a point is its size in bytes; points over a limit are hollow; equal outcomes
give equal files. matplotlib is imported here alone, and only when there is something to draw.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.coordinator.search.explore import Outcome, Point
from offsite.coordinator.search.shown import recovery_of
from offsite.emulator.durable import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_AREA = 300.0
"""Of a point, in square points; the largest emulator has it."""


def write_plot(path: Path, outcome: Outcome, healed_limit: float | None) -> bool:
    """Writes an SVG; False, and nothing written, if no point was measured in full."""
    points = [point for point in outcome.full if "plug_in" in point.figures]
    if not points:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "offsite", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(figure.add_subplot(), outcome, points, healed_limit)
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_atomic(path, data.getvalue())
    return True


def _draw(axes: "Axes", outcome: Outcome, points: list[Point], healed_limit: float | None) -> None:
    x_name = "healed" if all("healed" in point.figures for point in points) else "zero_shot"
    has_recovery = all(recovery_of(outcome, point) is not None for point in points)

    def place(point: Point) -> tuple[float, float]:
        recovery = recovery_of(outcome, point) if has_recovery else point.figures["plug_in"]
        assert recovery is not None  # `has_recovery`
        return point.figures.get(x_name, 0.0), recovery

    largest = max(point.figures.get("bytes", 1.0) for point in points)
    methods = sorted({point.section.method.value for point in points})
    for number, method in enumerate(methods):
        own = [point for point in points if point.section.method.value == method]
        x, y = zip(*map(place, own), strict=True)
        colours = ["none" if point.broken else f"C{number}" for point in own]
        areas = [LARGEST_AREA * point.figures.get("bytes", 1.0) / largest for point in own]
        axes.scatter(x, y, s=areas, c=colours, edgecolors=f"C{number}", label=method, alpha=0.8)
    line = sorted(place(point) for point in outcome.frontier)
    axes.plot([x for x, _ in line], [y for _, y in line], color="0.5", linewidth=1, zorder=0)
    for point in outcome.frontier:
        axes.annotate(
            point.label, place(point), fontsize="x-small", textcoords="offset points", xytext=(6, 4)
        )
    if healed_limit is not None and x_name == "healed":
        axes.axvline(healed_limit, color="C3", linestyle="--", linewidth=1, label="leak budget")
    axes.set_xlabel(f"skill of the emulator, {x_name.replace('_', '-')}, share of the full model's")
    axes.set_ylabel("recovery by the plug-in" if has_recovery else "accuracy of the plug-in")
    axes.set_title("Emulators: useful is up, useless to steal is left, small is small")
    axes.legend(fontsize="small")
