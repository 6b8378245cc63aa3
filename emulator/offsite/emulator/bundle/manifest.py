"""The signed manifest of a release: what is in the bundle, of which model, and until when.

Notable: it holds per file the digest of the *list* of chunk digests, which lies beside the file as
`<path>.chunks`. So every 256 KiB are covered by the signature, can be verified as they arrive, and
a manifest stays far below 256 KiB whatever the size of the bundle.

Rules it enforces: no unknown or missing key; flat file names without separators, leading dots or
repetition (also not by letter case); the format version is read before all else, so that a newer
release is named as such.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from offsite.emulator.adapters.adapter import AdapterSpec
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.strict_json import (
    Fields,
    JsonObject,
    JsonValue,
    canonical_json,
    check_plain,
    parse_json,
)
from offsite.secure import limits
from offsite.secure.errors import PeerError

FORMAT_VERSION = 1
MANIFEST_TYPE = "application/vnd.offsite.manifest+json"
MANIFEST_NAME = "manifest.envelope"
CHUNKS_SUFFIX = ".chunks"
DIGEST_BYTES = 32

_MAX_TEXT_CHARS = 256
_MAX_VERSION = (1 << 53) - 1
_MAX_UNIX_S = 1 << 40
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle and the digests that cover it."""

    path: str
    size: int
    sha256: bytes
    chunks_sha256: bytes

    @property
    def num_chunks(self) -> int:
        """Chunks of 256 KiB, the last one shorter."""
        return -(-self.size // limits.CHUNK_BYTES)

    @property
    def chunks_path(self) -> str:
        """The file of the chunk digests, `num_chunks` times 32 bytes."""
        return self.path + CHUNKS_SUFFIX

    @property
    def chunks_bytes(self) -> int:
        """The size of that file."""
        return self.num_chunks * DIGEST_BYTES

    def to_json(self) -> JsonObject:
        """The entry as a JSON object."""
        return {
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256.hex(),
            "chunks_sha256": self.chunks_sha256.hex(),
        }


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """What the owner states about a release."""

    project: str
    release_version: int  # grows with every release; an edge never goes back
    created_unix_s: int
    expires_unix_s: int
    base_model: str
    base_fingerprint: str  # hexadecimal SHA-256 of the full model's weights
    method: str
    ratio: float  # share of the middle's parameters that was kept
    provenance: JsonObject  # how it was made, and what was measured: what is shipped, leak


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a release states under its signature."""

    facts: ReleaseFacts
    layer_map: LayerMap
    adapter: AdapterSpec
    files: tuple[FileEntry, ...]

    @property
    def bundle_bytes(self) -> int:
        """Size of the files with their chunk digests, without the manifest."""
        return sum(entry.size + entry.chunks_bytes for entry in self.files)

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        facts = self.facts
        return canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "project": facts.project,
                "release_version": facts.release_version,
                "created_unix_s": facts.created_unix_s,
                "expires_unix_s": facts.expires_unix_s,
                "base_model": facts.base_model,
                "base_fingerprint": facts.base_fingerprint,
                "method": facts.method,
                "ratio": facts.ratio,
                "provenance": facts.provenance,
                "layer_map": _plain(self.layer_map.to_json()),
                "adapter": self.adapter.to_json(),
                "files": [entry.to_json() for entry in self.files],
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Manifest":
        """Reads signed bytes; raises PeerError for anything that `to_bytes` would not write."""
        fields = Fields(parse_json(payload, "manifest", limits.MANIFEST_BYTES), "manifest")
        version = fields.integer("format_version", 1, _MAX_VERSION)
        if version != FORMAT_VERSION:
            raise PeerError(
                f"manifest: expected format {FORMAT_VERSION}, found {version}: update this program"
            )
        facts = _facts(fields)
        layer_map = LayerMap.from_json(fields.value("layer_map"))
        adapter = AdapterSpec.from_json(fields.value("adapter"))
        files = _files(fields.items("files", limits.BUNDLE_FILES))
        fields.close()
        return cls(facts, layer_map, adapter, files)


def _facts(fields: Fields) -> ReleaseFacts:
    facts = ReleaseFacts(
        project=fields.text("project", _MAX_TEXT_CHARS),
        release_version=fields.integer("release_version", 1, _MAX_VERSION),
        created_unix_s=fields.integer("created_unix_s", 0, _MAX_UNIX_S),
        expires_unix_s=fields.integer("expires_unix_s", 0, _MAX_UNIX_S),
        base_model=fields.text("base_model", _MAX_TEXT_CHARS),
        base_fingerprint=fields.sha256("base_fingerprint").hex(),
        method=fields.text("method", _MAX_TEXT_CHARS),
        ratio=fields.number("ratio", 0.0, 1.0),
        provenance=fields.object("provenance", 256),
    )
    check_plain(facts.provenance, "manifest: provenance", _MAX_TEXT_CHARS)
    if facts.expires_unix_s <= facts.created_unix_s:
        raise PeerError("manifest: expected an expiry after the creation, found one before it")
    return facts


def _files(values: Sequence[JsonValue]) -> tuple[FileEntry, ...]:
    entries = tuple(_file(value) for value in values)
    names = [name for entry in entries for name in (entry.path, entry.chunks_path)]
    if len(set(names)) != len(names) or MANIFEST_NAME in names:
        raise PeerError("manifest: expected every file once, found a repeated or reserved name")
    return entries


def _file(value: JsonValue) -> FileEntry:
    fields = Fields(value, "manifest: file")
    path = fields.text("path", 64)
    # Lower case alone: two names can never be one file on a case-folding file system.
    if not _FILE_NAME.fullmatch(path) or ".." in path or path.endswith(CHUNKS_SUFFIX):
        raise PeerError(f"manifest: expected a plain file name, found {path!a}")
    size = fields.integer("size", 1, limits.ARTEFACT_BYTES)
    entry = FileEntry(path, size, fields.sha256("sha256"), fields.sha256("chunks_sha256"))
    fields.close()
    return entry


def _plain(value: object) -> JsonValue:
    """`value` of a `to_json` that is typed more loosely than it is."""
    assert isinstance(value, dict)
    return value
