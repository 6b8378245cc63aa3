"""The pieces that sections are made of."""

from collections.abc import Mapping

from offsite.audit.privacy_report.findings import Severity
from offsite.audit.privacy_report.markup import Content, Html, tag

SIGNS = {
    Severity.GOOD: "✓",
    Severity.NOTE: "i",
    Severity.OPEN: "!",
    Severity.FAILED: "✗",
}
CLASSES = {
    Severity.GOOD: "good",
    Severity.NOTE: "note",
    Severity.OPEN: "open",
    Severity.FAILED: "failed",
}


def section(key: str, title: str, *content: Content) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", title, id=key), *content, aria_labelledby=key)


def badge(severity: Severity) -> Html:
    """A severity in words, with a sign and a colour that say the same."""
    sign = tag("span", SIGNS[severity], aria_hidden="true")
    return tag("span", sign, f" {severity.value}", class_=f"badge {CLASSES[severity]}")


def tile(value: Content, label: str) -> Html:
    """A figure that is to be seen first."""
    return tag("div", tag("b", value), tag("span", label), class_="tile")


def pairs(rows: Mapping[str, Content]) -> Html:
    """Names and what they stand for."""
    return tag(
        "dl",
        *(part for name, value in rows.items() for part in (tag("dt", name), tag("dd", value))),
    )


def code(text: str) -> Html:
    """A digest or a name that is compared letter by letter."""
    return tag("code", text)


def scrolled(table: Html) -> Html:
    """A table that may be wider than the screen."""
    return tag("div", table, class_="scroll", tabindex="0")
