"""Streams the release bundle.

Files are named by the SHA-256 of their bytes and found only through the published manifest, those of
variants through theirs, which it names by digest too: there is no path in a request, so none can
lead out of the folder, and a stream resumed after a new release can never continue into another
file.

The bundle folder is replaced as a whole (rename) when a release is published, also by another
process; the index follows the manifest file. A stream under way keeps the file that it opened.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from offsite.coordinator.service.interceptor import caller
from offsite.coordinator.service.streaming import stream_file
from offsite.emulator.bundle.manifest import MANIFEST_NAME, Manifest
from offsite.emulator.bundle.variants import check_envelope, variant_folder
from offsite.emulator.heap import keep_freed_buffers
from offsite.secure.envelope import Envelope, from_bytes
from offsite.secure.errors import IntegrityError, PeerError, TransportError
from offsite.secure.wire import to_wire
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1 import artefacts_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class PublishedRelease:
    """The published manifest, and where the file of each digest lies."""

    envelope: Envelope
    files: Mapping[bytes, Path]


class ReleaseIndex:
    """The release in a bundle folder, read again when its manifest changes."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._stamp: tuple[int, int] | None = None
        self._release: PublishedRelease | None = None

    def current(self) -> PublishedRelease:
        """The release that is published now.

        Raises:
            TransportError: there is none yet.
        """
        path = self._folder / MANIFEST_NAME
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if self._release is None or stamp != self._stamp:
                self._release, self._stamp = _read(self._folder), stamp
        except FileNotFoundError:
            raise TransportError("no release is published yet: try again later") from None
        except IntegrityError:
            status = path.stat()
            if (status.st_ino, status.st_mtime_ns) == stamp:
                raise
            raise TransportError("a new release is being published: try again") from None
        return self._release

    def file(self, sha256: bytes) -> Path:
        """The file with this digest in the current release.

        Raises:
            PeerError: it has none.
        """
        path = self.current().files.get(sha256)
        if path is None:
            raise PeerError(
                f"the current release has no file with SHA-256 {sha256[:32].hex()}: ask for the "
                "release again, a new one may have been published"
            )
        return path


def _read(folder: Path) -> PublishedRelease:
    envelope = from_bytes((folder / MANIFEST_NAME).read_bytes())
    manifest = Manifest.from_bytes(envelope.payload)
    files = _files(folder, manifest)
    for variant in manifest.variants:
        path = variant_folder(folder, variant.name) / MANIFEST_NAME
        signed = path.read_bytes()
        check_envelope(variant, signed)
        files[variant.manifest_sha256] = path
        files |= _files(path.parent, Manifest.from_bytes(from_bytes(signed).payload))
    return PublishedRelease(envelope, files)


def _files(folder: Path, manifest: Manifest) -> dict[bytes, Path]:
    files: dict[bytes, Path] = {}
    for entry in manifest.files:
        files[entry.sha256] = folder / entry.path
        files[entry.chunks_sha256] = folder / entry.chunks_path
    return files


class ArtefactService(pb_grpc.ArtefactServiceServicer):
    """Serves the release in one bundle folder."""

    def __init__(self, folder: Path) -> None:
        keep_freed_buffers()
        self._index = ReleaseIndex(folder)

    async def GetRelease(
        self,
        request: pb.GetReleaseRequest,
        context: "grpc.aio.ServicerContext[pb.GetReleaseRequest, pb.GetReleaseResponse]",
    ) -> pb.GetReleaseResponse:
        caller()
        release = await asyncio.to_thread(self._index.current)
        return pb.GetReleaseResponse(manifest=to_wire(release.envelope))

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        caller()
        path = await asyncio.to_thread(self._index.file, request.sha256)
        async with aclosing(stream_file(path, request.offset)) as chunks:
            async for data in chunks:
                yield pb.FetchResponse(data=data)
