"""Joining: what a token is good for, once, and everything it is not good for."""

import dataclasses
import stat
import threading
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from offsite.coordinator.authority import Authority, Claim, Enrolment
from offsite.coordinator.store import Store
from offsite.edge_client.channel import open_bootstrap_channel, open_channel, translated
from offsite.edge_client.enrol import enrol, refresh_directory, renew_if_due
from offsite.edge_client.state import EdgeState
from offsite.secure import certificates, directory, limits, token
from offsite.secure.directory import Directory
from offsite.secure.errors import (
    ConfigError,
    ExpiredError,
    IdentityError,
    SignatureError,
    TokenError,
    TransportError,
)
from offsite.secure.identity import IdentityKey
from offsite.secure.token import JoinToken
from offsite.v1.enrolment_pb2 import ChallengeRequest, EnrolRequest, EnrolResponse
from offsite.v1.enrolment_pb2_grpc import EnrolmentServiceStub

Join = Callable[..., EdgeState]
Edge = Callable[[str], EdgeState]

DAY_S = 24 * 3600
SERIAL = b"s" * 16
SEED = b"e" * 32


def claim_for(
    join_token: JoinToken,
    nonce: bytes,
    *,
    identity: IdentityKey | None = None,
    csr_der: bytes | None = None,
    **changed: bytes,
) -> Claim:
    """A claim that is right but for what a test changes after the proofs were made."""
    identity = identity or IdentityKey.from_seed(b"i" * 32)
    if csr_der is None:
        csr_der = certificates.make_csr(certificates.tls_key_from_seed(b"t" * 32))
    transcript = token.transcript(
        token_id=join_token.token_id,
        nonce=nonce,
        csr_der=csr_der,
        identity_key=changed.get("identity_key", identity.public.raw),
        ca_cert_der=join_token.ca_cert_der,
    )
    right = Claim(
        token_id=join_token.token_id,
        nonce=nonce,
        csr_der=csr_der,
        identity_key=identity.public.raw,
        identity_proof=identity.sign(transcript),
        token_proof=token.token_proof(token.proof_key(join_token.secret), transcript),
    )
    return dataclasses.replace(right, **changed)


def send(join_token: JoinToken, make_claim: Callable[[bytes], Claim]) -> EnrolResponse:
    """Challenge and Enrol over the wire with whatever claim the test makes."""
    with open_bootstrap_channel(join_token, time.time()) as channel, translated():
        stub = EnrolmentServiceStub(channel)
        challenge = stub.Challenge(ChallengeRequest(token_id=join_token.token_id), timeout=10)
        claim = make_claim(challenge.nonce)
        return stub.Enrol(EnrolRequest(**dataclasses.asdict(claim)), timeout=10)


def nobody_joined(coordinator) -> bool:
    opened = coordinator.authority.directory()
    names = [entry.client_id for entry in opened.entries]
    return names == ["coordinator"] and not coordinator.store.clients.all()


def test_a_token_makes_a_client(coordinator, edge: Edge) -> None:
    state = edge("hospital-1")
    membership = enrol(coordinator.invite("hospital-1"), state)

    assert membership.client_id == "hospital-1"
    row = coordinator.store.clients.get("hospital-1")
    assert row is not None and row.identity_key == state.identity_key().public.raw
    opened = state.directory(coordinator.clock())
    assert opened.active("hospital-1").identity_key == state.identity_key().public
    assert opened.coordinator().identity_key == coordinator.keys.coordinator.public
    with open_channel(state) as channel:
        assert refresh_directory(channel, state) == opened


def test_keys_and_membership_are_readable_by_the_owner_alone(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    secret_files = [
        *state.keys.iterdir(),
        *coordinator.state.keys.iterdir(),
        state.root / "edge.json",
        coordinator.state.database,
    ]
    assert len(secret_files) > 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret_files} == {0o600}
    folders = (state.keys, coordinator.state.keys)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_an_expired_token_is_refused(coordinator, edge: Edge) -> None:
    join_token = coordinator.invite("a")
    coordinator.clock.offset_s = limits.INVITE_TTL_S + 1
    with pytest.raises(ExpiredError, match="expired; ask for a new one"):
        enrol(join_token, edge("a"))
    assert nobody_joined(coordinator)


def test_a_reused_token_is_refused_and_its_first_user_stays(coordinator, edge: Edge) -> None:
    join_token = coordinator.invite("a")
    first = edge("first")
    enrol(join_token, first)
    with pytest.raises(TokenError, match="used by another key"):
        enrol(join_token, edge("second"))
    with open_channel(first) as channel:
        assert refresh_directory(channel, first).version == 2


def test_of_many_that_use_one_token_at_once_one_wins(coordinator) -> None:
    join_token = coordinator.invite("a")
    outcomes: list[str] = []

    def attempt(number: int) -> None:
        with Store(coordinator.state.database) as store:
            authority = Authority(coordinator.keys, store, coordinator.clock)
            identity = IdentityKey.from_seed(bytes([number]) * 32)
            nonce = authority.challenge(join_token.token_id)
            barrier.wait()
            try:
                authority.enrol(claim_for(join_token, nonce, identity=identity))
                outcomes.append("in")
            except TokenError:
                outcomes.append("out")

    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["out"] * 5
    assert coordinator.authority.directory().version == 2


@pytest.mark.parametrize("part", ["secret", "token_id"])
def test_a_forged_token_is_refused(coordinator, edge: Edge, part: str) -> None:
    right = coordinator.invite("a")
    length = len(getattr(right, part))
    with pytest.raises(TokenError):
        enrol(dataclasses.replace(right, **{part: b"x" * length}), edge("forger"))
    assert nobody_joined(coordinator)
    enrol(right, edge("a"))


def test_wrong_proofs_burn_a_token(coordinator, edge: Edge) -> None:
    right = coordinator.invite("a")
    forged = dataclasses.replace(right, secret=b"x" * 32)
    for _ in range(limits.INVITE_ATTEMPTS):
        with pytest.raises(TokenError):
            send(forged, lambda nonce: claim_for(forged, nonce))
    with pytest.raises(TokenError, match="burnt"):
        enrol(right, edge("a"))
    assert nobody_joined(coordinator)


def test_a_nonce_is_good_for_one_attempt(coordinator) -> None:
    join_token = coordinator.invite("a")
    nonces: list[bytes] = []

    def remember(nonce: bytes) -> Claim:
        nonces.append(nonce)
        return claim_for(join_token, nonce)

    send(join_token, remember)
    with pytest.raises(TokenError, match="nonce"):
        send(join_token, lambda _: claim_for(join_token, nonces[0]))


def test_a_nonce_of_another_token_or_a_late_one_is_refused(coordinator) -> None:
    join_token, other = coordinator.invite("a"), coordinator.invite("b")
    foreign = coordinator.authority.challenge(other.token_id)
    with pytest.raises(TokenError, match="nonce"):
        send(join_token, lambda _: claim_for(join_token, foreign))

    late = coordinator.authority.challenge(join_token.token_id)
    coordinator.clock.offset_s = 61
    with pytest.raises(TokenError, match="nonce"):
        coordinator.authority.enrol(claim_for(join_token, late))
    assert nobody_joined(coordinator)


def test_a_request_swapped_after_the_proofs_is_refused(coordinator) -> None:
    join_token = coordinator.invite("a")
    other = certificates.make_csr(certificates.tls_key_from_seed(b"o" * 32))
    with pytest.raises(TokenError):
        send(
            join_token,
            lambda nonce: dataclasses.replace(claim_for(join_token, nonce), csr_der=other),
        )
    assert nobody_joined(coordinator)


def test_a_request_not_signed_by_its_own_key_is_refused(coordinator) -> None:
    join_token = coordinator.invite("a")
    request = certificates.make_csr(certificates.tls_key_from_seed(b"t" * 32))
    broken = request[:-1] + bytes([request[-1] ^ 1])
    with pytest.raises(SignatureError):
        send(join_token, lambda nonce: claim_for(join_token, nonce, csr_der=broken))
    assert nobody_joined(coordinator)


def test_a_request_for_another_kind_of_key_is_refused(coordinator) -> None:
    join_token = coordinator.invite("a")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = request.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    der = signed.public_bytes(serialization.Encoding.DER)
    with pytest.raises(IdentityError, match="P-256"):
        send(join_token, lambda nonce: claim_for(join_token, nonce, csr_der=der))
    assert nobody_joined(coordinator)


def test_a_small_order_identity_key_is_refused(coordinator) -> None:
    join_token = coordinator.invite("a")
    identity_point = b"\x01" + bytes(31)
    forged = identity_point + bytes(32)  # verifies under that key for any message
    with pytest.raises(IdentityError, match="small order"):
        send(
            join_token,
            lambda nonce: claim_for(
                join_token, nonce, identity_key=identity_point, identity_proof=forged
            ),
        )
    assert nobody_joined(coordinator)


def test_an_identity_key_without_its_proof_is_refused(coordinator) -> None:
    join_token = coordinator.invite("a")
    stolen = IdentityKey.from_seed(b"s" * 32).public.raw
    with pytest.raises(SignatureError):
        send(join_token, lambda nonce: claim_for(join_token, nonce, identity_key=stolen))
    assert nobody_joined(coordinator)


def test_one_identity_key_has_one_name(coordinator) -> None:
    for name in ("a", "b"):
        join_token = coordinator.invite(name)
        if name == "b":
            with pytest.raises(IdentityError, match="one identity key"):
                send(join_token, lambda nonce, t=join_token: claim_for(t, nonce))
        else:
            send(join_token, lambda nonce, t=join_token: claim_for(t, nonce))
    assert [client.client_id for client in coordinator.store.clients.all()] == ["a"]
    assert coordinator.authority.directory().version == 2


def test_an_edge_that_lost_the_answer_gets_its_certificate_again(coordinator, edge: Edge) -> None:
    join_token = coordinator.invite("a")
    state = edge("a")
    enrol(join_token, state)
    lost = coordinator.store.clients.get("a").certificate
    # As if the edge had died after the coordinator committed and before it stored anything.
    for path in (
        state.root / "edge.json",
        state.root / "directory.envelope",
        state.keys / "tls.pem",
    ):
        path.unlink()

    assert enrol(join_token, state).client_id == "a"
    assert coordinator.store.clients.get("a").certificate != lost
    assert coordinator.authority.directory().version == 2
    with open_channel(state) as channel:
        refresh_directory(channel, state)


def test_a_revoked_client_cannot_use_its_token_again(coordinator) -> None:
    join_token = coordinator.invite("a")
    send(join_token, lambda nonce: claim_for(join_token, nonce))
    coordinator.authority.revoke("a", "lost laptop")
    before = coordinator.store.clients.get("a")
    with pytest.raises(IdentityError, match="revoked"):
        send(join_token, lambda nonce: claim_for(join_token, nonce))
    assert coordinator.store.clients.get("a") == before


def by_another_ca(coordinator, claim: Claim, right: Enrolment) -> Enrolment:
    other = certificates.create_authority(b"o" * 32, SERIAL, time.time())
    return with_certificate(right, other, claim.csr_der, right.client_id)


def for_another_name(coordinator, claim: Claim, right: Enrolment) -> Enrolment:
    return with_certificate(right, coordinator.keys.ca, claim.csr_der, "b")


def for_another_tls_key(coordinator, claim: Claim, right: Enrolment) -> Enrolment:
    csr_der = certificates.make_csr(certificates.tls_key_from_seed(b"o" * 32))
    return with_certificate(right, coordinator.keys.ca, csr_der, right.client_id)


def with_a_directory_by_another(coordinator, claim: Claim, right: Enrolment) -> Enrolment:
    signed = directory.sign_directory(
        coordinator.authority.directory(), IdentityKey.from_seed(SEED)
    )
    return dataclasses.replace(right, directory=signed)


def beside_another_identity_key(coordinator, claim: Claim, right: Enrolment) -> Enrolment:
    entry = coordinator.authority.directory().active(right.client_id)
    changed = dataclasses.replace(entry, identity_key=IdentityKey.from_seed(SEED).public)
    signed = directory.sign_directory(Directory(9, (changed,)), coordinator.keys.authority)
    return dataclasses.replace(right, directory=signed)


def with_certificate(
    right: Enrolment, authority: certificates.Authority, csr_der: bytes, name: str
) -> Enrolment:
    chain = certificates.issue_client(authority, csr_der, name, SERIAL, time.time())
    return dataclasses.replace(right, certificate_chain_pem=chain)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (by_another_ca, IdentityError),
        (for_another_name, IdentityError),
        (for_another_tls_key, IdentityError),
        (with_a_directory_by_another, SignatureError),
        (beside_another_identity_key, IdentityError),
    ],
)
def test_an_edge_stores_no_enrolment_that_is_not_its_own(
    coordinator, edge: Edge, monkeypatch: pytest.MonkeyPatch, change, error: type
) -> None:
    enrol_rightly = coordinator.authority.enrol

    def enrol_wrongly(claim: Claim) -> Enrolment:
        return change(coordinator, claim, enrol_rightly(claim))

    monkeypatch.setattr(coordinator.authority, "enrol", enrol_wrongly)
    join_token, state = coordinator.invite("a"), edge("a")
    with pytest.raises(error):
        enrol(join_token, state)
    assert [path.name for path in state.keys.iterdir()] == ["identity.seed"]
    assert not state.is_enrolled

    monkeypatch.setattr(coordinator.authority, "enrol", enrol_rightly)
    enrol(join_token, state)


def test_a_joined_folder_answers_the_same_token_without_a_call(coordinator, edge: Edge) -> None:
    join_token = coordinator.invite("a")
    state = edge("a")
    membership = enrol(join_token, state)
    coordinator.server.stop(0.0)
    assert enrol(join_token, state) == membership
    with pytest.raises(ConfigError, match="already joined as 'a'"):
        enrol(dataclasses.replace(join_token, token_id=b"n" * 16), state)


def test_another_coordinator_at_the_address_is_refused(start, edge: Edge) -> None:
    real, impostor = start(), start()
    join_token = dataclasses.replace(real.invite("a"), address=impostor.address)
    with pytest.raises(IdentityError, match="not the coordinator"):
        enrol(join_token, edge("a"))


def test_the_secret_of_a_token_is_not_in_the_state_folder(coordinator) -> None:
    join_token = coordinator.invite("a")
    files = [path for path in coordinator.state.root.rglob("*") if path.is_file()]
    assert not [path for path in files if join_token.secret in path.read_bytes()]


def test_a_newer_invitation_replaces_the_unused_one(coordinator, edge: Edge) -> None:
    older, newer = coordinator.invite("a"), coordinator.invite("a")
    with pytest.raises(TokenError, match="newer one"):
        enrol(older, edge("older"))
    enrol(newer, edge("newer"))


def test_an_active_client_is_invited_again_and_only_its_own_key_can_use_the_token(
    coordinator,
) -> None:
    first = coordinator.invite("a")
    send(first, lambda nonce: claim_for(first, nonce))
    before, version = coordinator.store.clients.get("a"), coordinator.authority.directory().version
    coordinator.clock.offset_s = 2 * DAY_S
    again = coordinator.invite("a")

    thief = IdentityKey.from_seed(b"z" * 32)
    with pytest.raises(IdentityError, match="with the identity key it has"):
        send(again, lambda nonce: claim_for(again, nonce, identity=thief))
    assert coordinator.store.clients.get("a") == before

    new_key = certificates.make_csr(certificates.tls_key_from_seed(b"n" * 32))
    send(again, lambda nonce: claim_for(again, nonce, csr_der=new_key))
    after = coordinator.store.clients.get("a")
    assert after.identity_key == before.identity_key
    assert after.certificate.expires_unix_s > before.certificate.expires_unix_s
    assert coordinator.authority.directory().version == version
    # The answer may get lost: the same key asks again, nobody else can.
    send(again, lambda nonce: claim_for(again, nonce, csr_der=new_key))
    with pytest.raises(TokenError, match="used by another key"):
        send(again, lambda nonce: claim_for(again, nonce, identity=thief))


def test_a_token_of_an_active_client_is_worth_nothing_once_it_was_revoked(coordinator) -> None:
    first = coordinator.invite("a")
    send(first, lambda nonce: claim_for(first, nonce))
    again = coordinator.invite("a")
    coordinator.authority.revoke("a", "left")
    with pytest.raises(IdentityError, match="revoked"):
        send(again, lambda nonce: claim_for(again, nonce))
    with pytest.raises(ConfigError, match="neither revoked"):
        coordinator.invite("a")


@pytest.mark.parametrize("address", ["bad", "host", "host:0", "0.0.0.0:7443", "[::]:7443", ":1"])
def test_an_address_that_no_edge_can_dial_is_the_inviters_mistake(
    coordinator, address: str
) -> None:
    with pytest.raises(ConfigError):
        coordinator.authority.invite("a", address)
    assert coordinator.store.invites.all() == []


def test_what_cannot_be_revoked_is_the_operators_mistake(coordinator) -> None:
    join_token = coordinator.invite("a")
    send(join_token, lambda nonce: claim_for(join_token, nonce))
    for reason in ("x" * 201, "two\nlines"):
        with pytest.raises(ConfigError, match="reason: expected at most 200"):
            coordinator.authority.revoke("a", reason)
    coordinator.authority.revoke("a", "left")
    with pytest.raises(ConfigError, match=r"revoked already \(left\)"):
        coordinator.authority.revoke("a", "again")
    with pytest.raises(ConfigError, match="no client"):
        coordinator.authority.revoke("b", "left")


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "a" * 65, "coordinator"])
def test_a_name_that_may_not_be_a_clients_is_refused(coordinator, name: str) -> None:
    with pytest.raises(ConfigError, match="no name to invite"):
        coordinator.invite(name)


def test_attempts_under_way_are_bounded(coordinator) -> None:
    join_token = coordinator.invite("a")
    for _ in range(32):
        coordinator.authority.challenge(join_token.token_id)
    with pytest.raises(TransportError, match="too many attempts"):
        coordinator.authority.challenge(join_token.token_id)
    coordinator.clock.offset_s = 61
    coordinator.authority.challenge(join_token.token_id)


def test_renewal_keeps_the_old_certificate_until_the_new_one_was_used(
    coordinator, join: Join
) -> None:
    state = join(coordinator, "a")
    assert not renew_if_due(state)
    old = state.tls_pem()
    assert renew_if_due(state, lambda: coordinator.clock() + 25 * DAY_S)
    new = state.tls_pem()
    assert new != old

    state.save_tls(old)  # the edge died before it stored the new one
    with open_channel(state) as channel:
        refresh_directory(channel, state)
    state.save_tls(new)
    with open_channel(state) as channel:
        refresh_directory(channel, state)
    state.save_tls(old)
    with open_channel(state) as channel, pytest.raises(IdentityError, match="was replaced"):
        refresh_directory(channel, state)


def test_a_directory_that_goes_back_in_time_is_refused(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    known = state.directory(coordinator.clock())
    newer = dataclasses.replace(known, version=known.version + 5)
    state.save_directory(directory.sign_directory(newer, coordinator.keys.authority))
    with open_channel(state) as channel, pytest.raises(IdentityError, match="back in time"):
        refresh_directory(channel, state)


def test_a_directory_by_another_key_is_refused(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    known = state.directory(coordinator.clock())
    forged = directory.sign_directory(known, coordinator.keys.coordinator)
    state.save_directory(forged)
    with pytest.raises(SignatureError):
        state.directory(coordinator.clock())


def test_a_second_handle_sees_clients_and_may_invite(coordinator, edge: Edge) -> None:
    with Store(coordinator.state.database) as other:
        join_token = Authority(coordinator.keys, other, coordinator.clock).invite(
            "a", coordinator.address
        )
        enrol(join_token, edge("a"))
        assert [client.client_id for client in other.clients.active()] == ["a"]
