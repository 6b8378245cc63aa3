"""What the owner asks of the attack is kept, checked before anything starts, and never half read."""

import secrets
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.edge_client.attack.edges import random_rows

from offsite.edge_client.attack.choice import AttackChoice, AttackWish, read_choice, save_choice
from offsite.edge_client.attack.draws import Draws, data_name
from offsite.edge_client.attack.opening import open_attack
from offsite.edge_client.inbox import Inbox
from offsite.edge_client.secure_folder import SecureFolder, taken_of
from offsite.edge_client.state import EdgeState
from offsite.secure.errors import ConfigError


def test_a_choice_is_kept_and_changed_one_by_one(tmp_path: Path) -> None:
    assert read_choice(tmp_path) is None and AttackWish().settled(None) is None
    assert AttackWish(False).settled(None) is None
    first = AttackWish(True, planted_secrets=5).settled(None)
    assert first == AttackChoice(planted_secrets=5)
    save_choice(tmp_path / "attack", first)
    assert (tmp_path / "attack" / "choice.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "attack").stat().st_mode & 0o777 == 0o700
    kept = read_choice(tmp_path / "attack")
    assert kept == first and AttackWish().settled(kept) == first
    assert AttackWish(allowed_advantage=0.2).settled(kept) == replace(first, allowed_advantage=0.2)
    assert AttackWish(False).settled(kept) == replace(first, is_on=False)


def test_the_flags_of_the_command_line_are_three_answers() -> None:
    more = (0.2, None, 3)
    assert AttackWish.of(True, False, *more) == AttackWish(True, *more)
    assert AttackWish.of(False, True, *more) == AttackWish(False, *more)
    assert AttackWish.of(False, False, *more) == AttackWish(None, *more)
    with pytest.raises(ConfigError, match="found both"):
        AttackWish.of(True, True, *more)


@pytest.mark.parametrize(
    ("wish", "match"),
    [
        (AttackWish(None, 0.2), "expected --attack beside"),
        (AttackWish(False, None, 0.2), "expected --attack beside"),
        (AttackWish(None, None, None, 0), "expected --attack beside"),
        (AttackWish(True, 1.0), "--attack-held-out: expected more than 0"),
        (AttackWish(True, float("nan")), "--attack-held-out: expected more than 0"),
        (AttackWish(True, None, 1.5), "--allowed-advantage: expected 0 to 1"),
        (AttackWish(True, None, None, 101), "--planted-secrets: expected 0 to 100"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wish: AttackWish, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        wish.settled(None)


@pytest.mark.parametrize("text", ["", "{", '{"is_on": true, "more": 1}', "[]", "3"])
def test_a_damaged_choice_is_never_taken_for_no_attack(tmp_path: Path, text: str) -> None:
    (tmp_path / "choice.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_choice(tmp_path)


def test_too_few_rows_are_found_before_anything_starts(tmp_path: Path) -> None:
    said: list[str] = []
    data, state = random_rows(tmp_path, 160), EdgeState(tmp_path, None)
    with pytest.raises(ConfigError, match="of which 16 would be"):
        open_attack(state, AttackChoice(), data, said.append)
    with pytest.raises(ConfigError, match="of which 150 would be"):
        open_attack(state, AttackChoice(True, 0.94), data, said.append)
    assert said == [] and read_choice(tmp_path / "attack") is None
    persons = replace(data, persons=("a", "b") * 80)
    with pytest.raises(ConfigError, match="found 2 rows"):
        open_attack(state, AttackChoice(True, 0.5), persons, said.append)
    open_attack(state, AttackChoice(True, 0.5, 0.2, 3), data, said.append)
    assert "50 %" in said[0] and "above 0.2" in said[0] and "3 secrets" in said[0]
    open_attack(state, AttackChoice(False), data, said.append)
    assert said[1] == "attack: none; updates leave as they are"
    open_attack(EdgeState(tmp_path / "none", None), None, data, said.append)
    assert len(said) == 2 and not (tmp_path / "none").exists()


def test_an_update_that_did_not_stand_the_attack_is_erased(tmp_path: Path) -> None:
    """Encoded, or answered and not sent, before the attack was asked for as it is now."""
    data, said = random_rows(tmp_path / "rows", 160), list[str]()
    for choice, is_kept in (
        (AttackChoice(True, 0.5), False),
        (AttackChoice(True, 0.5), True),  # as it was
        (AttackChoice(True, 0.5, 0.05), False),
        (AttackChoice(False), True),
        (AttackChoice(True, 0.5), False),
    ):
        with EdgeState.open(tmp_path / "edge") as state:
            words = np.ones(4, np.uint32)
            terms = secrets.token_bytes(32)
            turn = (1, 1, time.monotonic_ns())
            folder = SecureFolder.begin(state.sums, turn, terms, b"terms", bytes(32), words)
            Inbox(state.rounds).of("a1").mkdir(parents=True, exist_ok=True)
            Inbox(state.rounds).write_reply("a1", b"reply")
            open_attack(state, choice, data, said.append)
            assert folder.is_there == bool(Inbox(state.rounds).unsent()) == is_kept
            assert taken_of(state.sums) is not None  # the sum is given no second update
    assert sum("is erased" in text for text in said) == 3


def test_other_data_or_another_order_have_another_name(tmp_path: Path) -> None:
    data = random_rows(tmp_path, 40)
    persons = tuple(str(i) for i in range(40))
    others = (
        data,
        replace(data, rows=data.rows[::-1]),
        replace(data, rows=data.rows[1:]),
        replace(data, persons=persons),
        replace(data, persons=persons[::-1]),
    )
    assert len({data_name(one) for one in others}) == len(others)
    assert data_name(random_rows(tmp_path / "again", 40)) == data_name(data)


def test_a_draw_is_of_the_operating_systems_entropy(tmp_path: Path) -> None:
    choice = AttackChoice(True, 0.5)
    draws = [Draws(tmp_path / str(i)).make("c-1", "d", 100, choice) for i in range(2)]
    assert draws[0].places != draws[1].places and len(draws[0].places) == 50
    assert Draws(tmp_path / "0").known("c-1", "d", 100) == draws[0]
    assert Draws(tmp_path / "0").has_campaign("c-1")
    assert not Draws(tmp_path / "0").has_campaign("c-2")
    assert len({draws[0].entropy_of("a"), draws[0].entropy_of("b"), draws[0].seed}) == 3
