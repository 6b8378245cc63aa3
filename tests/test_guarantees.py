"""Every test that `docs/guarantees.md` names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_claim_names_tests_that_are_there() -> None:
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    assert len(named) > 30 and named <= there, sorted(named - there)
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
