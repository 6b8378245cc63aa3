"""Connections to the coordinator: mutual TLS, every limit set, errors of ours.

Notable: the coordinator is authenticated by the CA that the join token pinned plus one fixed name
in its certificate, so its address may be any DNS name, forwarded port or IP. What the coordinator
refused is raised here as the class that it raised there, if that class is about what was sent;
whatever did not arrive is a TransportError, and only that is tried again (see `resume.py`).

Rule: a peer never speaks for this machine or its user, so no MachineError or ConfigError of this
side is ever the coordinator's doing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from grpc.experimental import ChannelOptions

from offsite.edge_client.state import EdgeState
from offsite.secure import certificates, errors, limits, names
from offsite.secure.errors import (
    ERROR_KEY,
    RETRY_KEY,
    BusyError,
    IdentityError,
    OffsiteError,
    PeerError,
    PolicyError,
    TransportError,
)
from offsite.secure.token import JoinToken

KEEPALIVE_TIMEOUT_S: Final = 10.0
MOST_RETRY_AFTER_S: Final = 60.0
"""The longest pause that a coordinator may ask for at a time."""

# By name, as the coordinator may send them.
_ERRORS: Final = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PeerError | PolicyError | TransportError)
}
_NOT_RETRIED: Final = {
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.PERMISSION_DENIED: IdentityError,
    grpc.StatusCode.INVALID_ARGUMENT: PeerError,
    grpc.StatusCode.FAILED_PRECONDITION: PeerError,
    grpc.StatusCode.OUT_OF_RANGE: PeerError,
    grpc.StatusCode.UNIMPLEMENTED: PeerError,
}
"""Statuses that another try would not change; every other one means that nothing arrived."""
_TLS_FAILURES: Final = ("Tls handshake failed", "Hostname Verification Check failed")


def open_channel(state: EdgeState) -> grpc.Channel:
    """A channel as the enrolled client; opens no connection before the first call."""
    tls_pem = state.tls_pem()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=state.ca_pem(), private_key=tls_pem, certificate_chain=tls_pem
    )
    return _secure_channel(state.membership().address, credentials)


def open_bootstrap_channel(token: JoinToken, now_unix_s: float) -> grpc.Channel:
    """A channel as the holder of a join token, good for enrolment only."""
    bootstrap = certificates.bootstrap_client(token.bootstrap_seed, now_unix_s)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=certificates.cert_pem_of(token.ca_cert_der),
        private_key=bootstrap.key_pem,
        certificate_chain=bootstrap.cert_pem,
    )
    return _secure_channel(token.address, credentials)


@contextmanager
def translated() -> Iterator[None]:
    """Raises what gRPC reports as an error of ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from error


def error_of(error: grpc.RpcError) -> OffsiteError:
    """The error of ours for a call that failed."""
    if not isinstance(error, grpc.Call):
        return TransportError(f"the call to the coordinator failed: {error}")
    details = error.details() or ""
    metadata = dict(error.trailing_metadata() or ())
    raised = metadata.get(ERROR_KEY)
    if raised == BusyError.__name__:
        retry_after_s = _seconds(metadata.get(RETRY_KEY))
        return BusyError(f"the coordinator answered: {details}", retry_after_s)
    if isinstance(raised, str) and raised in _ERRORS:
        return _ERRORS[raised](f"the coordinator answered: {details}")
    if raised is not None:  # no class that the coordinator may choose
        return TransportError(f"the coordinator could not answer: {details}")
    return _untold_error(error.code(), details)


def _seconds(text: str | bytes | None) -> float:
    """What the coordinator says, within bounds: it may not make this edge wait for ever."""
    try:
        seconds = float(text or limits.RETRY_BASE_S)
    except ValueError:
        return limits.RETRY_BASE_S
    return min(max(seconds, 0.0), MOST_RETRY_AFTER_S) if math.isfinite(seconds) else 0.0


def _untold_error(code: grpc.StatusCode, details: str) -> OffsiteError:
    """What gRPC itself reported, without a word from the coordinator's handlers."""
    if any(sign in details for sign in _TLS_FAILURES):
        return IdentityError(
            "what answers at the address is not the coordinator that the token pinned; check the "
            f"address and ask for a new token ({details})"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return PeerError(f"a message is above the limit of the protocol: {details}")
    if code in _NOT_RETRIED:
        return _NOT_RETRIED[code](f"the coordinator refused the call: {details}")
    if "Socket closed" in details:
        details += "; if it is up, it does not accept this certificate: ask for a new token"
    return TransportError(f"no answer from the coordinator ({code.name}): {details}")


def _secure_channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    return grpc.secure_channel(address, credentials, options=channel_options())


def channel_options() -> list[tuple[str, int | str]]:
    """Channel arguments of grpc; times in milliseconds, sizes in bytes."""
    return [
        ("grpc.ssl_target_name_override", names.SERVER_NAME),
        ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES),
        ("grpc.max_send_message_length", limits.CONTROL_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", int(limits.RETRY_BASE_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(limits.RETRY_CAP_S * 1000)),
        # Retries are ours: they are counted, and know what may be sent twice.
        ("grpc.enable_retries", 0),
        # A closed channel closes its connection, whatever other channels there are.
        ("grpc.use_local_subchannel_pool", 1),
        # A stream is read by the thread that uses it, not by one more that hands every chunk over:
        # a fifth of the time that a release takes.
        (ChannelOptions.SingleThreadedUnaryStream, 1),
    ]
