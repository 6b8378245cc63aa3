"""The course of the privacy budget: epsilon after every use, against the limit."""

from collections.abc import Sequence
from datetime import UTC, datetime

from offsite.audit.privacy_report.facts import Event, EventKind
from offsite.audit.privacy_report.markup import Content, Html, tag
from offsite.audit.privacy_report.plots.figure import figure
from offsite.audit.privacy_report.plots.frame import Axis, Frame


def course_plot(events: Sequence[Event], limit: float | None, reserved: float) -> Html:
    """Epsilon over the numbers of the ledger's entries."""
    top = max([event.epsilon for event in events] + [reserved, limit or 0.0])
    frame = Frame(
        Axis.over("entry of the ledger", 0, max(event.seq for event in events) + 1),
        Axis.over("ε so far", 0, top * 1.05),
    )
    points, epsilon = [(0.0, 0.0)], 0.0
    for event in events:
        points += [(event.seq, epsilon), (event.seq, event.epsilon)]
        epsilon = event.epsilon
    points.append((frame.x.high, epsilon))
    marks: list[Content] = [frame.path(points, "line accent")]
    if reserved > epsilon:
        marks.append(frame.path([(0, reserved), (frame.x.high, reserved)], "line reserved"))
    if limit is not None:
        marks.append(frame.path([(0, limit), (frame.x.high, limit)], "line limit"))
    marks += [
        tag("circle", cx=frame.at_x(event.seq), cy=frame.at_y(event.epsilon), r=4, class_="refused")
        for event in events
        if event.kind is EventKind.REFUSED
    ]
    return figure(
        frame.svg(_title(epsilon, limit), *marks),
        "Privacy loss only grows: what was released is never taken back, also after a crash.",
        _keys(events, limit, reserved if reserved > epsilon else None),
        ["entry", "time (UTC)", "what", "ε after"],
        [_row(event) for event in events],
    )


def _title(epsilon: float, limit: float | None) -> str:
    of = "" if limit is None else f" of {limit:.3g}"
    return f"Privacy loss over the ledger's entries, now {epsilon:.3g}{of}"


def _keys(
    events: Sequence[Event], limit: float | None, reserved: float | None
) -> list[tuple[str, str]]:
    keys = [("accent", "spent")]
    if reserved is not None:
        keys.append(("reserved", f"with what is reserved, ε = {reserved:.3g}"))
    if limit is not None:
        keys.append(("limit", f"the limit, ε = {limit:.3g}"))
    if any(event.kind is EventKind.REFUSED for event in events):
        keys.append(("refused", "a campaign was refused"))
    return keys


def _row(event: Event) -> list[str]:
    time = datetime.fromtimestamp(event.time_unix_s, UTC)
    kind = event.kind.value.replace("_", " ")
    return [
        str(event.seq),
        f"{time:%Y-%m-%d %H:%M}",
        f"{kind}: {event.what}",
        f"{event.epsilon:.3f}",
    ]
