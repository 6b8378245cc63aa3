"""Releases to fetch: one file of pseudo-random bytes, signed; and services that misbehave."""

import random
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from offsite.coordinator.service.artefacts import ArtefactService
from offsite.coordinator.service.server import Register
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.manifest import MANIFEST_NAME, MANIFEST_TYPE, Manifest, ReleaseFacts
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.secure import limits
from offsite.secure.envelope import sign, to_bytes
from offsite.secure.errors import TransportError
from offsite.secure.identity import IdentityKey
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1.artefacts_pb2_grpc import add_ArtefactServiceServicer_to_server

SIGNER = IdentityKey.from_seed(bytes(range(32)))
FILE = "emulator.safetensors"
CHUNKS = 5
SIZE = CHUNKS * limits.CHUNK_BYTES - 1000


def write_release(
    folder: Path, version: int = 1, seed: int = 0, ttl_s: int = 86_400, base: str = "00" * 32
) -> bytes:
    """Writes a release over the one in `folder`; returns the bytes of its file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = random.Random(seed).randbytes(SIZE)
    with ChunkedFile(folder, FILE) as file:
        file.write(data)
        entry = file.finish()
    now = int(time.time())
    facts = ReleaseFacts("test", version, now - 60, now + ttl_s, "tiny", base, "none", 1.0, {})
    layer_map = LayerMap.of(Placement(1, 1), 3, [1])
    manifest = Manifest(facts, layer_map, AdapterSpec(AdapterKind.WHOLE_BLOCK), (entry,))
    envelope = sign(MANIFEST_TYPE, manifest.to_bytes(), SIGNER)
    (folder / MANIFEST_NAME).write_bytes(to_bytes(envelope))
    return data


class Line(ArtefactService):
    """The real service on a bad line: what it does with each stream is a queue of faults."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.offsets: list[int] = []
        self.sent: list[int] = []
        self.cuts: list[int] = []
        """Chunks after which the next streams of the large file are cut."""
        self.flip: int | None = None
        """Chunk of which one bit is flipped on its way."""
        self.shortened: int | None = None
        """Chunk that lacks its last byte."""
        self.surplus = b""
        """What is sent behind the end of the large file."""

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        large = self._index.file(request.sha256).name == FILE
        cut = self.cuts.pop(0) if large and self.cuts else None
        if large:
            self.offsets.append(request.offset)
            self.sent.append(0)
        index = request.offset // limits.CHUNK_BYTES
        async for response in super().Fetch(request, context):
            if cut is not None and self.sent[-1] == cut:
                raise TransportError("the line was cut")
            if large:
                self.sent[-1] += 1
                if index == self.flip:
                    response.data = bytes([response.data[0] ^ 1]) + response.data[1:]
                if index == self.shortened:
                    response.data = response.data[:-1]
            index += 1
            yield response
        if large and self.surplus:
            yield pb.FetchResponse(data=self.surplus)


def artefacts(service: ArtefactService) -> Register:
    def register(server: grpc.aio.Server) -> None:
        add_ArtefactServiceServicer_to_server(service, server)

    return register
