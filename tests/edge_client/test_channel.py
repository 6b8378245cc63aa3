"""The translation of gRPC's statuses into errors of ours, without a server."""

import socket
from pathlib import Path

import grpc
import pytest

from offsite.edge_client.channel import error_of, open_channel, translated
from offsite.edge_client.state import EdgeState, Membership
from offsite.secure import certificates, directory
from offsite.secure.directory import Directory
from offsite.secure.errors import (
    IdentityError,
    PeerError,
    PolicyError,
    TokenError,
    TransportError,
)
from offsite.secure.identity import IdentityKey


class Failure(grpc.RpcError, grpc.Call):
    """A failed call as grpc reports it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", error: str | None = None) -> None:
        self._code, self._details, self._error = code, details, error

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._error is None else (("offsite-error", self._error),)

    initial_metadata = trailing_metadata

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(grpc.StatusCode.UNAUTHENTICATED, error="TokenError"), TokenError),
        (Failure(grpc.StatusCode.FAILED_PRECONDITION, error="PolicyError"), PolicyError),
        (Failure(grpc.StatusCode.UNAVAILABLE, error="TransportError"), TransportError),
        (Failure(grpc.StatusCode.INTERNAL, error="OffsiteError"), TransportError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, error="ConfigError"), TransportError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, error="MachineError"), TransportError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, error="DiskFullError"), TransportError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, error="StateLockedError"), TransportError),
        (Failure(grpc.StatusCode.UNAVAILABLE, error="SystemExit"), TransportError),
        (Failure(grpc.StatusCode.UNAVAILABLE, error="IdentityPublicKey"), TransportError),
        (Failure(grpc.StatusCode.UNAUTHENTICATED), IdentityError),
        (Failure(grpc.StatusCode.UNIMPLEMENTED), PeerError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT), PeerError),
        (
            Failure(grpc.StatusCode.UNAVAILABLE, "Hostname Verification Check failed."),
            IdentityError,
        ),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), TransportError),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED), TransportError),
        (Failure(grpc.StatusCode.CANCELLED), TransportError),
        (Failure(grpc.StatusCode.UNKNOWN), TransportError),
        (grpc.RpcError("odd"), TransportError),
    ],
)
def test_every_status_is_an_error_of_ours(failure: grpc.RpcError, kind: type) -> None:
    assert type(error_of(failure)) is kind


def test_other_errors_pass_untouched() -> None:
    with pytest.raises(KeyError), translated():
        raise KeyError


def test_nobody_at_the_address_is_a_transport_error(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with EdgeState.open(tmp_path / "edge") as state:
            save(state, address)
            with (
                open_channel(state) as channel,
                pytest.raises(TransportError, match="no answer from the coordinator"),
                translated(),
            ):
                channel.unary_unary("/offsite.v1.Any/Any")(b"", timeout=10)


def save(state: EdgeState, address: str) -> None:
    """An enrolment with a self-made CA."""
    pinned = IdentityKey.from_seed(b"d" * 32)
    bootstrap = certificates.bootstrap_client(b"b" * 32, 1_800_000_000.0)
    state.save_enrolment(
        Membership("a", address, b"t" * 16, pinned.public),
        bootstrap.key_pem + bootstrap.cert_pem,
        certificates.bootstrap_authority(b"b" * 32).cert_pem,
        directory.sign_directory(Directory(), pinned),
    )
