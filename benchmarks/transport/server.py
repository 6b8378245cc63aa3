"""The server processes: the real service with the baseline beside it, and the baseline alone."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from benchmarks.transport.release import FILE
from benchmarks.transport.saying import memory_mb, say
from offsite.coordinator.gatekeeper import Gatekeeper, Peer, PeerRole
from offsite.coordinator.service.artefacts import ArtefactService
from offsite.coordinator.service.server import Register, ServerTls, start_server
from offsite.secure import certificates, limits
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1 import artefacts_pb2_grpc as pb_grpc


class Anyone(Gatekeeper):
    """Lets every peer in whom the handshake let in."""

    def __init__(self) -> None:
        """Needs no database."""

    def identify(self, cert_pem: bytes) -> Peer:
        """The one client of the benchmark."""
        return Peer(PeerRole.CLIENT, "edge")


class CountingArtefacts(ArtefactService):
    """The real service; counts what it hands to gRPC."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sent = 0

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        async for response in super().Fetch(request, context):
            self.sent += len(response.data)
            yield response


def serve(work: Path) -> None:
    """The real service, and the baseline beside it."""
    artefacts = CountingArtefacts(work / "release")

    async def sent(
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchRequest]",
    ) -> pb.FetchRequest:
        count, artefacts.sent = artefacts.sent, 0
        return pb.FetchRequest(offset=count)

    handler = grpc.unary_unary_rpc_method_handler(
        sent, pb.FetchRequest.FromString, pb.FetchRequest.SerializeToString
    )

    def register(server: grpc.aio.Server) -> None:
        pb_grpc.add_ArtefactServiceServicer_to_server(artefacts, server)
        sent_handler = grpc.method_handlers_generic_handler(
            "offsite.benchmark.Count", {"Sent": handler}
        )
        server.add_generic_rpc_handlers((sent_handler,))

    _serve(work, [register, _bare_service(work)])


def serve_bare(work: Path) -> None:
    """The baseline alone, with nothing of ours in the process but the way it is started."""
    _serve(work, [_bare_service(work)])


def _serve(work: Path, services: list[Register]) -> None:
    """Serves until a line arrives on standard input; then says how much memory it took."""
    credential = certificates.Credential(
        (work / "server.pem").read_bytes(), (work / "server.key").read_bytes()
    )
    tls = ServerTls(lambda: credential, (work / "ca.pem").read_bytes())
    with start_server("127.0.0.1:0", tls, Anyone(), services) as running:
        say(port=running.port, idle_mb=memory_mb("VmRSS"))
        sys.stdin.readline()
        say(peak_mb=memory_mb("VmHWM"))


def _bare_service(work: Path) -> Register:
    descriptor = os.open(work / "release" / FILE, os.O_RDONLY)

    async def bare(
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        offset = 0
        while data := os.pread(descriptor, limits.CHUNK_BYTES, offset):
            offset += len(data)
            yield pb.FetchResponse(data=data)

    handler = grpc.unary_stream_rpc_method_handler(
        bare, pb.FetchRequest.FromString, pb.FetchResponse.SerializeToString
    )

    def register(server: grpc.aio.Server) -> None:
        handlers = grpc.method_handlers_generic_handler(
            "offsite.benchmark.Bare", {"Stream": handler}
        )
        server.add_generic_rpc_handlers((handlers,))

    return register
