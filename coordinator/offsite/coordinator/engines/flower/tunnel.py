"""The one way from an edge's SuperNode to the SuperLink behind our port.

    our port (mutual TLS, directory) ─> rules of `fleet_wire` ─> the node's key is the caller's ─> SuperLink

Notable: a question for messages is held while there are none, and answered when the coordinator has
sent some: a stock SuperNode asks every three seconds, which would cost a round of a sum half a
minute. Each call is a line in `flower/tunnel.log`: who, what, how much, how it was answered.

Rules it enforces: no call but those of a node, no key but the one that the caller told; between two
instructions a client pushes no more than a reply can have.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from offsite.coordinator.engines.flower.node_keys import NodeKeys
from offsite.emulator.engines.flower.children import BoundedLog
from offsite.emulator.engines.flower.fleet_wire import (
    HOLD_S,
    PUBLIC_KEY,
    PULL_MESSAGES,
    PUSH_OBJECT,
    FleetAnswer,
    FleetCall,
    check_body_bytes,
    check_call,
)
from offsite.secure import limits
from offsite.secure.errors import IdentityError, PolicyError

THREADS: Final = 16
"""Calls to the SuperLink at a time, which itself does one after the other."""
LOOK_AGAIN_S: Final = 5.0
"""While a question is held the SuperLink is asked again so often, for what nobody rang for."""
FRAME_BYTES: Final = 16 * limits.MIB
"""What a reply is beside its largest array."""

_log = logging.getLogger(__name__)


class Bell:
    """Rung when instructions were sent; tunnels that hold a question wait for it."""

    def __init__(self) -> None:
        self._waiting: set[Callable[[], None]] = set()

    def ring(self) -> None:
        """From any thread."""
        for wake in list(self._waiting):
            wake()

    async def heard(self, within_s: float) -> bool:
        """Waits for the bell."""
        loop, rung = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(rung.set)

        self._waiting.add(wake)
        try:
            async with asyncio.timeout(within_s):
                return await rung.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(wake)


class FleetTunnel:
    """Passes calls of nodes on, in the event loop of the service."""

    def __init__(
        self,
        call: Callable[[FleetCall], FleetAnswer],
        let_in: Callable[[bytes, str], None],
        keys: NodeKeys,
        bell: Bell,
        audit: BoundedLog,
        most_reply_bytes: int,
        hold_s: float = HOLD_S,
    ) -> None:
        """`call` asks the SuperLink, `let_in` shows it a client's key; both block.

        `most_reply_bytes`: of one reply.
        """
        self._call = call
        self._let_in = let_in
        self._keys = keys
        self._bell = bell
        self._audit = audit
        self._most = most_reply_bytes + FRAME_BYTES
        self._hold_s = hold_s
        self._pushed: defaultdict[str, int] = defaultdict(int)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tunnel")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def register(self, client_id: str, public_key_pem: bytes) -> None:
        """Takes the key that a client's SuperNode signs with.

        Raises:
            IdentityError: it is none, or another client's.
            TransportError: the SuperLink is not there.
        """

        def take() -> None:
            self._let_in(self._keys.set(client_id, public_key_pem), client_id)

        await asyncio.get_running_loop().run_in_executor(self._threads, take)

    def check(self, client_id: str, path: str, headers: Mapping[str, str]) -> None:
        """Before a byte of the body is read.

        Raises:
            PeerError: it is no call of a node.
            IdentityError: it is signed with another key than the caller's own.
        """
        check_call(path, headers)
        known, found = self._keys.of(client_id), _key_of(headers)
        if known is None or not hmac.compare_digest(known, found):
            self._note(client_id, path, 0, "refused: not the key of this client", 0)
            raise IdentityError(
                f"expected a call signed with the node key of {client_id}, found another key"
            )

    async def answer(self, client_id: str, call: FleetCall) -> FleetAnswer:
        """What the SuperLink says to a call that was checked.

        Raises:
            PolicyError: more was pushed than a reply can have.
        """
        check_body_bytes(len(call.body))
        self._count(client_id, call)
        if call.path == PULL_MESSAGES:
            answer = await self._held(call)
        else:
            answer = await self._asked(call)
        if call.path == PULL_MESSAGES and answer.status == 200 and answer.body:
            self._pushed.pop(client_id, None)  # the next reply begins
        self._note(client_id, call.path, len(call.body), str(answer.status), len(answer.body))
        return answer

    async def _held(self, call: FleetCall) -> FleetAnswer:
        until = time.monotonic() + self._hold_s
        while (answer := await self._asked(call)).is_empty:
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            await self._bell.heard(min(left_s, LOOK_AGAIN_S))
        return answer

    async def _asked(self, call: FleetCall) -> FleetAnswer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, call)

    def _count(self, client_id: str, call: FleetCall) -> None:
        if call.path != PUSH_OBJECT:
            return
        self._pushed[client_id] += len(call.body)
        if self._pushed[client_id] > self._most:
            raise PolicyError(
                f"expected a reply of at most {self._most} bytes, found more: wait for the next "
                "instruction"
            )

    def _note(self, client_id: str, path: str, up: int, answer: str, down: int) -> None:
        line = f"{time.time():.3f} {client_id} {path} {up} bytes up, {answer}, {down} bytes down\n"
        self._audit.write(line.encode())


def _key_of(headers: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(headers.get(PUBLIC_KEY, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""
