"""The one translator from our errors to a gRPC status.

The class name travels as trailing metadata `offsite-error`, so that an edge raises what the
coordinator raised. Rules: a peer learns why its own input was refused; about the coordinator's
machine and configuration it learns nothing but that it may try again; what nobody expected is
logged with its traceback and told to nobody.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc

from offsite.secure.errors import (
    ERROR_KEY,
    RETRY_KEY,
    BusyError,
    ConfigError,
    ExpiredError,
    IdentityError,
    MachineError,
    OffsiteError,
    PeerError,
    PolicyError,
    TokenError,
    TransportError,
)

PUBLIC_TEXT_CHARS: Final = 500

BUSY_TEXT: Final = "the coordinator cannot do this now; try again later"
BUG_TEXT: Final = "the coordinator failed; its log says why"

Request = TypeVar("Request")
Response = TypeVar("Response")

_log = logging.getLogger(__name__)

# The first class that fits counts, so leaves stand before their roots.
_CODES: Final[tuple[tuple[type[OffsiteError], grpc.StatusCode], ...]] = (
    (TokenError, grpc.StatusCode.UNAUTHENTICATED),
    (IdentityError, grpc.StatusCode.PERMISSION_DENIED),
    (ExpiredError, grpc.StatusCode.FAILED_PRECONDITION),
    (PeerError, grpc.StatusCode.INVALID_ARGUMENT),
    (PolicyError, grpc.StatusCode.FAILED_PRECONDITION),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TransportError, grpc.StatusCode.UNAVAILABLE),
    (MachineError, grpc.StatusCode.UNAVAILABLE),
    (ConfigError, grpc.StatusCode.UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class PublicStatus:
    """What a peer is told."""

    code: grpc.StatusCode
    text: str
    error: str


def public_status(error: Exception) -> PublicStatus:
    """Status, public text and class name for an error that ended a call."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            if isinstance(error, MachineError | ConfigError):
                return PublicStatus(code, BUSY_TEXT, TransportError.__name__)
            return PublicStatus(code, str(error)[:PUBLIC_TEXT_CHARS], type(error).__name__)
    # The edge tries again: a bug here is no reason to end its part in the campaign.
    return PublicStatus(grpc.StatusCode.INTERNAL, BUG_TEXT, TransportError.__name__)


@asynccontextmanager
async def translated(
    context: grpc.aio.ServicerContext[Request, Response], method: str
) -> AsyncIterator[None]:
    """Ends the call with the status of whatever error its handler raises."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a handler raises must end its call
        status = public_status(error)
        _record(error, method, context.peer())
        await context.abort(status.code, _printable(status.text), _metadata(error, status))


def _metadata(error: Exception, status: PublicStatus) -> tuple[tuple[str, str], ...]:
    named = (ERROR_KEY, status.error)
    if isinstance(error, BusyError):
        return named, (RETRY_KEY, f"{error.retry_after_s:.3f}")
    return (named,)


def _record(error: Exception, method: str, peer: str) -> None:
    text = str(error)[:PUBLIC_TEXT_CHARS]  # it may quote a peer
    if isinstance(error, PeerError | PolicyError | TransportError):
        _log.info("%s from %s refused: %s: %s", method, peer, type(error).__name__, text)
    elif isinstance(error, OffsiteError):
        _log.error("%s failed: %s: %s", method, type(error).__name__, text, exc_info=error)
    else:
        _log.exception("%s failed", method, exc_info=error)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
