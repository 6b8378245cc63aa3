"""The matrix of docs/privacy.md: which backend is exact on which adapter of which family.

`python -m tests.emulator.privacy.backends.matrix` writes it; `test_matrix.py` fails when it is
stale. A cell says what happens without gradient checkpointing, with the reentrant and with the
non-reentrant kind: exact, or refused and why. A backend that gives a figure which is not exact has
no cell: it is an error here.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.emulator.conftest import FAMILIES
from tests.emulator.privacy.backends.cells import (
    BACKENDS,
    Checkpointing,
    Kind,
    Subject,
    largest_difference,
    make_subject,
)

from offsite.secure.errors import ConfigError

DOCUMENT = Path(__file__).parents[4] / "docs" / "privacy.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
LARGEST_DIFFERENCE = 1e-6
"""At unit scale, against gradients of single units in fp64."""

EXACT = "exact"
_CELL = re.compile(r"(exact|refused)( \d+)?( / (exact|refused)( \d+)?){0,2}")


@dataclass(frozen=True)
class Row:
    """A family with an adapter: for every backend what the three kinds of checkpointing give."""

    family: str
    kind: Kind
    cells: tuple[tuple[str, ...], ...]
    """`EXACT` or the reason of a refusal."""


def measure(family: str, kind: Kind) -> Row:
    """Raises AssertionError when a backend gives a wrong figure."""
    subject = make_subject(family, kind)
    cells = [
        tuple(_verdict(backend, subject, how) for how in Checkpointing) for backend in BACKENDS
    ]
    return Row(family, kind, tuple(cells))


def _verdict(backend: str, subject: Subject, how: Checkpointing) -> str:
    what = f"{subject.model.config.model_type}, {backend}, checkpointing {how}"
    try:
        difference = largest_difference(BACKENDS[backend], subject, how)
    except ConfigError as error:
        return _reason(str(error))
    assert difference <= LARGEST_DIFFERENCE, f"{what}: off by {difference:.1e}"
    return EXACT


def _reason(message: str) -> str:
    """A message without the name of the first parameter that it fell over."""
    return re.sub(r" (bottom|top|middle)\.[\w.]+:", "", message)


def render(rows: Sequence[Row]) -> str:
    """The tables, one for each adapter, and the reasons under them."""
    reasons = list(dict.fromkeys(c for row in rows for three in row.cells for c in three))
    if EXACT in reasons:
        reasons.remove(EXACT)
    lines: list[str] = []
    for kind in Kind:
        lines += ["", f"**{kind}**", "", *_table([r for r in rows if r.kind is kind], reasons)]
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row], reasons: Sequence[str]) -> Iterator[str]:
    yield f"| family | {' | '.join(BACKENDS)} |"
    yield f"|---{'|---' * len(BACKENDS)}|"
    for row in rows:
        yield f"| {row.family} | {' | '.join(_cell(three, reasons) for three in row.cells)} |"


def _cell(three: tuple[str, ...], reasons: Sequence[str]) -> str:
    words = [EXACT if one == EXACT else f"refused {reasons.index(one) + 1}" for one in three]
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def is_cell(text: str) -> bool:
    """Whether a text is what `render` may put into a cell."""
    return _CELL.fullmatch(text) is not None


def parts(document: str) -> tuple[str, str, str]:
    """Before, inside and after the markers."""
    before, _, rest = document.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


def main() -> None:
    """Measures every cell and writes the tables."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = [measure(family, kind) for kind in Kind for family in FAMILIES]
    before, _, after = parts(DOCUMENT.read_text(encoding="utf-8"))
    DOCUMENT.write_text(f"{before}{BEGIN}\n{render(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
