"""The corpus: what a valid round says is taken, what once broke a handler breaks none any more.

Needs no fuzzer; `test_fuzzing.py` is where new inputs are sought.
"""

from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_corpus_breaks_no_handler(path: Path) -> None:
    is_taken = TARGETS[path.parent.name](path.read_bytes())
    assert is_taken or not path.name.startswith("valid")


def test_every_handler_has_valid_inputs() -> None:
    seeded = {path.parent.name for path in FILES if path.name.startswith("valid")}
    assert seeded == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_changed_byte_of_a_valid_input_is_survived(name: str) -> None:
    """A small fuzzer of our own, where there is no other: one byte in every stretch, changed."""
    for path in sorted((CORPUS / name).glob("valid*")):
        data = path.read_bytes()
        for place in range(1, len(data), max(1, len(data) // 40)):
            changed = bytearray(data)
            changed[place] ^= 0x81
            TARGETS[name](bytes(changed))
        for size in range(0, len(data), max(1, len(data) // 10)):
            TARGETS[name](data[:size])
