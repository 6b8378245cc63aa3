"""Where this edge's SuperNode believes its SuperLink to be: HTTPS on loopback, and our channel behind.

    SuperNode ─ HTTPS, 127.0.0.1 ─> shim ─ FleetService.Tunnel, mutual TLS ─> coordinator

A SuperNode cannot present a client certificate; we can. It needs no address of the coordinator, no
further port and no certificate of its own.

Rules it enforces: what is no call of a node ends here; a coordinator that cannot be reached is a
"try again" to the SuperNode (503), never a 401 or 403, which would end it or make it drop its work.
"""

import logging
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

import grpc

from offsite.edge_client.channel import translated
from offsite.emulator.engines.flower.fleet_wire import (
    HOLD_S,
    FleetAnswer,
    FleetCall,
    check_body_bytes,
    check_call,
    chunks,
    passing_headers,
)
from offsite.emulator.engines.flower.loopback_tls import HOST
from offsite.secure import limits
from offsite.secure.errors import IdentityError, OffsiteError, PeerError
from offsite.v1 import fleet_pb2 as pb
from offsite.v1.fleet_pb2_grpc import FleetServiceStub

SOCKET_S: Final = 60.0
"""A connection of the SuperNode that is silent for longer is closed."""
TRY_AGAIN: Final = FleetAnswer(503, "text/plain", b"")
REFUSED: Final = FleetAnswer(400, "text/plain", b"")

_log = logging.getLogger(__name__)


class Shim:
    """A server on a free port of loopback, in threads of its own; a context manager."""

    def __init__(self, channel: grpc.Channel, tls: ssl.SSLContext) -> None:
        self._stub = FleetServiceStub(channel)
        self._server = _Server(self, tls)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="flower-shim", daemon=True
        )
        self._answered_s = time.monotonic()
        self._refusal: IdentityError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def silent_s(self) -> float:
        """For how long the coordinator has not answered."""
        return time.monotonic() - self._answered_s

    def check(self) -> None:
        """Raises IdentityError if the coordinator refused this edge."""
        if self._refusal is not None:
            raise self._refusal

    def pass_on(self, call: FleetCall) -> FleetAnswer:
        """The SuperLink's answer, or one that makes the SuperNode try again."""
        try:
            check_call(call.path, call.headers)
        except PeerError as error:
            _log.warning("a call to the SuperLink was not passed on: %s", error)
            return REFUSED
        try:
            with translated():
                answer = _received(
                    self._stub.Tunnel(_sent(call), timeout=HOLD_S + limits.CALL_DEADLINE_S)
                )
        except IdentityError as error:
            self._refusal = error
            return TRY_AGAIN
        except OffsiteError as error:
            _log.info("a call to the SuperLink did not pass: %s", error)
            return TRY_AGAIN
        self._answered_s = time.monotonic()
        return answer


def _sent(call: FleetCall) -> Iterator[pb.TunnelRequest]:
    yield pb.TunnelRequest(call=pb.TunnelCall(path=call.path, headers=call.headers))
    for data in chunks(call.body):
        yield pb.TunnelRequest(data=data)


def _received(responses: Iterator[pb.TunnelResponse]) -> FleetAnswer:
    first = next(responses, None)
    if first is None or first.WhichOneof("part") != "answer":
        raise PeerError("expected the header of an answer, found data or nothing")
    body = bytearray()
    for response in responses:
        body += response.data
        check_body_bytes(len(body))
    return FleetAnswer(first.answer.status, first.answer.content_type, bytes(body))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, shim: Shim, tls: ssl.SSLContext) -> None:
        super().__init__((HOST, 0), _Handler)
        self.shim = shim
        # The handshake is the handler's, in its thread: a silent peer must not stop the others.
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("a connection on loopback failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_S
    server: _Server

    def do_POST(self) -> None:
        """The one method that Flower has."""
        size = self.headers.get("content-length", "")
        try:
            check_body_bytes(int(size))
        except (PeerError, ValueError):
            self.close_connection = True
            self._answer(REFUSED)
            return
        headers = passing_headers(dict(self.headers.items()))
        call = FleetCall(self.path, headers, self.rfile.read(int(size)))
        self._answer(self.server.shim.pass_on(call))

    def _answer(self, answer: FleetAnswer) -> None:
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the coordinator keeps the list of calls."""
