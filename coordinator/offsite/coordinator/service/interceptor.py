"""The one check before every call of every service.

    peer certificate ─> SPIFFE id ─> client row, same certificate ─> active directory entry

Notable: there is no list of exceptions per handler; a handler only ever runs for a peer that was
let in, and asks `caller()` who it is. A bootstrap peer (somebody who holds a join token) may call
Challenge and Enrol and nothing else; a client anything but these two; a certificate of any other
role nothing. Nothing is cached, so a revocation acts at the next call, also on an open connection.

To gRPC every method has a stream of requests: it would otherwise wait for a single request itself,
before anything here runs and with no deadline, and headers alone would hold a call. The request is
read here, from a peer that was let in, within `limits.CALL_DEADLINE_S`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError

from offsite.coordinator.gatekeeper import Gatekeeper, Peer, PeerRole
from offsite.coordinator.service.errors import translated
from offsite.coordinator.service.quotas import Quotas
from offsite.secure import limits
from offsite.secure.errors import BusyError, IdentityError, PeerError, TransportError

CALLS_PER_CLIENT: Final = 16
"""Calls of one client under way at a time; it needs three."""
CALLS_OF_BOOTSTRAP_PEERS: Final = 64
"""Bootstrap peers look alike, so all of them share this many."""
TLS_VERSION: Final = b"TLSv1.3"

BOOTSTRAP_METHODS: Final = frozenset(
    {"/offsite.v1.EnrolmentService/Challenge", "/offsite.v1.EnrolmentService/Enrol"}
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Request, Response]
# In quotes, because at run time the class takes no parameters.
Handler: TypeAlias = "grpc.RpcMethodHandler[Request, Response]"
# A handler takes one request or the iterator over a stream of them.
Requests: TypeAlias = AsyncIterator[Request]
Answer = Callable[[Request | Requests[Request], Context[Request, Response]], Awaitable[Response]]
Stream = Callable[
    [Request | Requests[Request], Context[Request, Response]], AsyncGenerator[Response, None]
]
GuardedAnswer = Callable[[Requests[Request], Context[Request, Response]], Awaitable[Response]]
GuardedStream = Callable[[Requests[Request], Context[Request, Response]], Awaitable[None]]


_peer: ContextVar[Peer] = ContextVar("offsite_peer")


def caller() -> str:
    """Client id of the peer whose call is being handled."""
    peer = _peer.get(None)
    if peer is None or peer.role is not PeerRole.CLIENT:
        raise IdentityError("expected the certificate of an enrolled client, found none")
    return peer.client_id


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler, or ends it with a status."""

    def __init__(self, gatekeeper: Gatekeeper, quotas: Quotas) -> None:
        self._gatekeeper = gatekeeper
        self._quotas = quotas
        self._under_way: Counter[Peer] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["Handler[Request, Response] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler[Request, Response] | None":
        handler = await continuation(handler_call_details)
        return None if handler is None else self._guarded(handler, handler_call_details.method)

    def _guarded(
        self, handler: "Handler[Request, Response]", method: str
    ) -> "Handler[Request, Response]":
        """The same handler behind the check, whichever of its four shapes it has."""
        coders = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            stream = self._guarded_stream(handler, method)
            return grpc.stream_stream_rpc_method_handler(stream, *coders)
        answer = self._guarded_answer(handler, method)
        return grpc.stream_unary_rpc_method_handler(answer, *coders)

    def _guarded_answer(
        self, handler: "Handler[Request, Response]", method: str
    ) -> GuardedAnswer[Request, Response]:
        behaviour = _answer_of(handler)

        async def answer(
            requests: Requests[Request], context: Context[Request, Response]
        ) -> Response:
            async with translated(context, method), self._admitted(context, method):
                return await behaviour(await _input_of(handler, requests), context)
            raise AssertionError("translated() never swallows an error")

        return answer

    def _guarded_stream(
        self, handler: "Handler[Request, Response]", method: str
    ) -> GuardedStream[Request, Response]:
        behaviour = _stream_of(handler)

        # Writes instead of yielding: a client that leaves cancels it here, and everything below is
        # closed at once, while nobody would close a generator.
        async def stream(requests: Requests[Request], context: Context[Request, Response]) -> None:
            async with (
                translated(context, method),
                self._admitted(context, method),
                aclosing(behaviour(await _input_of(handler, requests), context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return stream

    @asynccontextmanager
    async def _admitted(
        self, context: Context[Request, Response], method: str
    ) -> AsyncIterator[None]:
        # (1) What the handshake established.
        cert_pem = _peer_certificate(context)
        # (2) Who that is: database and directory, read afresh; off the event loop, since both
        # may wait for the disk.
        peer = await asyncio.to_thread(self._gatekeeper.identify, cert_pem)
        # (3) Whether this role may call this method.
        _check_method(peer, method)
        # (4) Not too many at once, nor too often; then the handler runs and knows the caller.
        if peer.role is PeerRole.CLIENT:
            self._quotas.admit_call(peer.client_id)
        with self._counted(peer):
            _peer.set(peer)
            yield

    @contextmanager
    def _counted(self, peer: Peer) -> Iterator[None]:
        limit = CALLS_PER_CLIENT if peer.role is PeerRole.CLIENT else CALLS_OF_BOOTSTRAP_PEERS
        if self._under_way[peer] >= limit:
            raise BusyError(f"{limit} calls of this peer are under way; try again later")
        self._under_way[peer] += 1
        try:
            yield
        finally:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]


def _peer_certificate(context: Context[Request, Response]) -> bytes:
    properties = context.auth_context()
    version = b"".join(properties.get("ssl_tls_version", ()))
    if version != TLS_VERSION:
        raise IdentityError(
            f"expected {TLS_VERSION.decode()}, found {version.decode() or 'no TLS'}; "
            "update the client"
        )
    certificates = list(properties.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise IdentityError("expected a client certificate, found none; join first")
    return certificates[0]


def _check_method(peer: Peer, method: str) -> None:
    if (peer.role is PeerRole.BOOTSTRAP) is (method in BOOTSTRAP_METHODS):
        return
    if peer.role is PeerRole.BOOTSTRAP:
        raise IdentityError("a join token allows nothing but joining; enrol first")
    raise IdentityError("an enrolled client cannot join again; its certificate is renewed instead")


async def _input_of(
    handler: "Handler[Request, Response]", requests: Requests[Request]
) -> Request | Requests[Request]:
    """What the handler expects: the stream itself, or the one request in it."""
    return requests if handler.request_streaming else await _only_request(requests)


async def _only_request(requests: Requests[Request]) -> Request:
    try:
        async with asyncio.timeout(limits.CALL_DEADLINE_S):
            request = await anext(requests, None)
    except TimeoutError:
        raise TransportError(
            f"expected the request within {limits.CALL_DEADLINE_S:.0f} s, found none: try again"
        ) from None
    except DecodeError:
        raise PeerError("expected a request of this method, found other bytes") from None
    if request is None:
        raise PeerError("expected one request, found none")
    return request


# The stubs of grpc describe the synchronous handlers; in an asyncio server they are coroutines.
def _answer_of(handler: "Handler[Request, Response]") -> Answer[Request, Response]:
    found = handler.stream_unary if handler.request_streaming else handler.unary_unary
    assert found is not None
    return cast("Answer[Request, Response]", found)


def _stream_of(handler: "Handler[Request, Response]") -> Stream[Request, Response]:
    found = handler.stream_stream if handler.request_streaming else handler.unary_stream
    assert found is not None
    return cast("Stream[Request, Response]", found)
