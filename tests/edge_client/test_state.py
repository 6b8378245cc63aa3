"""The edge's state folder: what it keeps, for whom, and that it says when it is damaged."""

import stat
from pathlib import Path

import pytest

from offsite.edge_client.state import EdgeState, Membership
from offsite.secure import directory
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.directory import Directory
from offsite.secure.errors import ConfigError, MachineError, SignatureError, StateLockedError
from offsite.secure.identity import IdentityKey

NOW = 1_800_000_000.0
PINNED = IdentityKey.from_seed(b"d" * 32)
MEMBERSHIP = Membership("a", "127.0.0.1:1", b"t" * 16, PINNED.public)


def enrolled(root: Path) -> EdgeState:
    state = EdgeState.open(root)
    state.identity_key()
    signed = directory.sign_directory(Directory(), PINNED)
    state.save_enrolment(MEMBERSHIP, b"tls", b"ca", signed)
    return state


def test_a_second_process_in_the_folder_is_refused(tmp_path: Path) -> None:
    with EdgeState.open(tmp_path / "edge") as state:
        with pytest.raises(StateLockedError, match="another process uses"):
            EdgeState.open(state.root)
        EdgeState.open(state.root, exclusive=False).close()
    EdgeState.open(tmp_path / "edge").close()


def test_looking_into_a_folder_makes_nothing_in_it(tmp_path: Path) -> None:
    state = EdgeState.open(tmp_path, exclusive=False)
    with pytest.raises(ConfigError, match="has not joined"):
        state.membership()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with EdgeState.open(tmp_path / "edge") as state:
        (state.keys / "tls.pem").mkdir()
        with pytest.raises(MachineError, match=r"cannot read .*tls\.pem"):
            state.tls_pem()


def test_the_identity_key_is_made_once(tmp_path: Path) -> None:
    with EdgeState.open(tmp_path / "edge") as state:
        made = state.identity_key()
    with EdgeState.open(tmp_path / "edge") as state:
        assert state.identity_key() == made


def test_an_enrolment_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    with enrolled(tmp_path / "edge") as state:
        assert state.is_enrolled
        assert state.membership() == MEMBERSHIP
        assert (state.tls_pem(), state.ca_pem()) == (b"tls", b"ca")
        assert state.directory(NOW) == Directory()


def test_every_file_is_the_owners_alone(tmp_path: Path) -> None:
    with enrolled(tmp_path / "edge") as state:
        files = [path for path in state.root.rglob("*") if path.is_file()]
        assert len(files) == 6
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert stat.S_IMODE(state.keys.stat().st_mode) == 0o700


def test_an_edge_that_has_not_joined_says_so(tmp_path: Path) -> None:
    with EdgeState.open(tmp_path / "edge") as state:
        assert not state.is_enrolled
        for read in (state.membership, state.tls_pem, state.ca_pem):
            with pytest.raises(ConfigError, match="edge-client join"):
                read()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"client_id": "../x"}', b"\xff"])
def test_a_damaged_membership_says_so(tmp_path: Path, damage: bytes) -> None:
    with enrolled(tmp_path / "edge") as state:
        (state.root / "edge.json").write_bytes(damage)
        with pytest.raises(ConfigError, match="damaged"):
            state.membership()


def test_a_damaged_identity_key_is_not_replaced(tmp_path: Path) -> None:
    with enrolled(tmp_path / "edge") as state:
        (state.keys / "identity.seed").write_bytes(b"short")
        with pytest.raises(ConfigError, match="damaged"):
            state.identity_key()
        assert (state.keys / "identity.seed").read_bytes() == b"short"


def test_a_stored_directory_is_checked_against_the_pinned_key(tmp_path: Path) -> None:
    with enrolled(tmp_path / "edge") as state:
        other = IdentityKey.from_seed(b"o" * 32)
        state.save_directory(directory.sign_directory(Directory(), other))
        with pytest.raises(SignatureError):
            state.directory(NOW)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "edge"
    EdgeState.open(root).close()
    for folder in (root, root / "keys"):
        folder.chmod(0o775)
        with pytest.raises(ConfigError, match=r"nobody else can write, found mode 775.*chmod 700"):
            EdgeState.open(root)
        folder.chmod(0o755)
        EdgeState.open(root).close()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_was_there_becomes_the_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    with EdgeState.open(tmp_path / "there") as state:
        assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else can write"):
        EdgeState.open(tmp_path / "open")


def test_a_policy_stays_until_it_is_changed(tmp_path: Path) -> None:
    with EdgeState.open(tmp_path / "state") as state:
        assert state.policy() == PolicyFloor()
        state.save_policy(PolicyFloor(least_cohort=7, most_norm_bound=0.5))
    with EdgeState.open(tmp_path / "state") as again:
        assert again.policy() == PolicyFloor(least_cohort=7, most_norm_bound=0.5)
        (again.root / "policy.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"policy\.json is damaged"):
            again.policy()
