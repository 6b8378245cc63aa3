"""The gRPC server: one port, mutual TLS 1.3, every limit set, nothing compressed.

Notable: the server is asyncio (a waiting client costs a coroutine, not a thread) and runs in a
thread of its own, because the round loop is ordinary synchronous code. Services are registered by
functions, so the server knows none of them. Clients of the CA and bootstrap peers are let through
the handshake; the interceptor decides what each may call. The certificate is asked for again at
every handshake, so it is renewed without a restart.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar, cast

import grpc

from offsite.coordinator.gatekeeper import Gatekeeper
from offsite.coordinator.service.descriptors import connections_within, raise_descriptor_limit
from offsite.coordinator.service.interceptor import AccessInterceptor
from offsite.coordinator.service.quotas import Quotas
from offsite.secure import limits
from offsite.secure.certificates import Credential
from offsite.secure.errors import ConfigError

CONCURRENT_CALLS: Final = 4096
"""Calls of all peers together; one more is refused, and tried again by the edge."""
CALLS_PER_CONNECTION: Final = 32
HANDSHAKE_TIMEOUT_S: Final = 5.0
STOP_GRACE_S: Final = 5.0
KEEPALIVE_TIMEOUT_S: Final = 10.0
METADATA_BYTES: Final = 8 * limits.KIB
SEND_AHEAD_BYTES: Final = 512 * limits.KIB
"""What every upload may hold, one that waits for its turn included; enough for 10 MB/s on a line of
50 ms."""

Register = Callable[[grpc.aio.Server], None]
"""Adds a service, e.g. `lambda server: add_RoundServiceServicer_to_server(rounds, server)`."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's certificate and key, and the CAs whose clients may connect (PEM).

    `credential` is called at every handshake, from a thread of gRPC.
    """

    credential: Callable[[], Credential]
    client_roots_pem: bytes


class RunningServer:
    """A server in its thread; a context manager that stops it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self.loop = loop
        self._thread = thread
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The bound port, also where the address asked for port 0."""
        return self._port

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """No new calls; running ones may end within `grace_s`, then they are cut. Idempotent."""
        if self._server is not None:
            self.run(self._server.stop(grace_s))
            self._server = None
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    def run(self, work: Coroutine[None, None, Result]) -> Result:
        """Runs a coroutine in the server's loop from another thread and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _serve(
        self,
        address: str,
        tls: ServerTls,
        gatekeeper: Gatekeeper,
        services: Sequence[Register],
        quotas: Quotas,
    ) -> None:
        server = grpc.aio.server(
            interceptors=(AccessInterceptor(gatekeeper, quotas),),
            options=server_options(connections_within(raise_descriptor_limit())),
            maximum_concurrent_rpcs=CONCURRENT_CALLS,
        )
        for register in services:
            register(server)
        self._port = _bind(server, address, tls)
        await server.start()
        self._server = server


def start_server(
    address: str,
    tls: ServerTls,
    gatekeeper: Gatekeeper,
    services: Sequence[Register],
    quotas: Quotas | None = None,
) -> RunningServer:
    """Serves on `address` ("host:port", port 0 for a free one) until it is stopped.

    Args:
        quotas: of calls; None: the defaults.

    Raises:
        ConfigError: the address cannot be bound.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run_loop, args=(loop,), name="offsite-server", daemon=True)
    thread.start()
    running = RunningServer(loop, thread)
    try:
        running.run(running._serve(address, tls, gatekeeper, services, quotas or Quotas()))
    except BaseException:
        running.stop()
        raise
    return running


def server_options(connections: int) -> list[tuple[str, int]]:
    """Channel arguments of grpc; times in milliseconds, sizes in bytes."""
    return [
        ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES),
        ("grpc.max_send_message_length", limits.CONTROL_MESSAGE_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        # Bit 0 alone: "identity" is the only encoding understood.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Edges ping at `KEEPALIVE_S` too; anything much faster is cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.KEEPALIVE_S * 500)),
        # Of one connection; an edge needs three, and more wait at its own end.
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
        # Whoever connects and stays silent is nobody yet, and costs a descriptor.
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
        ("grpc.max_allowed_incoming_connections", connections),
        # What a stream may send ahead of its reader. Left to itself gRPC grows it to 8 MiB and more:
        # measured, 300 MB for 40 uploads.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", SEND_AHEAD_BYTES),
        # Without this, two coordinators could share a port and split its clients.
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, address: str, tls: ServerTls) -> int:
    served = [tls.credential()]

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        # Nothing unless it changed: gRPC exchanges the factory of its handshakes for each answer,
        # without a lock, and crashes the process when many connections do so at once.
        current = tls.credential()
        if current == served[0]:
            return None
        served[0] = current
        return _configuration(tls, current)

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(tls, served[0]),
        # The stubs do not know that None stands for "as before".
        cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed),
        require_client_authentication=True,
    )
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {address}: the address is wrong or its port is in use; choose "
            "another one"
        ) from error


def _configuration(tls: ServerTls, current: Credential) -> grpc.ServerCertificateConfiguration:
    pairs = [(current.key_pem, current.cert_pem)]
    return grpc.ssl_server_certificate_configuration(pairs, tls.client_roots_pem)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
