"""The release as it is served: by digest alone, from any chunk, following the folder."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
from tests.edge_client.releases import FILE, SIZE, artefacts, write_release
from tests.loopback import serving
from tests.varied import tiny_varied

from offsite.coordinator.gatekeeper import Peer, PeerRole
from offsite.coordinator.service import artefacts as module
from offsite.coordinator.service.artefacts import ArtefactService, ReleaseIndex
from offsite.coordinator.service.interceptor import _peer
from offsite.emulator.bundle.manifest import CHUNKS_SUFFIX, MANIFEST_NAME
from offsite.secure import limits
from offsite.secure.envelope import to_bytes
from offsite.secure.errors import IntegrityError
from offsite.secure.wire import from_wire
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1.artefacts_pb2_grpc import ArtefactServiceStub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_release(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def stub(folder: Path) -> Iterator[ArtefactServiceStub]:
    with serving(artefacts(ArtefactService(folder))) as loopback, loopback.channel("anna") as line:
        yield ArtefactServiceStub(line)


def fetch(stub: ArtefactServiceStub, data: bytes, offset: int = 0) -> list[bytes]:
    request = pb.FetchRequest(sha256=hashlib.sha256(data).digest(), offset=offset)
    return [response.data for response in stub.Fetch(request, timeout=30)]


def test_the_manifest_is_served_as_it_was_signed(stub: ArtefactServiceStub, folder: Path) -> None:
    wire = stub.GetRelease(pb.GetReleaseRequest(), timeout=30).manifest
    assert to_bytes(from_wire(wire)) == (folder / MANIFEST_NAME).read_bytes()


@pytest.mark.parametrize("name", [FILE, FILE + CHUNKS_SUFFIX])
def test_every_file_is_found_by_its_digest(
    stub: ArtefactServiceStub, folder: Path, name: str
) -> None:
    data = (folder / name).read_bytes()
    assert b"".join(fetch(stub, data)) == data


@pytest.mark.parametrize("offset", [limits.CHUNK_BYTES, 4 * limits.CHUNK_BYTES, SIZE])
def test_a_stream_starts_at_any_chunk_and_keeps_to_chunks(
    stub: ArtefactServiceStub, folder: Path, offset: int
) -> None:
    data = (folder / FILE).read_bytes()
    parts = fetch(stub, data, offset)
    assert b"".join(parts) == data[offset:]
    assert all(len(part) == limits.CHUNK_BYTES for part in parts[:-1])


@pytest.mark.parametrize("offset", [1, SIZE - 1, SIZE + 1])
def test_another_offset_is_refused(stub: ArtefactServiceStub, folder: Path, offset: int) -> None:
    with pytest.raises(grpc.RpcError, match="expected an offset that is a multiple of"):
        fetch(stub, (folder / FILE).read_bytes(), offset)


@pytest.mark.parametrize("sha256", [b"", bytes(32), b"../../etc/passwd", bytes(100_000)])
def test_nothing_else_is_served(stub: ArtefactServiceStub, sha256: bytes) -> None:
    with pytest.raises(grpc.RpcError, match="has no file with SHA-256"):
        list(stub.Fetch(pb.FetchRequest(sha256=sha256), timeout=30))


def test_files_beside_the_manifest_are_not_served(stub: ArtefactServiceStub, folder: Path) -> None:
    (folder / "secret").write_bytes(b"not of the release")
    with pytest.raises(grpc.RpcError, match="has no file with SHA-256"):
        fetch(stub, b"not of the release")


def test_variants_are_served_by_digest_their_manifests_too(tmp_path: Path) -> None:
    tiny_varied(tmp_path / "model").release(tmp_path / "varied")
    service = ArtefactService(tmp_path / "varied")
    with serving(artefacts(service)) as loopback, loopback.channel("anna") as line:
        stub = ArtefactServiceStub(line)
        wire = stub.GetRelease(pb.GetReleaseRequest(), timeout=30).manifest
        assert to_bytes(from_wire(wire)) == (tmp_path / "varied" / MANIFEST_NAME).read_bytes()
        for path in (tmp_path / "varied").rglob("*"):
            if path.is_file() and path != tmp_path / "varied" / MANIFEST_NAME:
                assert b"".join(fetch(stub, path.read_bytes())) == path.read_bytes()
        (tmp_path / "varied" / "variants" / "small" / "secret").write_bytes(b"beside")
        with pytest.raises(grpc.RpcError, match="has no file with SHA-256"):
            fetch(stub, b"beside")


def test_a_damaged_manifest_of_a_variant_is_not_served(tmp_path: Path) -> None:
    tiny_varied(tmp_path / "model").release(tmp_path / "varied")
    path = tmp_path / "varied" / "variants" / "small" / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="variant small"):
        ReleaseIndex(tmp_path / "varied").current()


def test_a_new_release_is_served_without_a_restart(stub: ArtefactServiceStub, folder: Path) -> None:
    old = (folder / FILE).read_bytes()
    fetch(stub, old)
    new = write_release(folder, version=2, seed=1)
    assert b"".join(fetch(stub, new)) == new
    with pytest.raises(grpc.RpcError, match="has no file with SHA-256"):
        fetch(stub, old)


def test_a_stream_under_way_ends_with_the_file_it_began(
    stub: ArtefactServiceStub, folder: Path
) -> None:
    old = write_release(folder, seed=2)
    request = pb.FetchRequest(sha256=hashlib.sha256(old).digest())
    stream = stub.Fetch(request, timeout=30)
    first = next(stream).data
    write_release(folder, version=2, seed=1)
    assert first + b"".join(response.data for response in stream) == old


def test_an_abandoned_file_is_closed_with_its_stream(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def stream_file(path: Path, offset: int) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.append(path.name)

    async def abandon() -> None:
        _peer.set(Peer(PeerRole.CLIENT, "anna"))
        digest = hashlib.sha256((folder / FILE).read_bytes()).digest()
        stream = ArtefactService(folder).Fetch(pb.FetchRequest(sha256=digest), Mock())
        assert (await anext(stream)).data == b"first"
        await stream.aclose()
        assert closed == [FILE]  # at once, not when it is collected

    monkeypatch.setattr(module, "stream_file", stream_file)
    asyncio.run(abandon())
