"""Says which engine carries the rounds, and passes the calls of SuperNodes on where it is Flower.

Everything that decides lies in `engines/flower/tunnel.py`; this is its shell on `grpc.aio`.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc

from offsite.coordinator.engines.flower.tunnel import FleetTunnel
from offsite.coordinator.service.interceptor import caller
from offsite.emulator.engines.flower.fleet_wire import FleetCall, check_body_bytes, chunks
from offsite.secure import limits
from offsite.secure.errors import PeerError, TransportError
from offsite.v1 import fleet_pb2 as pb
from offsite.v1 import fleet_pb2_grpc as pb_grpc


class FleetService(pb_grpc.FleetServiceServicer):
    """Without a tunnel, rounds travel by `RoundService` and there is nothing to pass on."""

    def __init__(self, tunnel: FleetTunnel | None) -> None:
        self._tunnel = tunnel

    async def GetEngine(
        self,
        request: pb.GetEngineRequest,
        context: "grpc.aio.ServicerContext[pb.GetEngineRequest, pb.GetEngineResponse]",
    ) -> pb.GetEngineResponse:
        engine = pb.ENGINE_GRPC if self._tunnel is None else pb.ENGINE_FLOWER
        return pb.GetEngineResponse(engine=engine)

    async def RegisterNode(
        self,
        request: pb.RegisterNodeRequest,
        context: "grpc.aio.ServicerContext[pb.RegisterNodeRequest, pb.RegisterNodeResponse]",
    ) -> pb.RegisterNodeResponse:
        await self._open().register(caller(), request.public_key_pem)
        return pb.RegisterNodeResponse()

    async def Tunnel(
        self,
        request_iterator: AsyncIterator[pb.TunnelRequest],
        context: "grpc.aio.ServicerContext[pb.TunnelRequest, pb.TunnelResponse]",
    ) -> AsyncIterator[pb.TunnelResponse]:
        client_id, tunnel = caller(), self._open()
        header = await _header(request_iterator)
        headers = dict(header.headers)
        tunnel.check(client_id, header.path, headers)
        call = FleetCall(header.path, headers, await _body(request_iterator))
        answer = await tunnel.answer(client_id, call)
        yield pb.TunnelResponse(
            answer=pb.TunnelAnswer(status=answer.status, content_type=answer.content_type)
        )
        for data in chunks(answer.body):
            yield pb.TunnelResponse(data=data)

    def _open(self) -> FleetTunnel:
        if self._tunnel is None:
            raise PeerError("expected calls of RoundService: no Flower carries the rounds here")
        return self._tunnel


async def _header(requests: AsyncIterator[pb.TunnelRequest]) -> pb.TunnelCall:
    first = await _next(requests)
    if first is None or first.WhichOneof("part") != "call":
        raise PeerError("expected the header of a call, found data or nothing")
    return first.call


async def _body(requests: AsyncIterator[pb.TunnelRequest]) -> bytes:
    body = bytearray()
    while (part := await _next(requests)) is not None:
        if part.WhichOneof("part") != "data" or not part.data:
            raise PeerError("expected data, found an empty or second header part")
        body += part.data
        check_body_bytes(len(body))
    return bytes(body)


async def _next(requests: AsyncIterator[pb.TunnelRequest]) -> pb.TunnelRequest | None:
    try:
        async with asyncio.timeout(limits.CALL_DEADLINE_S):
            return await anext(requests, None)
    except TimeoutError:
        raise TransportError(
            f"expected more of the call within {limits.CALL_DEADLINE_S:.0f} s: try again"
        ) from None
