"""Axes of a plot: from data to the drawing and its labels.

Drawn for 420 units of width, so that text stays legible on a narrow screen. Colours are classes of
the page's style, which knows light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offsite.audit.privacy_report.markup import Content, Html, joined, tag

WIDTH, HEIGHT = 420.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 68.0, 24.0, 14.0, 46.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values, where they are labelled, and how."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str] = "{:g}".format

    @classmethod
    def over(
        cls, label: str, low: float, high: float, text: Callable[[float], str] = "{:g}".format
    ) -> "Axis":
        """An axis with ticks at round values; a single value gets some room."""
        if not high > low:
            high = low + 1.0
        step = _round_step((high - low) / 5)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
        return cls(label, ticks[0], ticks[-1], ticks, text)


def _round_step(about: float) -> float:
    power = 10.0 ** math.floor(math.log10(about))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= about * 0.999)


@dataclass(frozen=True, slots=True)
class Frame:
    """Two axes and the area between them."""

    x: Axis
    y: Axis
    height: float = HEIGHT
    left: float = LEFT

    def at_x(self, value: float) -> float:
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return self.left + min(max(share, 0.0), 1.0) * (WIDTH - self.left - RIGHT)

    def at_y(self, value: float) -> float:
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return self.height - BOTTOM - min(max(share, 0.0), 1.0) * (self.height - BOTTOM - TOP)

    def path(self, points: Sequence[tuple[float, float]], class_: str) -> Html:
        """A line through points."""
        steps = (f"{self.at_x(x):.1f} {self.at_y(y):.1f}" for x, y in points)
        return tag("path", d="M" + "L".join(steps), class_=class_)

    def text(self, x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Html:
        """Words at a place of the drawing, not of the data."""
        return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)

    def svg(self, title: str, *content: Content) -> Html:
        """The drawing; ``title`` says to those who cannot see it what it shows."""
        return tag(
            "svg",
            tag("title", title),
            self._grid(),
            *content,
            viewBox=f"0 0 {WIDTH:g} {self.height:g}",
            role="img",
            aria_label=title,
        )

    def _grid(self) -> Html:
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        parts: list[Content] = []
        for tick in self.x.ticks:
            x = self.at_x(tick)
            parts.append(tag("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
            parts.append(self.text(x, bottom + 17, self.x.text(tick), "tick", "middle"))
        for tick in self.y.ticks:
            y = self.at_y(tick)
            parts.append(tag("line", x1=self.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(self.text(self.left - 7, y + 4, self.y.text(tick), "tick", "end"))
        middle = (self.left + right) / 2
        parts.append(self.text(middle, self.height - 8, self.x.label, "label", "middle"))
        if self.y.label:
            y = (TOP + bottom) / 2
            turned = tag(
                "text",
                self.y.label,
                x=14,
                y=y,
                class_="label",
                text_anchor="middle",
                transform=f"rotate(-90 14 {y:.1f})",
            )
            parts.append(turned)
        return joined(*parts)


def share_axis(label: str) -> Axis:
    """From 0 to 100 %."""
    return Axis(label, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), lambda share: f"{100 * share:.0f} %")
