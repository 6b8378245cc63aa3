"""Client ids, their URIs and their node ids."""

import hashlib

import pytest

from offsite.secure import names
from offsite.secure.errors import IdentityError


@pytest.mark.parametrize("name", ["a", "0", "edge-1", "x" * 64, "a-"])
def test_good_names(name: str) -> None:
    assert names.check_client_id(name) == name
    assert names.client_id_from_uri(names.client_uri(name)) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a b", "a/b", "..", "a\n", "ä", "x" * 65, "a_b", "a.b", "a\x00"]
)
def test_bad_names_are_refused(name: str) -> None:
    assert not names.is_client_id(name)
    with pytest.raises(IdentityError):
        names.client_uri(name)


@pytest.mark.parametrize(
    "uri",
    [
        "edge-1",
        names.COORDINATOR_URI,
        names.BOOTSTRAP_URI,
        "spiffe://offsite/client/",
        "spiffe://offsite/client/a/b",
        "spiffe://other/client/a",
        "xspiffe://offsite/client/a",
    ],
)
def test_other_uris_name_no_client(uri: str) -> None:
    assert names.client_id_from_uri(uri) is None


def test_node_id_is_63_bits_of_the_hash() -> None:
    digest = hashlib.sha256(b"edge-1").digest()
    assert names.node_id("edge-1") == int.from_bytes(digest[:8], "big") % 2**63


def test_node_id_is_never_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def __init__(self, data: bytes) -> None:
            del data

        def digest(self) -> bytes:
            return b"\x80" + bytes(31)

    monkeypatch.setattr(hashlib, "sha256", Zeros)
    assert names.node_id("edge-1") == 2
