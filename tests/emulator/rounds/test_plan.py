"""A plan is exactly what the coordinator signed, in time, or it is refused."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.emulator.rounds.plan import (
    ComputeDtype,
    RoundPlan,
    TuningSettings,
    open_plan,
    plan_digest,
    sign_plan,
)
from offsite.secure import envelope as envelopes
from offsite.secure.errors import ConfigError, ExpiredError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey

KEY = IdentityKey.from_seed(b"c" * 32)


def _plan(**changes: object) -> RoundPlan:
    plan = RoundPlan(
        campaign_id=3,
        round=2,
        total_rounds=4,
        attempt=1,
        bundle_sha256="ab" * 32,
        adapter_sha256="cd" * 32,
        settings=TuningSettings(dtype=ComputeDtype.FLOAT32, local_epochs=0.3),
        deadline_unix_s=2_000.5,
        seed=2**60 + 1,
    )
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def _bytes(plan: RoundPlan, key: IdentityKey = KEY) -> bytes:
    return envelopes.to_bytes(sign_plan(plan, key))


def test_a_signed_plan_comes_back() -> None:
    signed = open_plan(_bytes(_plan()), KEY.public, now_unix_s=2_000.5)
    assert signed.plan == _plan()
    assert signed.digest == plan_digest(sign_plan(_plan(), KEY))


def test_whole_numbers_given_as_rates_travel_as_floats() -> None:
    plan = _plan(settings=TuningSettings(learning_rate=1, local_epochs=2), deadline_unix_s=2_000)
    assert RoundPlan.from_json(plan.to_json()) == plan


def test_a_plan_after_its_deadline_is_refused() -> None:
    with pytest.raises(ExpiredError, match="deadline passed 10 s ago"):
        open_plan(_bytes(_plan()), KEY.public, now_unix_s=2_010.5)


def test_a_plan_by_another_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        open_plan(_bytes(_plan(), IdentityKey.from_seed(b"x" * 32)), KEY.public, now_unix_s=0.0)


def test_something_else_that_the_coordinator_signed_is_refused() -> None:
    other = envelopes.sign("application/vnd.offsite.other", _plan().to_json(), KEY)
    with pytest.raises(SignatureError):
        open_plan(envelopes.to_bytes(other), KEY.public, now_unix_s=0.0)


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_is_refused(position: int, bit: int) -> None:
    data = bytearray(_bytes(_plan()))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(PeerError):
        open_plan(bytes(data), KEY.public, now_unix_s=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"round": 5}, "round: expected 1 to 4, found 5"),
        ({"round": True}, "round: expected int"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"adapter_sha256": "AB" * 32}, "adapter_sha256"),
        ({"deadline_unix_s": "soon"}, "deadline_unix_s"),
        ({"surprise": 1}, "unknown key"),
        ({"settings": []}, "settings"),
    ],
)
def test_a_plan_that_is_not_exact_names_the_key(change: dict[str, object], said: str) -> None:
    values = json.loads(_plan().to_json()) | change
    with pytest.raises(PeerError, match=said):
        RoundPlan.from_json(json.dumps(values).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected more than 0"),
        ({"dtype": "float16"}, "dtype: expected bfloat16 or float32"),
        ({"extra": 1}, "unknown key"),
        ({"batch_examples": 1.0}, "batch_examples: expected int"),
    ],
)
def test_settings_that_are_not_exact_name_the_key(change: dict[str, object], said: str) -> None:
    values = json.loads(_plan().to_json())
    values["settings"] |= change
    with pytest.raises(PeerError, match=said):
        RoundPlan.from_json(json.dumps(values).encode())


@pytest.mark.parametrize("missing", ["round", "settings", "seed"])
def test_a_missing_key_is_named(missing: str) -> None:
    values = json.loads(_plan().to_json())
    del values[missing]
    with pytest.raises(PeerError, match=missing):
        RoundPlan.from_json(json.dumps(values).encode())


@pytest.mark.parametrize("text", ["[]", "{", '{"round":1,"round":1}', '{"seed":NaN}', "[" * 9999])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PeerError, match="round plan"):
        RoundPlan.from_json(text.encode())


def test_settings_of_the_user_are_checked() -> None:
    with pytest.raises(ConfigError, match="validation_share"):
        TuningSettings(validation_share=float("nan"))
