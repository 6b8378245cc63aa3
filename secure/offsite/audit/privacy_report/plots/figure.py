"""A plot with its caption, the meaning of its lines, and its numbers for those who want to read them."""

from collections.abc import Sequence

from offsite.audit.privacy_report.markup import Html, joined, tag

Keys = Sequence[tuple[str, str]]
"""Class of a mark, and what it stands for."""


def figure(
    svg: Html, caption: str, keys: Keys, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> Html:
    """All of it as one `<figure>`."""
    legend = [
        tag("li", tag("span", class_=f"mark {mark}", aria_hidden="true"), meaning)
        for mark, meaning in keys
    ]
    numbers = tag(
        "details", tag("summary", "The numbers"), tag("div", table(head, rows), class_="scroll")
    )
    return tag(
        "figure",
        svg,
        tag("ul", *legend, class_="keys") if legend else None,
        tag("figcaption", caption),
        numbers,
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table; the first column names its rows."""
    return tag(
        "table",
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag(
            "tbody",
            *(
                tag("tr", tag("th", row[0], scope="row"), joined(*(tag("td", c) for c in row[1:])))
                for row in rows
            ),
        ),
    )
