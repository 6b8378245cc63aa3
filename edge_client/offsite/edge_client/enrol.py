"""How an edge becomes a client, stays one, and keeps its view of the directory.

    token ─> challenge ─> proofs of token and keys ─> certificate, directory ─> state folder

Notable: all of it may be repeated. The identity key is stored before it is used, an attempt that
lost its answer asks for a new nonce and gets its certificate again, and a joined folder answers the
same token without any call. An edge whose certificate has lapsed joins again, with a new token of
the same coordinator, the same identity key and thereby the same name. Rule: nothing the coordinator sent is stored before it was checked.
"""

import secrets
import time
from collections.abc import Callable
from typing import Final

import grpc
from cryptography import x509

from offsite.edge_client.channel import open_bootstrap_channel, open_channel
from offsite.edge_client.resume import Persistence
from offsite.edge_client.state import LAPSED, EdgeState, Membership
from offsite.secure import certificates, directory, limits, token
from offsite.secure.directory import Directory
from offsite.secure.errors import ConfigError, IdentityError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.token import JoinToken
from offsite.secure.wire import from_wire
from offsite.v1.enrolment_pb2 import (
    ChallengeRequest,
    EnrolRequest,
    EnrolResponse,
    GetDirectoryRequest,
    RenewRequest,
)
from offsite.v1.enrolment_pb2_grpc import EnrolmentServiceStub

Clock = Callable[[], float]
RENEW_AT_SHARE: Final = 2 / 3
"""Share of a certificate's lifetime after which a new one is asked for."""


def enrol(join_token: JoinToken, state: EdgeState, clock: Clock = time.time) -> Membership:
    """Joins with a token, or returns the membership that the same token gave before.

    Raises:
        ConfigError: the folder belongs to another membership.
        IdentityError: the certificate has lapsed, and this token was used before.
        TokenError, ExpiredError: the coordinator does not take the token.
        IdentityError, SignatureError: what answered is not the coordinator of the token.
        TransportError: no answer.
    """
    # (1) Joined before: nothing to do, the wrong folder, or a certificate that has lapsed.
    earlier = state.membership() if state.is_enrolled else None
    if earlier is not None and _is_still_good(earlier, join_token, state, clock()):
        return earlier
    # (2) The keys. The identity key outlives a crash; a TLS key is only worth its certificate.
    identity = state.identity_key()
    tls_key = certificates.tls_key_from_seed(secrets.token_bytes(certificates.SEED_BYTES))
    # (3) Challenge and answer, as often as it takes.
    with open_bootstrap_channel(join_token, clock()) as channel:
        stub = EnrolmentServiceStub(channel)
        response = Persistence().run(lambda: _attempt(stub, join_token, identity, tls_key))
    # (4) What came back belongs to these keys and to the coordinator of the token.
    ca_pem = certificates.cert_pem_of(join_token.ca_cert_der)
    membership = Membership(
        client_id=response.client_id,
        address=join_token.address,
        token_id=join_token.token_id,
        directory_key=IdentityPublicKey(join_token.directory_key),
    )
    _check_certificate(response.certificate_chain_pem, membership.client_id, tls_key, ca_pem)
    signed = from_wire(response.directory)
    opened = directory.open_directory(signed, membership.directory_key, clock())
    _check_own_entry(opened, membership.client_id, identity)
    if earlier is not None:
        _check_continues(earlier, membership, state)
        directory.check_successor(state.directory(clock()), opened)
    # (5) Stored, the membership last.
    tls_pem = certificates.tls_key_pem(tls_key) + response.certificate_chain_pem
    state.save_enrolment(membership, tls_pem, ca_pem, signed)
    return membership


def is_renewal_due(state: EdgeState, clock: Clock = time.time) -> bool:
    """Whether the certificate is in the last third of its life."""
    start, end = certificates.validity_unix_s(state.tls_pem())
    return clock() >= start + (end - start) * RENEW_AT_SHARE


def renew_if_due(state: EdgeState, clock: Clock = time.time) -> bool:
    """Replaces the certificate when it is due; a new channel then uses it."""
    if not is_renewal_due(state, clock):
        return False
    tls_key = certificates.tls_key_from_seed(secrets.token_bytes(certificates.SEED_BYTES))
    request = RenewRequest(csr_der=certificates.make_csr(tls_key))
    with open_channel(state) as channel:
        stub = EnrolmentServiceStub(channel)
        response = Persistence().run(lambda: stub.Renew(request, timeout=limits.CALL_DEADLINE_S))
    chain = response.certificate_chain_pem
    _check_certificate(chain, state.membership().client_id, tls_key, state.ca_pem())
    state.save_tls(certificates.tls_key_pem(tls_key) + chain)
    return True


def refresh_directory(
    channel: grpc.Channel, state: EdgeState, clock: Clock = time.time
) -> Directory:
    """Fetches the newest directory and stores it if it may follow the known one."""
    known = state.directory(clock())
    request = GetDirectoryRequest(known_version=known.version)
    stub = EnrolmentServiceStub(channel)
    response = Persistence().run(lambda: stub.GetDirectory(request, timeout=limits.CALL_DEADLINE_S))
    membership = state.membership()
    signed = from_wire(response.directory)
    newest = directory.open_directory(signed, membership.directory_key, clock())
    directory.check_successor(known, newest)
    _check_own_entry(newest, membership.client_id, state.identity_key())
    if newest != known:
        state.save_directory(signed)
    return newest


def _is_still_good(
    earlier: Membership, join_token: JoinToken, state: EdgeState, now_unix_s: float
) -> bool:
    """Whether an earlier membership serves; False if it is to be taken up again with this token."""
    has_lapsed = now_unix_s > certificates.validity_unix_s(state.tls_pem())[1]
    if earlier.token_id == join_token.token_id:
        if has_lapsed:
            raise IdentityError(LAPSED)
        return True
    if not has_lapsed or earlier.directory_key.raw != join_token.directory_key:
        raise ConfigError(
            f"{state.root} already joined as {earlier.client_id!r} with another token; go on with "
            "that one, or choose another state folder"
        )
    return False


def _check_continues(earlier: Membership, membership: Membership, state: EdgeState) -> None:
    if membership.client_id != earlier.client_id:
        raise ConfigError(
            f"{state.root} joined as {earlier.client_id!r}, and this token is for "
            f"{membership.client_id!r}; ask for one under the same name"
        )


def _attempt(
    stub: EnrolmentServiceStub,
    join_token: JoinToken,
    identity: IdentityKey,
    tls_key: certificates.TlsKey,
) -> EnrolResponse:
    """One challenge and its answer; a nonce is good for one Enrol, so both are tried together."""
    challenge = stub.Challenge(
        ChallengeRequest(token_id=join_token.token_id), timeout=limits.CALL_DEADLINE_S
    )
    csr_der = certificates.make_csr(tls_key)
    transcript = token.transcript(
        token_id=join_token.token_id,
        nonce=challenge.nonce,
        csr_der=csr_der,
        identity_key=identity.public.raw,
        ca_cert_der=join_token.ca_cert_der,
    )
    request = EnrolRequest(
        token_id=join_token.token_id,
        nonce=challenge.nonce,
        csr_der=csr_der,
        identity_key=identity.public.raw,
        identity_proof=identity.sign(transcript),
        token_proof=token.token_proof(token.proof_key(join_token.secret), transcript),
    )
    return stub.Enrol(request, timeout=limits.CALL_DEADLINE_S)


def _check_certificate(
    chain_pem: bytes, client_id: str, tls_key: certificates.TlsKey, ca_pem: bytes
) -> None:
    """That the first certificate of the chain is by the pinned CA, for this name and key."""
    if not certificates.is_issued_by(chain_pem, ca_pem):
        raise IdentityError("expected a certificate of the pinned CA, found one of another")
    if certificates.client_id_of(chain_pem) != client_id:
        raise IdentityError(f"expected a certificate for {client_id!r}, found one for another name")
    if x509.load_pem_x509_certificate(chain_pem).public_key() != tls_key.public_key():
        raise IdentityError("expected a certificate for this edge's TLS key, found another key")


def _check_own_entry(opened: Directory, client_id: str, identity: IdentityKey) -> None:
    if opened.active(client_id).identity_key != identity.public:
        raise IdentityError(
            f"expected this edge's key beside {client_id!r} in the directory, found another; ask "
            "the coordinator's operator"
        )
