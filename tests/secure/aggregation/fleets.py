"""Fleets for the tests of secure aggregation: real members and a real coordinator, in memory."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from offsite.secure.aggregation.fixed_point import FixedPoint, encode
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.member import Member, Self
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.aggregation.runner import Fleet, Phase
from offsite.secure.errors import IdentityError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

COORDINATOR = IdentityKey.from_seed(hashlib.sha256(b"coordinator").digest())
POLICY = PolicyFloor(least_cohort=2)


def config(members: int, values: int = 16, **changes: object) -> RoundConfig:
    """Terms that `members` clients can meet."""
    terms = RoundConfig(
        project="test",
        campaign_id="1",
        round_id=bytes(16),
        attempt=0,
        cohort=0,
        directory_version=1,
        directory_sha256=bytes(32),
        binding=bytes(32),
        schema_sha256=bytes(32),
        values=values,
        fixed_point=FixedPoint.for_cohort(members, 1.0),
        full_weight=100,
        generator=Generator.CHACHA20,
        least_members=2,
        most_members=members,
        noise_sigma=0.0,
        deadlines_unix_s=(10.0, 20.0, 30.0, 40.0, 50.0),
    )
    return replace(terms, **changes)  # type: ignore[arg-type]


def name_of(index: int) -> str:
    return f"edge-{index:03d}"


@cache
def identity_of(name: str) -> IdentityKey:
    return IdentityKey.from_seed(hashlib.sha256(name.encode()).digest())


def key_of(name: str) -> IdentityPublicKey:
    """The directory of the tests: everybody whose name begins with `edge-`."""
    if not name.startswith("edge-"):
        raise IdentityError(f"{name} is not in the directory")
    return identity_of(name).public


def member(name: str, terms: RoundConfig, entropy: bytes | None = None) -> Member:
    entropy = entropy or hashlib.sha256(b"entropy" + name.encode()).digest()
    me = Self(name, identity_of(name))
    return Member(me, terms, COORDINATOR.public, key_of, POLICY, entropy)


def gathering(terms: RoundConfig) -> Gathering:
    return Gathering(terms, COORDINATOR, key_of)


def updates(members: int, values: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return {name_of(i): generator.normal(0, 0.2, values).astype(np.float32) for i in range(members)}


def fleet(
    members: int,
    values: int = 16,
    drops: Mapping[str, Phase] | None = None,
    terms: RoundConfig | None = None,
) -> tuple[Fleet, dict[str, NDArray[np.uint32]]]:
    """A fleet, and what every member puts in, encoded."""
    terms = terms or config(members, values)
    inputs = {
        name: encode(update, 1.0, terms.fixed_point)
        for name, update in updates(members, values).items()
    }
    parties = {name: member(name, terms) for name in inputs}
    return Fleet(gathering(terms), parties, inputs, drops or {}), inputs


def dropouts(members: int) -> int:
    """How many may vanish: ⌊0.3 n⌋."""
    return math.floor(0.3 * members)
