"""Membership inference: its ROC curve below what epsilon allows, and the scores behind it."""

import numpy as np

from offsite.audit.attack.intervals import Floats
from offsite.audit.attack.membership import Membership
from offsite.audit.privacy_report.markup import Content, Html, tag
from offsite.audit.privacy_report.plots.figure import figure
from offsite.audit.privacy_report.plots.frame import Axis, Frame, share_axis
from offsite.audit.privacy_report.words import most_true_positives, percent

_BINS = 22
_CEILING_POINTS = 200


def roc_plot(found: Membership, epsilon: float | None, delta: float) -> Html:
    """True over false positives of the measured rows at every threshold."""
    frame = Frame(share_axis("false positives"), share_axis("true positives"))
    curve = roc(found.members, found.held_out)
    marks: list[Content] = [frame.path([(0, 0), (1, 1)], "line chance")]
    keys = [("accent", "this attack"), ("chance", "guessing")]
    if epsilon is not None:
        rates = np.linspace(0, 1, _CEILING_POINTS + 1) ** 2  # dense where the curve is steep
        ceiling = [(float(x), most_true_positives(epsilon, delta, float(x))) for x in rates]
        marks.append(frame.path([(0.0, 0.0), *ceiling], "line limit"))
        keys.append(("limit", f"the most that ε = {epsilon:.3g} allows"))
    marks += [frame.path(curve, "line accent"), _point(frame, found)]
    keys.append(("dot", "the threshold set on other rows, with its interval"))
    title = f"ROC curve of membership inference, area {found.area.value:.2f}"
    return figure(
        frame.svg(title, *marks),
        "How many of the rows that were used the attack names, by how many it names wrongly.",
        keys,
        ["false positives", "true positives"],
        [[percent(x), percent(_at(curve, x))] for x in (0.01, 0.05, 0.1, 0.25, 0.5)],
    )


def scores_plot(found: Membership) -> Html:
    """How the scores of used and of held-out rows are spread."""
    pooled = np.concatenate([found.members, found.held_out])
    low, high = (float(value) for value in np.quantile(pooled, [0.005, 0.995]))
    if not high > low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    inside, outside = (_shares(values, edges) for values in (found.members, found.held_out))
    top = max(inside.max(), outside.max())
    ticks = tuple(float(edge) for edge in np.linspace(low, high, 5))
    frame = Frame(
        Axis(found.score.value.replace("_", " "), low, high, ticks, "{:.2g}".format),
        Axis.over("share of rows", 0, float(top), lambda share: f"{100 * share:.3g} %"),
    )
    return figure(
        frame.svg(
            "Scores of used and of held-out rows",
            *_bars(frame, edges, inside),
            frame.path(_outline(edges, outside), "line other"),
        ),
        "The more the two differ, the better the attack tells them apart.",
        [("bar accent", "rows that were used"), ("other", "rows that were held out")],
        ["score from", "used", "held out"],
        [
            [f"{edge:.3g}", percent(a), percent(b)]
            for edge, a, b in zip(edges, inside.tolist(), outside.tolist(), strict=False)
        ],
    )


def roc(members: Floats, held_out: Floats) -> list[tuple[float, float]]:
    """(false, true positive rate) at every threshold, from none named to all."""
    thresholds = np.unique(np.concatenate([members, held_out]))[::-1]
    rates = [
        1 - np.searchsorted(np.sort(values), thresholds, "left") / len(values)
        for values in (held_out, members)
    ]
    return [(0.0, 0.0), *((float(x), float(y)) for x, y in zip(*rates, strict=True))]


def _at(curve: list[tuple[float, float]], false_positives: float) -> float:
    return max(y for x, y in curve if x <= false_positives)


def _point(frame: Frame, found: Membership) -> Html:
    """The point at the threshold; its cross is the interval of either rate."""
    across, up = found.false_positives, found.true_positives
    x, y = frame.at_x(across.value), frame.at_y(up.value)
    return tag(
        "g",
        tag("line", x1=frame.at_x(across.low), x2=frame.at_x(across.high), y1=y, y2=y),
        tag("line", x1=x, x2=x, y1=frame.at_y(up.low), y2=frame.at_y(up.high)),
        tag("circle", cx=x, cy=y, r=4.5),
        class_="point",
    )


def _shares(values: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    shares: Floats = counts / len(values)
    return shares


def _bars(frame: Frame, edges: Floats, shares: Floats) -> list[Html]:
    bars = []
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        x, y = frame.at_x(float(left)), frame.at_y(float(share))
        width, height = frame.at_x(float(right)) - x - 1, frame.at_y(0) - y
        bars.append(tag("rect", x=x, y=y, width=width, height=height, class_="bar accent soft"))
    return bars


def _outline(edges: Floats, shares: Floats) -> list[tuple[float, float]]:
    points = [(float(edges[0]), 0.0)]
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        points += [(float(left), float(share)), (float(right), float(share))]
    return [*points, (float(edges[-1]), 0.0)]
