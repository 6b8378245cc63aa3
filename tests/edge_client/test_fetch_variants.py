"""Fetching one emulator of a release: only that one, resumed, verified, and switched safely."""

import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.edge_client.releases import artefacts
from tests.loopback import serving
from tests.varied import SIGNER, tiny_varied

from offsite.coordinator.service.artefacts import ArtefactService
from offsite.edge_client.emulator_choice import Chooser
from offsite.edge_client.fetch import Choose, Source, fetch_release
from offsite.edge_client.resume import Persistence
from offsite.emulator.bundle.bundle import Bundle, SignedManifest
from offsite.emulator.bundle.manifest import MANIFEST_NAME, MANIFEST_TYPE, Manifest
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_emulator, stated_manifest
from offsite.secure import limits
from offsite.secure.envelope import from_bytes, sign, to_bytes
from offsite.secure.errors import (
    ConfigError,
    IntegrityError,
    PeerError,
    SignatureError,
    TransportError,
)
from offsite.secure.identity import IdentityKey
from offsite.v1 import artefacts_pb2 as pb

WEIGHTS = "emulator.safetensors"


class Counting(ArtefactService):
    """The real service; notes what was asked for, and cuts the streams of one file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []
        self.cut: str | None = None
        """A file, as in `asked`, that arrives without its last chunk."""

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        path = self._index.file(request.sha256)
        name = str(path.relative_to(self._index._folder))
        self.asked.append(f"{name}@{request.offset}" if request.offset else name)
        left = -(-path.stat().st_size // limits.CHUNK_BYTES) - request.offset // limits.CHUNK_BYTES
        async for response in super().Fetch(request, context):
            left -= 1
            if self.cut == name and left == 0:
                raise TransportError("the line was cut")
            yield response


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2."""
    folder = tmp_path_factory.mktemp("releases")
    varied = tiny_varied(folder / "model")
    for version in (1, 2):
        varied.release(folder / str(version), version)
    return folder


@pytest.fixture
def published(releases: Path, tmp_path: Path) -> Path:
    shutil.copytree(releases / "1", tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def service(published: Path) -> Counting:
    return Counting(published)


@pytest.fixture
def source(service: Counting) -> Iterator[Source]:
    patient = Persistence(retries=2, sleep=lambda _: None)
    with serving(artefacts(service)) as loopback, loopback.channel("anna") as channel:
        yield Source(channel, SIGNER.public, time.time(), persistence=patient)


def told(name: str) -> Choose:
    return Chooser(name, lambda _: None)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fetched(source: Source, folder: Path, name: str) -> Bundle:
    return fetch_release(source, folder, choose=told(name))


def test_only_the_variant_in_use_is_fetched(
    source: Source, service: Counting, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    bundle = fetched(source, folder, "small")
    assert bundle.variant == "small" and bundle.folder == folder / "variants" / "small"
    # By digest: a file that several emulators have may be served from any of them.
    assert {name for name in service.asked if WEIGHTS in name} == {
        f"variants/small/{WEIGHTS}",
        f"variants/small/{WEIGHTS}.chunks",
    }
    assert len(service.asked) == len(files_of(published / "variants" / "small"))
    expected = {name for name in files_of(published) if name.startswith("variants/small/")}
    assert files_of(folder) == {MANIFEST_NAME} | expected
    for name in expected:
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    assert bundle.release_digest == open_bundle(published, SIGNER.public, time.time()).digest
    assert stated_manifest(folder) == stated_manifest(published)
    assert stated_emulator(folder) == "small"


def test_the_main_emulator_is_fetched_without_its_variants(
    source: Source, service: Counting, tmp_path: Path
) -> None:
    bundle = fetch_release(source, tmp_path / "bundle")
    assert bundle.variant == "main" and bundle.folder == tmp_path / "bundle"
    weights = {name for name in service.asked if WEIGHTS in name or MANIFEST_NAME in name}
    assert weights == {WEIGHTS, f"{WEIGHTS}.chunks"}
    assert not (tmp_path / "bundle" / "variants").exists()
    assert stated_emulator(tmp_path / "bundle") == "main"


@pytest.mark.parametrize("name", ["main", "small"])
def test_what_is_there_is_not_fetched_again(
    name: str, source: Source, service: Counting, tmp_path: Path
) -> None:
    first = fetched(source, tmp_path / "bundle", name)
    service.asked.clear()
    again = fetched(source, tmp_path / "bundle", name)
    assert (again.digest, again.folder) == (first.digest, first.folder)
    assert not [path for path in service.asked if MANIFEST_NAME not in path]


@pytest.mark.parametrize("path", [["main", "small", "packed", "main"], ["small", "main", "small"]])
def test_a_switch_leaves_the_chosen_emulator_and_nothing_else(
    path: list[str], source: Source, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    for name in path:
        bundle = fetched(source, folder, name)
        assert bundle.variant == name
        prefix = "" if name == "main" else f"variants/{name}/"
        inside = {n for n in files_of(published) if n.startswith(prefix)}
        if name == "main":
            inside = {n for n in inside if "/" not in n}
        assert files_of(folder) == inside | {MANIFEST_NAME}
        assert {p.name for p in tmp_path.iterdir()} == {"bundle", "published"}


def test_a_switch_that_fails_loses_nothing_and_goes_on(
    source: Source, service: Counting, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    fetched(source, folder, "main")
    before = files_of(folder)
    service.cut = f"variants/small/{WEIGHTS}"
    with pytest.raises(TransportError, match="the line was cut"):
        fetched(source, folder, "small")
    assert files_of(folder) == before
    assert open_bundle(folder, SIGNER.public, time.time()).variant == "main"
    service.cut = None
    service.asked.clear()
    assert fetched(source, folder, "small").variant == "small"
    # The manifest is asked for again; of the files, only what did not arrive.
    rest = [name for name in service.asked if MANIFEST_NAME not in name]
    assert rest[0].startswith(f"variants/small/{WEIGHTS}")
    assert not [name for name in rest if "config.json" in name or "schema.json" in name]


def test_another_choice_half_way_starts_anew(
    source: Source, service: Counting, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    service.cut = f"variants/small/{WEIGHTS}"
    with pytest.raises(TransportError):
        fetched(source, folder, "small")
    assert (tmp_path / "bundle.incoming" / "variants" / "small").is_dir()
    assert fetched(source, folder, "packed").variant == "packed"
    assert {path.name for path in (folder / "variants").iterdir()} == {"packed"}
    service.cut = WEIGHTS
    with pytest.raises(TransportError):
        fetched(source, folder, "main")
    service.cut = None
    assert fetched(source, folder, "small").variant == "small"


def test_a_damaged_variant_is_fetched_again(
    source: Source, service: Counting, tmp_path: Path
) -> None:
    path = fetched(source, tmp_path / "bundle", "small").folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    service.asked.clear()
    fetched(source, tmp_path / "bundle", "small")
    assert path.read_bytes() == data
    assert f"variants/small/{WEIGHTS}" in service.asked


def test_a_new_release_is_fetched_in_the_same_variant(
    source: Source, releases: Path, published: Path, tmp_path: Path
) -> None:
    folder, choose = tmp_path / "bundle", told("small")
    assert fetch_release(source, folder, choose=choose).manifest.facts.release_version == 1
    shutil.rmtree(published)
    shutil.copytree(releases / "2", published)
    bundle = fetch_release(source, folder, choose=choose)
    assert (bundle.variant, bundle.manifest.facts.release_version) == ("small", 2)
    shutil.rmtree(published)
    shutil.copytree(releases / "1", published)
    with pytest.raises(PeerError, match="an old release was offered again"):
        fetch_release(source, folder, choose=choose)


def test_an_unknown_name_is_refused_before_anything_is_fetched(
    source: Source, service: Counting, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"\(main, small, packed\), found 'huge'"):
        fetched(source, tmp_path / "bundle", "huge")
    assert service.asked == [] and not list(tmp_path.glob("bundle*"))


def forge(published: Path, change: object, signer: IdentityKey = SIGNER) -> None:
    """Signs another manifest of `small`, and a main one that names it."""
    path = published / "variants" / "small" / MANIFEST_NAME
    manifest = Manifest.from_bytes(from_bytes(path.read_bytes()).payload)
    envelope = to_bytes(sign(MANIFEST_TYPE, change(manifest).to_bytes(), signer))  # type: ignore[operator]
    path.write_bytes(envelope)
    main_path = published / MANIFEST_NAME
    main = Manifest.from_bytes(from_bytes(main_path.read_bytes()).payload)
    digest, size = hashlib.sha256(envelope).digest(), len(envelope)
    entries = [
        replace(entry, manifest_sha256=digest, manifest_bytes=size)
        if entry.name == "small"
        else entry
        for entry in main.variants
    ]
    main = replace(main, variants=tuple(entries))
    main_path.unlink()
    main_path.write_bytes(to_bytes(sign(MANIFEST_TYPE, main.to_bytes(), SIGNER)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, facts=replace(m.facts, release_version=9)), "release_version"),
        (lambda m: replace(m, facts=replace(m.facts, base_fingerprint="ab" * 32)), "base_finger"),
        (lambda m: replace(m, adapter_sha256=bytes(32)), "adapter_sha256"),
        (
            lambda m: replace(m, files=tuple(replace(f, size=f.size + 9) for f in m.files)),
            "bundle_bytes",
        ),
    ],
)
def test_a_variant_of_another_release_is_refused_before_its_files(
    change: object,
    message: str,
    source: Source,
    service: Counting,
    published: Path,
    tmp_path: Path,
) -> None:
    forge(published, change)
    with pytest.raises(PeerError, match=f"variant small: {message}"):
        fetched(source, tmp_path / "bundle", "small")
    assert set(service.asked) == {f"variants/small/{MANIFEST_NAME}"}
    assert not list(tmp_path.glob("bundle*"))


def test_a_variant_by_another_key_is_refused_before_its_files(
    source: Source, service: Counting, published: Path, tmp_path: Path
) -> None:
    forge(published, lambda manifest: manifest, IdentityKey.from_seed(bytes(32)))
    with pytest.raises(SignatureError):
        fetched(source, tmp_path / "bundle", "small")
    assert set(service.asked) == {f"variants/small/{MANIFEST_NAME}"}


class Exchanging(ArtefactService):
    """Answers with another manifest of a variant than the release names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sent = b""

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        yield pb.FetchResponse(data=self.sent)


@pytest.mark.parametrize("surplus", [0, 1])
def test_an_exchanged_or_longer_manifest_is_refused(
    surplus: int, published: Path, tmp_path: Path
) -> None:
    service = Exchanging(published)
    envelope = (published / "variants" / "small" / MANIFEST_NAME).read_bytes()
    service.sent = bytes([envelope[0] ^ 1]) + envelope[1:] + bytes(surplus)
    patient = Persistence(retries=2, sleep=lambda _: None)
    with serving(artefacts(service)) as loopback, loopback.channel("anna") as channel:
        source = Source(channel, SIGNER.public, time.time(), persistence=patient)
        with pytest.raises(PeerError if surplus else IntegrityError):
            fetched(source, tmp_path / "bundle", "small")
    assert not list(tmp_path.glob("bundle*"))


def test_auto_takes_what_fits_and_says_so(source: Source, tmp_path: Path) -> None:
    lines: list[str] = []
    sizes: dict[str, int] = {}

    def free() -> int:
        return sizes["small"]

    def choose(release: SignedManifest) -> str:
        sizes.update({entry.name: entry.tuning_bytes for entry in release.manifest.variants})
        return Chooser("auto", lines.append, free)(release)

    assert fetch_release(source, tmp_path / "bundle", choose=choose).variant == "small"
    assert lines[0].startswith("emulator small: the first that fits")
