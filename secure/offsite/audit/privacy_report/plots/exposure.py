"""Exposure of every planted secret, against what chance gives."""

from offsite.audit.attack.exposure import CHANCE_BITS, Exposure
from offsite.audit.privacy_report.markup import Content, Html, tag
from offsite.audit.privacy_report.plots.figure import figure
from offsite.audit.privacy_report.plots.frame import BOTTOM, TOP, Axis, Frame

_HEIGHT = 150.0
_LANES = 5
_LEFT = 18.0


def exposure_plot(found: Exposure, allowed_bits: float) -> Html:
    """One dot for each secret, the mean as a line with its interval."""
    frame = Frame(
        Axis.over("exposure in bits", 0, max(found.most_bits, allowed_bits)),
        Axis("", 0, 1, ()),
        height=_HEIGHT,
        left=_LEFT,
    )
    bottom, bounds = _HEIGHT - BOTTOM, found.mean_bits
    x, low, high = (frame.at_x(value) for value in (bounds.value, bounds.low, bounds.high))
    marks: list[Content] = [
        tag("rect", x=low, y=TOP, width=max(high - low, 1), height=bottom - TOP, class_="band"),
        tag("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="line accent"),
        *(
            tag("line", x1=frame.at_x(at), x2=frame.at_x(at), y1=TOP, y2=bottom, class_=style)
            for at, style in ((CHANCE_BITS, "line chance"), (allowed_bits, "line limit"))
        ),
    ]
    gap = (bottom - TOP) / (_LANES + 1)
    marks += [
        tag(
            "circle", cx=frame.at_x(bits), cy=TOP + gap * (1 + place % _LANES), r=4, class_="secret"
        )
        for place, bits in enumerate(found.bits)
    ]
    return figure(
        frame.svg(f"Exposure of {len(found.bits)} planted secrets in bits", *marks),
        f"A secret of k bits stands among the likeliest 2⁻ᵏ of its {found.candidates + 1} possible "
        f"values; more than {found.most_bits:.1f} bits cannot be measured with so many.",
        [
            ("secret", "a planted secret"),
            ("accent", "their mean, with its interval"),
            ("chance", f"chance, {CHANCE_BITS:.2f} bits"),
            ("limit", f"allowed, {allowed_bits:g} bits"),
        ],
        ["secret", "rank", "bits"],
        [
            [str(place), str(rank), f"{bits:.2f}"]
            for place, (rank, bits) in enumerate(zip(found.ranks, found.bits, strict=True), start=1)
        ],
    )
