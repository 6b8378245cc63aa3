"""What an edge states of itself: by its owner's choice, and never a count beside a limit of privacy."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from offsite.edge_client import facts
from offsite.edge_client.facts import (
    NAME,
    Fact,
    Facts,
    described,
    facts_of,
    parse_choice,
    settled_choice,
)
from offsite.secure.errors import ConfigError

BOTH = frozenset(Fact)


def test_only_the_version_is_told_unless_the_owner_says_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "free_bytes", lambda: 7 << 30)
    at_first = settled_choice(tmp_path, None, is_private=False)
    assert facts_of(at_first, 500) == Facts(version("offsite"))
    message = facts_of(at_first, 500).to_message()
    assert not message.HasField("examples") and not message.HasField("free_memory_bytes")
    assert facts_of(BOTH, 500) == Facts(version("offsite"), 7 << 30, 500)
    assert facts_of(BOTH, 0).to_message().HasField("examples")  # none is a count, too


def test_the_choice_is_kept_until_it_is_changed(tmp_path: Path) -> None:
    assert settled_choice(tmp_path, "memory,examples", is_private=False) == BOTH
    assert settled_choice(tmp_path, None, is_private=False) == BOTH
    assert json.loads((tmp_path / NAME).read_bytes()) == ["examples", "memory"]
    assert settled_choice(tmp_path, "nothing", is_private=False) == frozenset()
    assert settled_choice(tmp_path, None, is_private=False) == frozenset()


@pytest.mark.parametrize("given", ["examples", "memory,examples"])
def test_a_private_edge_states_no_count(given: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beside a limit of privacy, found examples"):
        settled_choice(tmp_path, given, is_private=True)
    assert settled_choice(tmp_path, "memory", is_private=True) == {Fact.MEMORY}
    # Nor one that had chosen to before its owner set a limit.
    settled_choice(tmp_path, given, is_private=False)
    with pytest.raises(ConfigError, match="--tell nothing"):
        settled_choice(tmp_path, None, is_private=True)


@pytest.mark.parametrize("text", ["", "rows", "memory, examples", "nothing,memory"])
def test_an_unknown_word_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected nothing, or memory and examples"):
        parse_choice(text)


@pytest.mark.parametrize("data", [b"", b"{", b'["rows"]', b"1"])
def test_a_damaged_choice_is_never_taken_for_one(data: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(ConfigError, match="damaged; give --tell again"):
        settled_choice(tmp_path, None, is_private=False)


def test_the_owner_reads_what_is_told() -> None:
    assert "nothing of memory or rows" in described(frozenset())
    assert described(BOTH).endswith("how many rows there are and how much memory is free")
