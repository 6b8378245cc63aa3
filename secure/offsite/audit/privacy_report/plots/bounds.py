"""Measured lower bounds on the privacy loss beside what is claimed of the same runs."""

from collections.abc import Sequence

from offsite.audit.privacy_report.facts import LowerBound
from offsite.audit.privacy_report.markup import Content, Html, tag
from offsite.audit.privacy_report.plots.figure import figure
from offsite.audit.privacy_report.plots.frame import BOTTOM, TOP, Axis, Frame

_ROW = 42.0
_LEFT = 18.0
"""Where the drawing starts: the rows carry their names inside."""


def bounds_plot(bounds: Sequence[LowerBound], confidence: float) -> Html:
    """One row for each attack."""
    rows = len(bounds)
    top = max(max(bound.epsilon, bound.claimed) for bound in bounds)
    frame = Frame(
        Axis.over("ε", 0, top * 1.05),
        Axis("", 0, rows, ()),
        height=TOP + BOTTOM + _ROW * rows,
        left=_LEFT,
    )
    marks: list[Content] = []
    for place, bound in enumerate(bounds):
        y = frame.at_y(rows - place - 0.5)
        low, claimed = frame.at_x(bound.epsilon), frame.at_x(bound.claimed)
        style = "bad" if bound.epsilon > bound.claimed else "accent"
        marks += [
            frame.text(frame.left + 4, y - 7, bound.name, "label"),
            tag("rect", x=frame.left, y=y, width=low - frame.left, height=8, class_=f"bar {style}"),
            tag("line", x1=claimed, x2=claimed, y1=y - 4, y2=y + 12, class_="line claim"),
        ]
    return figure(
        frame.svg("Measured lower bounds on epsilon and what is claimed", *marks),
        f"With {100 * confidence:g} % confidence the true ε is at least as large as a bar. A small bar "
        "means that this attack found little, not that there is little to find.",
        [("bar accent", "measured: at least"), ("claim", "claimed: at most")],
        ["attack", "ε at least", "ε claimed"],
        [[bound.name, f"{bound.epsilon:.3f}", f"{bound.claimed:.3f}"] for bound in bounds],
    )
