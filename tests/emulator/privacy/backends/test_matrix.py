"""Every backend is exact on every adapter of every family, or refuses; docs/privacy.md says so."""

from functools import cache

import pytest
from tests.emulator.conftest import FAMILIES
from tests.emulator.privacy.backends import matrix
from tests.emulator.privacy.backends.cells import BACKENDS, Kind

measure = cache(matrix.measure)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
def test_no_cell_is_silently_wrong(family: str, kind: Kind) -> None:
    row = measure(family, kind)  # raises when one is
    of = dict(zip(BACKENDS, row.cells, strict=True))
    assert set(of["engine"]) == set(of["one_by_one"]) == {matrix.EXACT}


def test_the_matrix_in_the_document_is_what_is_measured() -> None:
    rows = [measure(family, kind) for kind in Kind for family in FAMILIES]
    _, inside, _ = matrix.parts(matrix.DOCUMENT.read_text(encoding="utf-8"))
    assert inside.strip() == matrix.render(rows).strip(), (
        "docs/privacy.md is stale: run python -m tests.emulator.privacy.backends.matrix"
    )


def test_no_cell_of_the_document_is_unknown() -> None:
    _, inside, _ = matrix.parts(matrix.DOCUMENT.read_text(encoding="utf-8"))
    rows = [line.strip("| ").split(" | ") for line in inside.splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[0] != "family"]
    assert len(rows) == len(Kind) * len(FAMILIES)
    assert all(matrix.is_cell(cell) for row in rows for cell in row[1:])
    assert all(len(row) == 1 + len(BACKENDS) for row in rows)


def test_a_wrong_figure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure itself, by a backend that clips at twice the norm."""
    from offsite.emulator.privacy.backends.one_by_one import OneByOne

    honest = OneByOne.clipped_sum_into
    monkeypatch.setattr(
        OneByOne,
        "clipped_sum_into",
        lambda self, b, u, clip, total: honest(self, b, u, 2 * clip, total),
    )
    with pytest.raises(AssertionError, match="off by"):
        matrix.measure("llama", Kind.LORA)
