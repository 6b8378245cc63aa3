"""Fixed parties for the tests of the secure core. Every seed is a constant; nothing is drawn."""

import pytest

from offsite.secure.certificates import Authority, create_authority
from offsite.secure.identity import IdentityKey
from offsite.secure.token import JoinToken


@pytest.fixture(scope="session")
def now_unix_s() -> float:
    return 1_780_000_000.0


@pytest.fixture(scope="session")
def signer() -> IdentityKey:
    return IdentityKey.from_seed(bytes(range(32)))


@pytest.fixture(scope="session")
def stranger() -> IdentityKey:
    return IdentityKey.from_seed(bytes(range(32, 64)))


@pytest.fixture(scope="session")
def authority(now_unix_s: float) -> Authority:
    return create_authority(b"\x01" * 32, b"\x11" * 16, now_unix_s)


@pytest.fixture(scope="session")
def token(authority: Authority, signer: IdentityKey) -> JoinToken:
    return JoinToken(
        token_id=b"\x21" * 16,
        secret=b"\x22" * 32,
        bootstrap_seed=b"\x23" * 32,
        ca_cert_der=authority.cert_der,
        directory_key=signer.public.raw,
        address="coordinator.example:8443",
    )
