"""What a peer learns of an error: by whose fault it is, and nothing about this machine."""

import grpc
import pytest

from offsite.coordinator.service.errors import BUG_TEXT, BUSY_TEXT, PublicStatus, public_status
from offsite.secure.errors import MachineError, OffsiteError, PeerError


@pytest.mark.parametrize("error", [KeyError("/secret"), OSError(5, "/secret"), OffsiteError("/s")])
def test_a_bug_here_is_tried_again_by_the_edge(error: Exception) -> None:
    expected = PublicStatus(grpc.StatusCode.INTERNAL, BUG_TEXT, "TransportError")
    assert public_status(error) == expected


def test_a_machine_that_cannot_is_only_busy() -> None:
    expected = PublicStatus(grpc.StatusCode.UNAVAILABLE, BUSY_TEXT, "TransportError")
    assert public_status(MachineError("cannot write /secret")) == expected


def test_a_peers_own_fault_is_named() -> None:
    expected = PublicStatus(grpc.StatusCode.INVALID_ARGUMENT, "found 3", "PeerError")
    assert public_status(PeerError("found 3")) == expected
