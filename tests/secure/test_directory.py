"""The directory: strict reading, and what may follow what."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure import limits
from offsite.secure.directory import (
    PAYLOAD_TYPE,
    Directory,
    DirectoryEntry,
    Role,
    Status,
    check_successor,
    from_json,
    open_directory,
    sign_directory,
    to_json,
)
from offsite.secure.envelope import sign
from offsite.secure.errors import (
    ExpiredError,
    IdentityError,
    IntegrityError,
    PolicyError,
    SignatureError,
)
from offsite.secure.identity import IdentityKey


def key(number: int) -> IdentityKey:
    return IdentityKey.from_seed(number.to_bytes(32, "big"))


def entry(client_id: str, number: int, role: Role = Role.CLIENT) -> DirectoryEntry:
    return DirectoryEntry(client_id, key(number).public, role, Status.ACTIVE, 1_780_000_000.0)


BASE = (
    Directory(expires_unix_s=1_780_086_400.0)
    .with_entry(entry("coordinator", 1, Role.COORDINATOR))
    .with_entry(entry("edge-2", 2))
    .with_entry(entry("edge-1", 3))
)
REVOKED = BASE.with_revoked("edge-1", "lost laptop", 1_780_000_100.0)


def test_entries_are_found() -> None:
    assert BASE.version == 3
    assert [e.client_id for e in BASE.entries] == ["coordinator", "edge-1", "edge-2"]
    assert BASE.active("edge-1").identity_key == key(3).public
    assert BASE.coordinator().identity_key == key(1).public
    for unknown in ("edge-3", "coordinator", ""):
        with pytest.raises(IdentityError):
            BASE.active(unknown)


def test_a_revoked_client_is_not_active() -> None:
    assert REVOKED.version == 4
    with pytest.raises(IdentityError, match=r"revoked.*lost laptop"):
        REVOKED.active("edge-1")
    assert REVOKED.active("edge-2").client_id == "edge-2"
    for again in ("edge-1", "edge-3"):
        with pytest.raises(IdentityError):
            REVOKED.with_revoked(again, "", 0.0)


def test_there_is_one_active_coordinator() -> None:
    second = entry("coordinator-2", 9, Role.COORDINATOR)
    with pytest.raises(IdentityError, match="found 2"):
        BASE.with_entry(second).coordinator()
    replaced = BASE.with_revoked("coordinator", "rotated", 1.0)
    with pytest.raises(IdentityError, match="found 0"):
        replaced.coordinator()
    assert replaced.with_entry(second).coordinator() == second


def test_a_name_or_key_is_used_once_for_ever() -> None:
    with pytest.raises(IdentityError, match="new name"):
        REVOKED.with_entry(entry("edge-1", 8))
    with pytest.raises(IdentityError, match="one key twice"):
        REVOKED.with_entry(entry("edge-9", 3))


def test_round_trip(signer: IdentityKey, now_unix_s: float) -> None:
    for directory in (Directory(), BASE, REVOKED):
        assert from_json(to_json(directory)) == directory
        envelope = sign_directory(directory, signer)
        assert open_directory(envelope, signer.public, now_unix_s) == directory


def test_another_authority_is_refused(
    signer: IdentityKey, stranger: IdentityKey, now_unix_s: float
) -> None:
    with pytest.raises(SignatureError):
        open_directory(sign_directory(BASE, stranger), signer.public, now_unix_s)
    with pytest.raises(SignatureError):
        other = sign("application/vnd.offsite.manifest+json", to_json(BASE), signer)
        open_directory(other, signer.public, now_unix_s)


def test_an_expired_directory_is_refused(signer: IdentityKey) -> None:
    envelope = sign_directory(BASE, signer)
    assert BASE.expires_unix_s is not None
    latest = BASE.expires_unix_s + limits.CLOCK_SKEW_S
    open_directory(envelope, signer.public, latest)
    with pytest.raises(ExpiredError):
        open_directory(envelope, signer.public, latest + 1)
    lasting = dataclasses.replace(BASE, expires_unix_s=None)
    open_directory(sign_directory(lasting, signer), signer.public, 1e12)


def with_edge_1(**changes: object) -> Directory:
    changed = dataclasses.replace(BASE.active("edge-1"), **changes)  # type: ignore[arg-type]
    entries = tuple(changed if e.client_id == "edge-1" else e for e in BASE.entries)
    return dataclasses.replace(BASE, version=BASE.version + 1, entries=entries)


def test_what_may_follow_a_directory() -> None:
    check_successor(BASE, BASE)
    check_successor(Directory(), BASE)
    check_successor(BASE, REVOKED)
    check_successor(BASE, dataclasses.replace(REVOKED, version=99, expires_unix_s=None))
    check_successor(BASE, with_edge_1(tls_fingerprint=bytes(32)))
    check_successor(REVOKED, REVOKED.with_entry(entry("edge-4", 4)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (REVOKED, BASE, "newer than version 4"),
        (BASE, dataclasses.replace(REVOKED, version=3), "with other entries"),
        (
            BASE,
            dataclasses.replace(BASE, version=4, entries=BASE.entries[:2]),
            "'edge-2'.*it is gone",
        ),
        (BASE, with_edge_1(identity_key=key(7).public), "identity key changed"),
        (BASE, with_edge_1(role=Role.COORDINATOR), "role changed"),
        (REVOKED, dataclasses.replace(BASE, version=5), "revocation was changed"),
        (
            REVOKED,
            dataclasses.replace(BASE.with_revoked("edge-1", "other", 1.0), version=5),
            "revocation was changed",
        ),
    ],
    ids=["rollback", "second history", "vanished", "key", "role", "unrevoked", "rewritten"],
)
def test_what_may_not_follow_a_directory(old: Directory, new: Directory, says: str) -> None:
    with pytest.raises(IdentityError, match=says):
        check_successor(old, new)


actions = st.lists(
    st.tuples(st.sampled_from(["add", "revoke"]), st.integers(0, 7)), min_size=1, max_size=20
)


@given(actions=actions)
@settings(max_examples=60)
def test_every_history_is_append_only(actions: list[tuple[str, int]]) -> None:
    history = [BASE]
    for action, number in actions:
        try:
            if action == "add":
                history.append(history[-1].with_entry(entry(f"new-{number}", 100 + number)))
            else:
                history.append(history[-1].with_revoked(f"new-{number}", "test", 5.0))
        except IdentityError:
            continue
    for first, old in enumerate(history):
        for new in history[first:]:
            check_successor(old, new)
            if old != new:
                with pytest.raises(IdentityError):
                    check_successor(new, old)
    assert from_json(to_json(history[-1])) == history[-1]


def test_any_bit_change_in_a_directory_is_refused(signer: IdentityKey, now_unix_s: float) -> None:
    envelope = sign_directory(BASE, signer)
    for bit in range(0, 8 * len(envelope.payload), 3):
        changed = bytearray(envelope.payload)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            forged = dataclasses.replace(envelope, payload=bytes(changed))
            open_directory(forged, signer.public, now_unix_s)


def document() -> dict[str, object]:
    made = json.loads(to_json(REVOKED))
    assert isinstance(made, dict)
    return made


def encoded(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


HUGE = 10**400


@pytest.mark.parametrize("name", ["format", "version", "expires_unix_s", "entries"])
@pytest.mark.parametrize("value", [True, "1", -1, 1.5, [], [1], {}, HUGE, float("nan")], ids=repr)
def test_wrong_values_are_refused(name: str, value: object) -> None:
    if name == "expires_unix_s" and value in (-1, 1.5, HUGE):
        return  # odd, but a time
    if name == "entries" and value == []:
        return  # a directory without entries
    with pytest.raises(IntegrityError):
        from_json(encoded(document() | {name: value}))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(DirectoryEntry)])
@pytest.mark.parametrize(
    "value", [True, 5, "x y", "ABCDEF", "\u001b[2J", [], {}, HUGE, float("inf")], ids=repr
)
def test_wrong_values_in_an_entry_are_refused(name: str, value: object) -> None:
    if (name, value) in (("since_unix_s", 5), ("reason", "x y"), ("reason", "ABCDEF")):
        return
    made = document()
    entries = made["entries"]
    assert isinstance(entries, list)
    entries[1] = entries[1] | {name: value}
    with pytest.raises(IntegrityError):
        from_json(encoded(made))


def test_other_documents_are_refused() -> None:
    good = to_json(REVOKED)
    made = document()
    entries = made["entries"]
    assert isinstance(entries, list)
    for bad in (
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " + good,
        good + b"\n",
        json.dumps(made).encode(),
        encoded(made | {"extra": 1}),
        encoded({k: v for k, v in made.items() if k != "format"}),
        encoded(made | {"entries": entries[::-1]}),
        encoded(made | {"entries": [*entries, entries[-1]]}),
        good.replace(b'"version":4', b'"version":3,"version":4'),
        bytes(limits.MANIFEST_BYTES + 1),
    ):
        with pytest.raises(IntegrityError):
            from_json(bad)


@given(data=st.binary(max_size=100))
@settings(max_examples=200)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        from_json(data)


def test_a_directory_too_large_for_a_message_is_refused(signer: IdentityKey) -> None:
    many = tuple(
        dataclasses.replace(entry(f"edge-{number:05}", 1000 + number), reason="x" * 100)
        for number in range(limits.CLIENTS)
    )
    with pytest.raises(PolicyError, match=f"{limits.CLIENTS} entries"):
        sign_directory(Directory(1, many), signer)
    with pytest.raises(PolicyError):
        Directory(1, many[:1] * (limits.CLIENTS + 1))
    assert PAYLOAD_TYPE.endswith("directory+json")
