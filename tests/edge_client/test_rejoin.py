"""When a joined folder takes a token: the same one, or a new one once its certificate has lapsed."""

import dataclasses
import ssl
from pathlib import Path

import pytest

from offsite.edge_client.enrol import _is_still_good, enrol
from offsite.edge_client.state import EdgeState, Membership
from offsite.secure import certificates, directory
from offsite.secure.directory import Directory
from offsite.secure.errors import ConfigError, IdentityError
from offsite.secure.identity import IdentityKey
from offsite.secure.token import JoinToken

NOW = 1_800_000_000.0
MUCH_LATER = NOW + 10 * 365 * 86_400
PINNED = IdentityKey.from_seed(b"d" * 32)
BOOTSTRAP = certificates.bootstrap_client(b"b" * 32, NOW)
CA_PEM = certificates.bootstrap_authority(b"b" * 32).cert_pem
CA_DER = ssl.PEM_cert_to_DER_cert(CA_PEM.decode())
TOKEN = JoinToken(b"t" * 16, b"s" * 32, b"b" * 32, CA_DER, PINNED.public.raw, "127.0.0.1:1")
MEMBERSHIP = Membership("a", "127.0.0.1:1", TOKEN.token_id, PINNED.public)


def good(root: Path, token: JoinToken, now_unix_s: float) -> bool:
    with EdgeState.open(root) as state:
        signed = directory.sign_directory(Directory(), PINNED)
        state.save_enrolment(MEMBERSHIP, BOOTSTRAP.key_pem + BOOTSTRAP.cert_pem, CA_PEM, signed)
        return _is_still_good(MEMBERSHIP, token, state, now_unix_s)


def test_the_same_token_serves_until_the_certificate_lapses(tmp_path: Path) -> None:
    assert good(tmp_path, TOKEN, NOW)
    with EdgeState.open(tmp_path) as state:
        assert enrol(TOKEN, state, lambda: NOW) == MEMBERSHIP
        with pytest.raises(IdentityError, match="invite it again"):
            enrol(TOKEN, state, lambda: MUCH_LATER)


def test_a_new_token_serves_only_after_it_lapsed_and_of_the_same_coordinator(
    tmp_path: Path,
) -> None:
    new = dataclasses.replace(TOKEN, token_id=b"n" * 16)
    with pytest.raises(ConfigError, match="already joined as 'a'"):
        good(tmp_path, new, NOW)
    assert not good(tmp_path, new, MUCH_LATER)
    other = IdentityKey.from_seed(b"o" * 32).public.raw
    with pytest.raises(ConfigError, match="already joined as 'a'"):
        good(tmp_path, dataclasses.replace(new, directory_key=other), MUCH_LATER)
