"""What is tried again, how often, and after which pauses."""

import grpc
import pytest
from tests.edge_client.test_channel import Failure

from offsite.edge_client.resume import Persistence
from offsite.secure import limits
from offsite.secure.errors import OffsiteError, TransportError

PATIENT = Persistence(sleep=lambda _: None)


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.calls, self._failures, self._error = 0, failures, error

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return "answer"


UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)


def test_what_did_not_arrive_is_tried_again_with_full_jitter() -> None:
    pauses: list[float] = []
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high / 2

    flaky = Flaky(limits.RETRIES, UNAVAILABLE)
    assert Persistence(sleep=pauses.append, uniform=uniform).run(flaky) == "answer"
    assert [low for low, _ in bounds] == [0.0] * limits.RETRIES
    assert [high for _, high in bounds] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert pauses == [high / 2 for _, high in bounds]


def test_retries_are_bounded() -> None:
    flaky = Flaky(100, UNAVAILABLE)
    with pytest.raises(TransportError):
        PATIENT.run(flaky)
    assert flaky.calls == 1 + limits.RETRIES


def test_as_long_as_bytes_move_it_is_not_given_up() -> None:
    moved, flaky = [0], Flaky(5 * limits.RETRIES, UNAVAILABLE)

    def attempt() -> str:
        moved[0] += 1
        return flaky()

    assert PATIENT.run(attempt, lambda: moved[0]) == "answer"


@pytest.mark.parametrize(
    "error",
    [
        Failure(grpc.StatusCode.UNAUTHENTICATED, error="TokenError"),
        Failure(grpc.StatusCode.PERMISSION_DENIED),
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (2 vs. 1)"),
        Failure(grpc.StatusCode.UNAVAILABLE, "Tls handshake failed (TSI_PROTOCOL_FAILURE)"),
    ],
)
def test_a_refusal_is_not_tried_again(error: Failure) -> None:
    flaky = Flaky(100, error)
    with pytest.raises(OffsiteError):
        PATIENT.run(flaky)
    assert flaky.calls == 1
