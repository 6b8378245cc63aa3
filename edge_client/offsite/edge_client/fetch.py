"""Fetches the release of the campaign: signed manifest, lists of chunk digests, files.

    bundle.incoming/   the release that is being fetched: manifest.envelope, files as far as they go
    bundle/            the release that was verified whole
    bundle.previous/   the one before, for the moment of the exchange

Of a release with variants one emulator is fetched: its files lie in these folders, or in
`variants/<name>/` beside the main manifest. To switch is to fetch anew; the old one stays until then.

Rules it enforces:

* nothing is asked for before the manifest's signature, expiry and version were checked, and no
  chunk is written before it was compared with the digest that the signature covers;
* a cut is resumed at the last verified chunk; after a kill what lies on the disk is hashed again,
  because a file's length says nothing about its bytes;
* one folder holds one emulator of one release: when another one is published or chosen, it starts
  anew;
* a variant's manifest is asked for by the digest and size that the main one states, and no file of it
  before it was found to be of the same release;
* a release never takes the last of a disk (`reserved_bytes`);
* a full disk loses nothing, and the error says how many bytes are missing.

Source: the client workflow of TUF 1.0, section 5.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import grpc

from offsite.edge_client.chunk_stream import artefact_chunks
from offsite.edge_client.resume import Persistence
from offsite.edge_client.sink import VerifiedSink, verified_bytes
from offsite.emulator.bundle.bundle import Bundle, SignedManifest
from offsite.emulator.bundle.manifest import (
    MAIN,
    MANIFEST_NAME,
    MANIFEST_TYPE,
    FileEntry,
    Manifest,
    ReleaseFacts,
)
from offsite.emulator.bundle.reader import open_bundle, open_manifest, open_variant_manifest
from offsite.emulator.bundle.variants import VARIANTS, variant_entry, variant_folder
from offsite.emulator.durable import (
    machine_errors,
    replace_folder,
    sync_folder,
    undo_half_exchange,
    write_atomic,
)
from offsite.emulator.heap import keep_freed_buffers
from offsite.emulator.progress import Report, silent
from offsite.secure import limits
from offsite.secure.envelope import from_bytes, to_bytes, verify
from offsite.secure.errors import DiskFullError, IntegrityError, PeerError, TransportError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.wire import from_wire
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1 import artefacts_pb2_grpc as pb_grpc

RESERVED_SHARE: Final = 0.05
"""Share of a disk that stays free, but at least `RESERVED_BYTES`."""
RESERVED_BYTES: Final = 256 * limits.MIB
RESERVED_SHARE_OF_TINY: Final = 0.1
"""Never more than this share, so that a disk of less than 2.5 GiB can be used too."""
RELEASES_SEEN: Final = 3
"""How many times a newer release may interrupt one fetch."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where releases come from, and what they must be."""

    channel: grpc.Channel
    coordinator_key: IdentityPublicKey
    now_unix_s: float
    persistence: Persistence = field(default_factory=Persistence)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The emulator that is fetched: its verified manifest, and the envelopes to keep beside it."""

    name: str
    manifest: Manifest
    main_envelope: bytes
    envelope: bytes

    def envelopes(self, folder: Path) -> dict[Path, bytes]:
        """Where which signed manifest lies in a folder of this emulator."""
        return {
            folder / MANIFEST_NAME: self.main_envelope,
            variant_folder(folder, self.name) / MANIFEST_NAME: self.envelope,
        }

    def is_in(self, folder: Path) -> bool:
        """Whether a folder is one of this emulator and of no other, however much of it is there."""
        paths = self.envelopes(folder).items()
        if not all(path.is_file() and path.read_bytes() == data for path, data in paths):
            return False
        variants = folder / VARIANTS
        if self.name == MAIN:
            return not variants.exists()
        return {path.name for path in folder.iterdir()} == {MANIFEST_NAME, VARIANTS} and {
            path.name for path in variants.iterdir()
        } == {self.name}


Choose = Callable[[SignedManifest], str]
"""Names the emulator of a release that is wanted."""


def the_main_one(release: SignedManifest) -> str:
    """The choice of who knows of no variants."""
    return MAIN


@dataclass(slots=True)
class Meter:
    """Counts the bytes of a release that are verified and on the disk."""

    total: int
    report: Report
    done: int = 0

    def at(self, done: int) -> None:
        self.done = done
        self.report(done, self.total)


def fetch_release(
    source: Source,
    folder: Path,
    *,
    choose: Choose = the_main_one,
    report: Report = silent,
    report_check: Report = silent,
) -> Bundle:
    """Returns the campaign's release, verified, at `folder`; fetches what is missing of it.

    `choose` names the emulator, once the main manifest is verified. `report` counts bytes fetched,
    `report_check` bytes of the last check of the whole.

    Raises:
        ConfigError: as `choose` raises it.
        PeerError: what the coordinator offers or sends is wrong; nothing of it is used.
        TransportError: the coordinator cannot be reached; the next call resumes.
        DiskFullError: no room; says how many bytes are missing, keeps what is there.
        MachineError: the folder cannot be read or written.
    """
    with machine_errors(folder):
        return _fetch(source, folder, choose, report, report_check)


def _fetch(
    source: Source, folder: Path, choose: Choose, report: Report, report_check: Report
) -> Bundle:
    undo_half_exchange(folder)
    for _ in range(RELEASES_SEEN):
        # (1) What the coordinator signed as its release: not older than ours, of the same model.
        envelope, signed = ask_for_release(source, accepted_facts(source.coordinator_key, folder))
        name = choose(signed)
        try:
            # (2) The emulator of it that is wanted. Here already?
            wanted = ask_for_emulator(source, envelope, signed, name)
            bundle = _installed(source, folder, wanted, report_check)
            if bundle is not None:
                return bundle
            # (3) The folder of this very emulator, with what is there of it.
            incoming = prepare_incoming(folder, wanted)
            # (4) Its files, chunk by chunk.
            receive_files(source, wanted.manifest, variant_folder(incoming, name), report)
        except PeerError:
            if ask_for_release(source)[1].digest == signed.digest:
                raise
            continue  # a new release was published meanwhile
        # (5) Verified whole, then put in place.
        return _install(source, folder, incoming, name, report_check)
    raise TransportError(
        f"expected a release that stays, found {RELEASES_SEEN} in a row: try again later"
    )


def ask_for_release(
    source: Source, accepted: ReleaseFacts | None = None
) -> tuple[bytes, SignedManifest]:
    """The coordinator's release: the envelope's bytes, and what they say once verified.

    It may not be older than the one that was `accepted` last, nor of another base model.
    """

    stub = pb_grpc.ArtefactServiceStub(source.channel)

    def ask() -> pb.GetReleaseResponse:
        return stub.GetRelease(pb.GetReleaseRequest(), timeout=limits.CALL_DEADLINE_S)

    wire = source.persistence.run(ask).manifest
    envelope = to_bytes(from_wire(wire))
    signed = open_manifest(
        envelope,
        source.coordinator_key,
        source.now_unix_s,
        expected_base=accepted.base_fingerprint if accepted else None,
        minimum_version=accepted.release_version if accepted else 0,
    )
    return envelope, signed


def ask_for_emulator(
    source: Source, envelope: bytes, signed: SignedManifest, name: str = MAIN
) -> Wanted:
    """An emulator of the release that `ask_for_release` returned; a variant's manifest is fetched.

    Raises:
        ConfigError: the release has none of that name.
        PeerError: its manifest is not the one that the release names, or not of this release.
    """
    if name == MAIN:
        return Wanted(name, signed.manifest, envelope, envelope)
    entry = variant_entry(signed.manifest, name)

    def receive() -> bytes:
        size = entry.manifest_bytes
        return b"".join(artefact_chunks(source.channel, entry.manifest_sha256, 0, size))

    found = source.persistence.run(receive)
    variant = open_variant_manifest(
        found, signed.manifest, name, source.coordinator_key, source.now_unix_s
    )
    return Wanted(name, variant.manifest, envelope, found)


def prepare_incoming(folder: Path, wanted: Wanted) -> Path:
    """The folder that receives this emulator; what it held of another one is dropped."""
    incoming = folder.with_name(folder.name + ".incoming")
    if not wanted.is_in(incoming):
        shutil.rmtree(incoming, ignore_errors=True)
        for path, envelope in wanted.envelopes(incoming).items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, envelope)
    return incoming


def receive_files(
    source: Source,
    manifest: Manifest,
    incoming: Path,
    report: Report = silent,
) -> None:
    """Receives every file of a release that is not there yet, each with its list first.

    Raises:
        IntegrityError: a list or a chunk differs from its signed digest.
        DiskFullError, PeerError, TransportError: as `fetch_release`.
    """
    keep_freed_buffers()
    meter = Meter(manifest.bundle_bytes, report)
    _check_room(incoming, manifest)
    try:
        for entry in manifest.files:
            digests = _receive_digests(source, entry, incoming)
            meter.at(meter.done + len(digests))
            _receive_file(source, entry, incoming / entry.path, digests, meter)
    except DiskFullError as error:
        disk = shutil.disk_usage(incoming)
        free = max(disk.free - reserved_bytes(disk.total), 0)
        raise _no_room(incoming, meter.total - meter.done, free) from error
    sync_folder(incoming)


def _receive_digests(source: Source, entry: FileEntry, incoming: Path) -> bytes:
    """The list of chunk digests of a file, which must be as the manifest says."""
    path = incoming / entry.chunks_path
    if path.is_file() and path.stat().st_size == entry.chunks_bytes:
        digests = path.read_bytes()
        if hashlib.sha256(digests).digest() == entry.chunks_sha256:
            return digests

    def receive() -> bytes:
        size = entry.chunks_bytes
        return b"".join(artefact_chunks(source.channel, entry.chunks_sha256, 0, size))

    digests = source.persistence.run(receive)
    if hashlib.sha256(digests).digest() != entry.chunks_sha256:
        raise IntegrityError(
            f"{entry.chunks_path}: expected the signed digest, found another; it was not written"
        )
    write_atomic(path, digests)
    return digests


def _receive_file(
    source: Source,
    entry: FileEntry,
    path: Path,
    digests: bytes,
    meter: Meter,
) -> None:
    start, position = meter.done, verified_bytes(path, digests, entry.size)

    def receive() -> None:
        nonlocal position
        sink = VerifiedSink(path, digests, position)
        try:
            with sink:
                for chunk in artefact_chunks(source.channel, entry.sha256, position, entry.size):
                    sink.put(chunk)
                    meter.at(start + sink.position)
        finally:
            position = sink.position
            meter.at(start + position)

    meter.at(start + position)
    if position < entry.size:
        source.persistence.run(receive, lambda: position)


def _check_room(incoming: Path, manifest: Manifest) -> None:
    here = sum(
        min((incoming / name).stat().st_size, size)
        for entry in manifest.files
        for name, size in ((entry.path, entry.size), (entry.chunks_path, entry.chunks_bytes))
        if (incoming / name).is_file()
    )
    disk = shutil.disk_usage(incoming)
    needed, free = manifest.bundle_bytes - here, max(disk.free - reserved_bytes(disk.total), 0)
    if needed > free:
        raise _no_room(incoming, needed, free)


def reserved_bytes(disk_bytes: int) -> int:
    """What a release leaves free of a disk of this size."""
    least = max(int(disk_bytes * RESERVED_SHARE), RESERVED_BYTES)
    return min(least, int(disk_bytes * RESERVED_SHARE_OF_TINY))


def _no_room(incoming: Path, needed: int, free: int) -> DiskFullError:
    return DiskFullError(
        f"expected room for {needed} more bytes of the release at {incoming.parent}, found {free} "
        f"free beside the reserve of the disk: free at least {max(needed - free, 1)} bytes and run the same command again; what "
        "was fetched is kept"
    )


def accepted_facts(coordinator_key: IdentityPublicKey, folder: Path) -> ReleaseFacts | None:
    """The release that was accepted last, expired or not; None without one, or if it is damaged."""
    try:
        envelope = from_bytes((folder / MANIFEST_NAME).read_bytes())
        payload = verify(envelope, MANIFEST_TYPE, coordinator_key)
        return Manifest.from_bytes(payload).facts
    except (FileNotFoundError, PeerError):
        return None


def _installed(source: Source, folder: Path, wanted: Wanted, report_check: Report) -> Bundle | None:
    """The emulator in place if it is this one and nothing of it was damaged since."""
    if not wanted.is_in(folder):
        return None
    try:
        return _open(source, folder, wanted.name, report_check)
    except PeerError:
        return None


def _open(source: Source, folder: Path, name: str, report_check: Report) -> Bundle:
    return open_bundle(
        folder, source.coordinator_key, source.now_unix_s, emulator=name, report=report_check
    )


def _install(
    source: Source, folder: Path, incoming: Path, name: str, report_check: Report
) -> Bundle:
    try:
        bundle = _open(source, incoming, name, report_check)
    except PeerError:
        # Its digests are right, so fetching it again would not help: its owner made it wrong.
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    replace_folder(incoming, folder)
    return replace(bundle, folder=variant_folder(folder, name))
