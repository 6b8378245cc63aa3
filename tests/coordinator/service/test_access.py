"""The check before every call: who passes the handshake, and what each may then call."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace

import grpc
import pytest

from offsite.coordinator.authority import Authority
from offsite.coordinator.gatekeeper import Gatekeeper
from offsite.coordinator.service.interceptor import CALLS_PER_CLIENT, _peer_certificate, caller
from offsite.coordinator.service.server import ServerTls, start_server
from offsite.coordinator.store import Store
from offsite.edge_client.channel import open_bootstrap_channel, open_channel, translated
from offsite.edge_client.enrol import refresh_directory
from offsite.edge_client.state import EdgeState
from offsite.secure import certificates, limits, names
from offsite.secure.errors import (
    ConfigError,
    DiskFullError,
    IdentityError,
    OffsiteError,
    PeerError,
    PolicyError,
    TransportError,
)
from offsite.v1.enrolment_pb2 import ChallengeRequest, GetDirectoryRequest, RenewRequest
from offsite.v1.enrolment_pb2_grpc import EnrolmentServiceStub

Join = Callable[..., EdgeState]
Dial = Callable[[bytes, bytes], grpc.Channel]

SERIAL = b"s" * 16


class Probe:
    """A service with one method of each shape, and whatever behaviour a test wants."""

    def __init__(self) -> None:
        self.entered = 0
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def answer(self, request: object, context: object) -> bytes:
        self.entered += 1
        if self.error is not None:
            raise self.error
        return caller().encode()

    async def stream(self, request: object, context: object) -> AsyncIterator[bytes]:
        self.entered += 1
        yield caller().encode()
        if self.error is not None:
            raise self.error

    async def wait(self, request: object, context: object) -> bytes:
        self.entered += 1
        await self.go_on.wait()
        return b""

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.answer),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.stream),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.answer),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Probe", handlers),)
        )


SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


def call(channel: grpc.Channel, shape: str, payload: bytes = b"") -> bytes:
    """Calls the probe's method of that shape and returns its answer."""
    path = f"/test.Probe/{shape}"
    with translated():
        if shape == "UnaryUnary":
            return channel.unary_unary(path)(payload, timeout=10)
        if shape == "StreamUnary":
            return channel.stream_unary(path)(iter([payload]), timeout=10)
        if shape == "UnaryStream":
            return b"".join(channel.unary_stream(path)(payload, timeout=10))
        return b"".join(channel.stream_stream(path)(iter([payload]), timeout=10))


def get_directory(channel: grpc.Channel) -> None:
    with translated():
        EnrolmentServiceStub(channel).GetDirectory(GetDirectoryRequest(), timeout=10)


def self_made(authority: certificates.Authority, client_id: str) -> tuple[bytes, bytes]:
    """A client certificate and its key by any authority."""
    key = certificates.tls_key_from_seed(b"m" * 32)
    csr_der = certificates.make_csr(key)
    cert_pem = certificates.issue_client(authority, csr_der, client_id, SERIAL, time.time())
    return cert_pem, certificates.tls_key_pem(key)


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_client_is_known_by_name_in_every_kind_of_method(
    start, join: Join, probe: Probe, shape: str
) -> None:
    state = join(start(probe.register), "hospital-1")
    with open_channel(state) as channel:
        assert call(channel, shape) == b"hospital-1"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bootstrap_peer_reaches_no_other_service(start, probe: Probe, shape: str) -> None:
    join_token = start(probe.register).invite("a")
    with (
        open_bootstrap_channel(join_token, time.time()) as channel,
        pytest.raises(IdentityError, match="nothing but joining"),
    ):
        call(channel, shape)
    assert probe.entered == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_who_may_not_call_is_refused_before_a_request_is_waited_for(
    start, probe: Probe, shape: str
) -> None:
    join_token = start(probe.register).invite("a")
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with (
        open_bootstrap_channel(join_token, time.time()) as channel,
        pytest.raises(IdentityError, match="nothing but joining"),
        translated(),
    ):
        list(channel.stream_stream(f"/test.Probe/{shape}")(silence(), timeout=10))
    over.set()


def test_a_bootstrap_peer_gets_neither_directory_nor_certificate(coordinator) -> None:
    with open_bootstrap_channel(coordinator.invite("a"), time.time()) as channel:
        stub = EnrolmentServiceStub(channel)
        for method, request in (
            (stub.GetDirectory, GetDirectoryRequest()),
            (stub.Renew, RenewRequest()),
        ):
            with pytest.raises(IdentityError, match="nothing but joining"), translated():
                method(request, timeout=10)


def test_a_client_cannot_enrol_again(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    request = ChallengeRequest(token_id=coordinator.invite("b").token_id)
    with (
        open_channel(state) as channel,
        pytest.raises(IdentityError, match="cannot join again"),
        translated(),
    ):
        EnrolmentServiceStub(channel).Challenge(request, timeout=10)


def test_a_certificate_of_another_ca_is_refused_in_the_handshake(
    coordinator, join: Join, dial: Dial
) -> None:
    join(coordinator, "a")
    foreign = certificates.create_authority(b"f" * 32, SERIAL, time.time())
    with pytest.raises(TransportError, match="does not accept this certificate"):
        get_directory(dial(*self_made(foreign, "a")))


def test_no_certificate_is_refused_in_the_handshake(coordinator) -> None:
    credentials = grpc.ssl_channel_credentials(coordinator.keys.ca.cert_pem)
    options = [("grpc.ssl_target_name_override", names.SERVER_NAME)]
    with (
        grpc.secure_channel(coordinator.address, credentials, options) as channel,
        pytest.raises(TransportError),
    ):
        get_directory(channel)


def test_a_bootstrap_certificate_that_claims_a_client_is_refused(
    coordinator, join: Join, dial: Dial
) -> None:
    state = join(coordinator, "a")
    bootstrap = certificates.bootstrap_authority(coordinator.keys.bootstrap_seed)
    with pytest.raises(IdentityError, match="was not issued to it"):
        get_directory(dial(*self_made(bootstrap, "a")))
    with open_channel(state) as channel:
        get_directory(channel)


def test_a_client_that_claims_another_is_refused(coordinator, join: Join, dial: Dial) -> None:
    """Even a certificate of the right CA counts only if it was the one issued to that client."""
    join(coordinator, "a")
    join(coordinator, "b")
    for claimed in ("a", "nobody"):
        with pytest.raises(IdentityError, match="was not issued to it"):
            get_directory(dial(*self_made(coordinator.keys.ca, claimed)))


def test_a_ca_certificate_that_names_a_bootstrap_peer_is_refused(coordinator) -> None:
    cert_pem = certificates.bootstrap_client(b"o" * 32, time.time()).cert_pem
    with pytest.raises(IdentityError, match="bootstrap certificate"):
        gatekeeper_of(coordinator).identify(cert_pem)


def test_the_coordinators_own_certificate_is_no_clients(coordinator, dial: Dial) -> None:
    server = coordinator.certificate.current()
    with pytest.raises(IdentityError, match="expected a client's certificate"):
        gatekeeper_of(coordinator).identify(server.cert_pem)
    with pytest.raises((TransportError, IdentityError)):
        get_directory(dial(server.cert_pem, server.key_pem))


def gatekeeper_of(coordinator):
    return Gatekeeper(
        coordinator.authority,
        coordinator.store,
        coordinator.keys.bootstrap_ca_pem,
        coordinator.clock,
    )


def test_a_revoked_client_is_refused_at_its_next_call(coordinator, join: Join) -> None:
    """On its open connection, and although another process revoked it."""
    state, other = join(coordinator, "a"), join(coordinator, "b")
    with open_channel(state) as channel, open_channel(other) as other_channel:
        get_directory(channel)
        with Store(coordinator.state.database) as store:
            Authority(coordinator.keys, store).revoke("a", "left the study")
        with pytest.raises(IdentityError, match="revoked"):
            get_directory(channel)
        assert refresh_directory(other_channel, other).find("a").reason == "left the study"


def test_a_lapsed_certificate_is_refused_on_an_open_connection(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    with open_channel(state) as channel:
        get_directory(channel)
        coordinator.clock.offset_s = limits.CERTIFICATE_TTL_S + 1
        # Not ExpiredError, by which an edge knows that its reply came too late.
        with pytest.raises(IdentityError, match="has lapsed; ask for a new token"):
            get_directory(channel)


@pytest.mark.parametrize("version", [b"TLSv1.2", None])
def test_an_older_tls_or_none_is_refused(version: bytes | None) -> None:
    properties = {"x509_pem_cert": [b"certificate"]}
    if version is not None:
        properties["ssl_tls_version"] = [version]
    context = SimpleNamespace(auth_context=lambda: properties)
    with pytest.raises(IdentityError, match=r"expected TLSv1\.3"):
        _peer_certificate(context)
    properties["ssl_tls_version"] = [b"TLSv1.3"]
    assert _peer_certificate(context) == b"certificate"


def test_an_unknown_method_says_so(coordinator, join: Join) -> None:
    with open_channel(join(coordinator, "a")) as channel, pytest.raises(PeerError):
        call(channel, "UnaryUnary")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("raised", "arrives", "text"),
    [
        (PolicyError("too much"), PolicyError, "too much"),
        (PeerError("bad\nshape"), PeerError, "bad shape"),
        (DiskFullError("no room in /secret/path"), TransportError, "try again later"),
        (OffsiteError("odd"), TransportError, "its log says why"),
        (KeyError("/secret/path"), TransportError, "its log says why"),
    ],
)
def test_an_edge_raises_what_the_coordinator_may_say(
    start, join: Join, probe: Probe, shape: str, raised: Exception, arrives: type, text: str
) -> None:
    state = join(start(probe.register), "a")
    probe.error = raised
    with open_channel(state) as channel, pytest.raises(arrives, match=text) as caught:
        call(channel, shape)
    assert type(caught.value) is arrives
    assert "secret" not in str(caught.value)


def test_an_oversized_message_is_refused(coordinator, join: Join, dial: Dial) -> None:
    state = join(coordinator, "a")
    pem = state.tls_pem()
    request = RenewRequest(csr_der=bytes(limits.CONTROL_MESSAGE_BYTES))
    with pytest.raises(PeerError, match="above the limit"), translated():
        EnrolmentServiceStub(dial(pem, pem)).Renew(request, timeout=10)
    with (
        open_channel(state) as channel,
        pytest.raises(PeerError, match="above the limit"),
        translated(),
    ):
        EnrolmentServiceStub(channel).Renew(request, timeout=10)


def test_compression_is_refused(coordinator, join: Join) -> None:
    request = RenewRequest(csr_der=bytes(10_000))
    with (
        open_channel(join(coordinator, "a")) as channel,
        pytest.raises(PeerError, match="Compression algorithm 'gzip' is disabled"),
        translated(),
    ):
        EnrolmentServiceStub(channel).Renew(request, timeout=10, compression=grpc.Compression.Gzip)


def test_one_client_cannot_take_all_calls(start, join: Join, probe: Probe) -> None:
    coordinator = start(probe.register)
    state, other = join(coordinator, "a"), join(coordinator, "b")
    with open_channel(state) as channel, open_channel(other) as other_channel:
        waiting = [
            channel.unary_unary("/test.Probe/Wait").future(b"", timeout=30)
            for _ in range(CALLS_PER_CLIENT + 1)
        ]
        refused = next(done for done in iter_done(waiting))
        with pytest.raises(TransportError, match="under way"), translated():
            refused.result()
        assert call(other_channel, "UnaryUnary") == b"b"
        coordinator.server.loop.call_soon_threadsafe(probe.go_on.set)
        answered = [one.result() for one in waiting if one is not refused]
        assert len(answered) == CALLS_PER_CLIENT
        assert call(channel, "UnaryUnary") == b"a"


def iter_done(calls: Sequence[grpc.Future]) -> list[grpc.Future]:
    """Waits until one of the calls is done."""
    done = threading.Event()
    for one in calls:
        one.add_done_callback(lambda _: done.set())
    assert done.wait(20)
    return [one for one in calls if one.done()]


def test_stop_ends_waiting_calls(start, join: Join, probe: Probe) -> None:
    coordinator = start(probe.register)
    state = join(coordinator, "a")
    with open_channel(state) as channel:
        waiting = channel.unary_unary("/test.Probe/Wait").future(b"", timeout=60)
        assert call(channel, "UnaryUnary") == b"a"
        coordinator.server.stop(0.0)
        with pytest.raises(TransportError), translated():
            waiting.result()
    coordinator.server.stop()


def test_two_servers_cannot_share_a_port(coordinator) -> None:
    tls = ServerTls(coordinator.certificate.current, coordinator.keys.client_roots_pem)
    with pytest.raises(ConfigError, match="cannot listen"):
        start_server(coordinator.address, tls, gatekeeper_of(coordinator), ())


def test_the_server_replaces_its_certificate_while_it_serves(coordinator, join: Join) -> None:
    state = join(coordinator, "a")
    first = presented_certificate(coordinator, state)
    assert presented_certificate(coordinator, state) == first
    # The certificate that a server would have that started 25 days ago.
    coordinator.certificate._credential = issued_25_days_ago(coordinator)
    second = presented_certificate(coordinator, state)
    assert second != first
    with open_channel(state) as channel:
        get_directory(channel)


def issued_25_days_ago(coordinator) -> certificates.Credential:
    key = certificates.tls_key_from_seed(b"k" * 32)
    then = time.time() - 25 * 24 * 3600
    cert_pem = certificates.issue_server(
        coordinator.keys.ca, key.public_key(), (names.SERVER_NAME,), SERIAL, then
    )
    return certificates.Credential(cert_pem, certificates.tls_key_pem(key))


def presented_certificate(coordinator, state: EdgeState) -> bytes:
    """What the server shows in a handshake, DER; the handshake also shows TLS 1.3."""
    context = ssl.create_default_context(cadata=coordinator.keys.ca.cert_pem.decode())
    context.load_cert_chain(state.keys / "tls.pem")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", coordinator.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=names.SERVER_NAME) as secured,
    ):
        assert secured.version() == "TLSv1.3"
        return secured.getpeercert(binary_form=True)
