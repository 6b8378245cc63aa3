"""What an attacker may come to believe: sure before, at most sure after."""

from offsite.audit.privacy_report.markup import Html
from offsite.audit.privacy_report.plots.figure import figure
from offsite.audit.privacy_report.plots.frame import Frame, share_axis
from offsite.audit.privacy_report.words import most_posterior, percent

_POINTS = 100
_PRIORS = (0.001, 0.01, 0.1, 0.5, 0.9)


def odds_plot(spent: float, limit: float | None) -> Html:
    """For what was spent and for what may be."""
    frame = Frame(share_axis("sure before"), share_axis("at most sure after"))
    lines = [("accent", "what was spent", spent)]
    if limit is not None:
        lines.insert(0, ("limit", "the limit", limit))
    priors = [i / _POINTS for i in range(_POINTS + 1)]
    drawn = [
        frame.path([(p, most_posterior(epsilon, p)) for p in priors], f"line {mark}")
        for mark, _, epsilon in lines
    ]
    nothing = frame.path([(0, 0), (1, 1)], "line chance")
    title = "How sure an attacker can at most become, by how sure they were before"
    return figure(
        frame.svg(title, nothing, *drawn),
        "An attacker's belief that a certain unit was used, before and after seeing everything that "
        "was released. On the diagonal they learn nothing.",
        [(mark, f"{name}, ε = {epsilon:.3g}") for mark, name, epsilon in lines]
        + [("chance", "no information")],
        ["sure before", *(f"at most, {name}" for _, name, _ in lines)],
        [
            [percent(prior), *(percent(most_posterior(epsilon, prior)) for *_, epsilon in lines)]
            for prior in _PRIORS
        ],
    )
