"""Carries the messages of the rounds between the mailbox and the edges.

Everything that decides lies in `mailbox.py` and `spool.py`; this is their shell on `grpc.aio`.
Notable: `Await` is a long poll that holds no thread while it waits, and an upload that comes back
after a cut takes over from the stream that it lost, even before the dead connection was noticed.
Draining ends the waiting and begins nothing new; what is coming in may come in to its end. How
many uploads are received at a time, and whose, decides `quotas.py`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import grpc

from offsite.coordinator.mailbox import CampaignStatus, Mailbox, Phase
from offsite.coordinator.policy.eligibility import Facts
from offsite.coordinator.service.interceptor import caller
from offsite.coordinator.service.quotas import Quotas
from offsite.coordinator.service.streaming import stream_file
from offsite.coordinator.spool import ReplyFile, Upload
from offsite.coordinator.tables.messages import MessageRow
from offsite.secure import limits
from offsite.secure.errors import PeerError, TransportError
from offsite.v1 import rounds_pb2 as pb
from offsite.v1 import rounds_pb2_grpc as pb_grpc

_PHASES: Final = {
    Phase.WAITING: pb.CAMPAIGN_PHASE_WAITING,
    Phase.RUNNING: pb.CAMPAIGN_PHASE_RUNNING,
    Phase.ENDED: pb.CAMPAIGN_PHASE_ENDED,
    Phase.FAILED: pb.CAMPAIGN_PHASE_FAILED,
    Phase.PAUSED: pb.CAMPAIGN_PHASE_PAUSED,
}
_OVER: Final = frozenset({Phase.ENDED, Phase.FAILED})
_REASON_CHARS: Final = 500
_MOST: Final = 2**63 - 1
_STOPPING: Final = "the coordinator is being stopped: try again once it is back"

_T = TypeVar("_T")


class RoundService(pb_grpc.RoundServiceServicer):
    """Serves one mailbox."""

    def __init__(
        self,
        mailbox: Mailbox,
        long_poll_s: float = limits.LONG_POLL_S,
        quotas: Quotas | None = None,
    ) -> None:
        """`quotas`: of uploads; None: the defaults."""
        self._mailbox = mailbox
        self._long_poll_s = long_poll_s
        self._quotas = quotas or Quotas()
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[asyncio.Event] = set()
        self._is_draining = False

    async def drain(self, most_s: float) -> int:
        """Begins nothing new and ends all waiting; returns once no upload is under way, or after
        `most_s` seconds, how many are. What they have stored is there when they are resumed."""
        self._is_draining = True
        for changed in self._waiting:
            changed.set()
        uploads = set(self._uploads.values())
        if uploads:
            _, uploads = await asyncio.wait(uploads, timeout=most_s)
        return len(uploads)

    def uploads_under_way(self) -> int:
        """How many replies are coming in."""
        return len(self._uploads)

    async def Await(
        self,
        request: pb.AwaitRequest,
        context: "grpc.aio.ServicerContext[pb.AwaitRequest, pb.AwaitResponse]",
    ) -> pb.AwaitResponse:
        client_id = caller()
        facts = _facts(request)
        await asyncio.to_thread(self._mailbox.heard_from, client_id, request.status, facts)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        until = time.monotonic() + self._long_poll_s
        with (
            self._mailbox.listening(client_id, _ringing(loop, changed)),
            self._waits(changed),
        ):
            while True:
                changed.clear()  # before looking, so that nothing falls between
                self._check_open()
                row = await asyncio.to_thread(self._mailbox.next_instruction, client_id)
                status = self._mailbox.status
                if row or status.phase in _OVER or not await _within(until, changed):
                    if status.phase in _OVER:
                        self._mailbox.tell_end(client_id)
                    misfit = await asyncio.to_thread(self._mailbox.misfit, client_id)
                    return _answer(status, row, misfit)

    async def FetchMessage(
        self,
        request: pb.FetchMessageRequest,
        context: "grpc.aio.ServicerContext[pb.FetchMessageRequest, pb.FetchMessageResponse]",
    ) -> AsyncIterator[pb.FetchMessageResponse]:
        self._check_open()
        path = await asyncio.to_thread(self._mailbox.instruction_path, caller(), request.message_id)
        async with aclosing(_unless_withdrawn(path, request.offset)) as chunks:
            async for data in chunks:
                yield pb.FetchMessageResponse(data=data)

    async def GetUpload(
        self,
        request: pb.GetUploadRequest,
        context: "grpc.aio.ServicerContext[pb.GetUploadRequest, pb.GetUploadResponse]",
    ) -> pb.GetUploadResponse:
        stored = await asyncio.to_thread(
            self._mailbox.stored_bytes,
            caller(),
            request.reply_to_message_id,
            request.sha256,
        )
        return pb.GetUploadResponse(stored_bytes=stored or 0, accepted=stored is None)

    async def Upload(
        self,
        request_iterator: AsyncIterator[pb.UploadRequest],
        context: "grpc.aio.ServicerContext[pb.UploadRequest, pb.UploadResponse]",
    ) -> pb.UploadResponse:
        client_id = caller()
        header = await _header(request_iterator)
        file = ReplyFile(header.reply_to_message_id, header.size_bytes, header.sha256)
        # Known to be the caller's before it may take over from another stream.
        await asyncio.to_thread(self._mailbox.stored_bytes, client_id, file.message_id, file.sha256)
        self._check_open()
        with self._quotas.uploading(client_id, file.size_bytes):
            receiving = self._receive(client_id, file, header.offset, request_iterator)
            await self._take_over(file.message_id, receiving)
        return pb.UploadResponse(sha256=file.sha256)

    def _check_open(self) -> None:
        if self._is_draining:
            raise TransportError(_STOPPING)

    @contextmanager
    def _waits(self, changed: asyncio.Event) -> Iterator[None]:
        self._waiting.add(changed)
        try:
            yield
        finally:
            self._waiting.discard(changed)

    async def _receive(
        self,
        client_id: str,
        file: ReplyFile,
        offset: int,
        requests: AsyncIterator[pb.UploadRequest],
    ) -> None:
        async with self._quotas.turn() as turn:
            self._check_open()
            upload = await _unbroken(self._mailbox.open_upload, client_id, file, offset)
            if upload is None:
                return
            try:
                while (data := await _next_data(requests)) is not None:
                    await _unbroken(upload.write, data)
                    turn.check()
                await _unbroken(self._mailbox.accept, client_id, upload)
            finally:
                upload.close()

    async def _take_over(self, message_id: str, work: Coroutine[None, None, None]) -> None:
        """Runs `work` as the only upload of a message, after stopping the one before it."""
        older = self._uploads.get(message_id)
        task = asyncio.create_task(_after(older, work))
        self._uploads[message_id] = task
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # our own stream was cut
            raise TransportError("a newer upload of the same reply took over") from None
        finally:
            if self._uploads.get(message_id) is task:
                del self._uploads[message_id]


async def _after(older: "asyncio.Task[None] | None", work: Coroutine[None, None, None]) -> None:
    try:
        if older is not None:
            older.cancel()
            await asyncio.wait([older])
    except asyncio.CancelledError:
        work.close()
        raise
    await work


async def _unbroken(call: "Callable[..., _T]", *arguments: object) -> _T:
    """Runs a call in a thread; a cancellation waits for it, so that files close after it."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled() and running.exception() is None:
            result = running.result()
            if isinstance(result, Upload):
                result.close()
        raise


async def _header(requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadHeader:
    first = await _next(requests)
    if first is None or first.WhichOneof("part") != "header":
        raise PeerError("expected the header of an upload, found data or nothing")
    return first.header


async def _next_data(requests: AsyncIterator[pb.UploadRequest]) -> bytes | None:
    request = await _next(requests)
    if request is None:
        return None
    if not request.data:
        raise PeerError("expected data, found an empty or second header part")
    return request.data


async def _next(requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadRequest | None:
    try:
        async with asyncio.timeout(limits.CALL_DEADLINE_S):
            return await anext(requests, None)
    except TimeoutError:
        raise TransportError(
            f"expected more of the upload within {limits.CALL_DEADLINE_S:.0f} s: resume it"
        ) from None


async def _unless_withdrawn(path: Path, offset: int) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(stream_file(path, offset)) as chunks:
            async for data in chunks:
                yield data
    except FileNotFoundError:
        raise PeerError("the message was withdrawn: wait for the next instruction") from None


async def _within(until: float, changed: asyncio.Event) -> bool:
    """Waits for a change; False once the time is up."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await changed.wait()
    except TimeoutError:
        return False


def _ringing(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> Callable[[], None]:
    def ring() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(changed.set)

    return ring


def _facts(request: pb.AwaitRequest) -> Facts | None:
    """What the client states now; None: as it was. The database holds no more than 63 bits."""
    if not request.HasField("facts"):
        return None
    stated = request.facts
    memory = min(stated.free_memory_bytes, _MOST) if stated.HasField("free_memory_bytes") else None
    examples = min(stated.examples, _MOST) if stated.HasField("examples") else None
    return Facts(stated.version, memory, examples)


def _answer(status: CampaignStatus, row: MessageRow | None, misfit: str) -> pb.AwaitResponse:
    return pb.AwaitResponse(
        phase=_PHASES[status.phase],
        instruction=_ref(row),
        reason=status.reason[:_REASON_CHARS],
        misfit=misfit[:_REASON_CHARS],
    )


def _ref(row: MessageRow | None) -> pb.MessageRef | None:
    if row is None:
        return None
    return pb.MessageRef(
        message_id=row.message_id,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        deadline_unix_s=row.deadline_unix_s,
    )
