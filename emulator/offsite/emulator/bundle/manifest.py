"""The signed manifest of a release: what is in the bundle, of which model, and until when.

Notable: it holds per file the digest of the *list* of chunk digests, which lies beside the file as
`<path>.chunks`. So every 256 KiB are covered by the signature, can be verified as they arrive, and
a manifest stays far below 256 KiB whatever the size of the bundle. A release may have variants,
stronger compressions for edges with less memory: each is a bundle of its own, whose manifest the
main one names by its digest (see `variants.py`).

Rules it enforces: no unknown or missing key; flat file names without separators, leading dots or
repetition (also not by letter case); the format version is read before all else, so that a newer
release is named as such.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from offsite.emulator.adapters.adapter import AdapterSpec
from offsite.emulator.bundle.files import ENVELOPE_BYTES
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.packing.packing import Packing
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

FORMAT_VERSION = 3
"""3: an adapter says which factors of a LoRA train; before, both did."""
MANIFEST_TYPE = "application/vnd.offsite.manifest+json"
MANIFEST_NAME = "manifest.envelope"
CHUNKS_SUFFIX = ".chunks"
DIGEST_BYTES = 32
MAIN = "main"
"""What the emulator of the main manifest is called where variants have names."""
MAX_VARIANTS = 16

_MAX_TEXT_CHARS = 256
_MAX_VERSION = (1 << 53) - 1
_MAX_UNIX_S = 1 << 40
_MAX_BYTES = (1 << 53) - 1
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_RESERVED_NAMES = frozenset({MAIN, "auto"})
VARIANT_NAMES = "a-z, 0-9 and -, at most 32 characters, not main and not auto"


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
class VariantEntry:
    """Another emulator of the same release, as the main manifest names it."""

    name: str
    manifest_sha256: bytes  # of its signed manifest, the whole envelope
    manifest_bytes: int
    bundle_bytes: int  # as its own manifest has it
    tuning_bytes: int

    def to_json(self) -> JsonObject:
        """The entry as a JSON object."""
        return {
            "name": self.name,
            "manifest_sha256": self.manifest_sha256.hex(),
            "manifest_bytes": self.manifest_bytes,
            "bundle_bytes": self.bundle_bytes,
            "tuning_bytes": self.tuning_bytes,
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
    ratio: float  # share of the middle's parameters that is shipped: counted, not as asked for
    provenance: JsonObject  # how it was made, and what was measured: what is shipped, leak


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a release states under its signature."""

    facts: ReleaseFacts
    layer_map: LayerMap
    adapter: AdapterSpec
    files: tuple[FileEntry, ...]
    packing: Packing = Packing.NONE  # of the tensors that schema.json names as packed
    adapter_sha256: bytes = bytes(DIGEST_BYTES)  # of the schema of the adapter's tensors
    tuning_bytes: int = 0  # estimate of what tuning takes, see `tuning_memory`
    variants: tuple[VariantEntry, ...] = ()

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
                "packing": self.packing.value,
                "adapter_sha256": self.adapter_sha256.hex(),
                "tuning_bytes": self.tuning_bytes,
                "variants": [entry.to_json() for entry in self.variants],
            }
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Manifest":
        """Reads signed bytes; raises PeerError for anything that `to_bytes` would not write."""
        fields = Fields(parse_json(payload, "manifest", limits.MANIFEST_BYTES), "manifest")
        version = fields.integer("format_version", 1, _MAX_VERSION)
        if version != FORMAT_VERSION:
            remedy = (
                "update this program" if version > FORMAT_VERSION else "build the release again"
            )
            raise PeerError(
                f"manifest: expected format {FORMAT_VERSION}, found {version}: {remedy}"
            )
        facts = _facts(fields)
        layer_map = LayerMap.from_json(fields.value("layer_map"))
        adapter = AdapterSpec.from_json(fields.value("adapter"))
        files = _files(fields.items("files", limits.BUNDLE_FILES))
        packing = _packing(fields.text("packing", 16))
        adapter_sha256 = fields.sha256("adapter_sha256")
        tuning_bytes = fields.integer("tuning_bytes", 0, _MAX_BYTES)
        variants = _variants(fields.items("variants", MAX_VARIANTS))
        fields.close()
        return cls(
            facts, layer_map, adapter, files, packing, adapter_sha256, tuning_bytes, variants
        )


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


def _packing(value: str) -> Packing:
    try:
        return Packing(value)
    except ValueError:
        names = ", ".join(packing.value for packing in Packing)
        raise PeerError(f"manifest: packing: expected {names}, found {value!a}") from None


def _variants(values: Sequence[JsonValue]) -> tuple[VariantEntry, ...]:
    entries = tuple(_variant(value) for value in values)
    if len({entry.name for entry in entries}) != len(entries):
        raise PeerError("manifest: expected every variant once, found a repeated name")
    return entries


def is_variant_name(name: str) -> bool:
    """Whether a variant may be called so; it is a folder's name, too."""
    return bool(_VARIANT_NAME.fullmatch(name)) and name not in _RESERVED_NAMES


def _variant(value: JsonValue) -> VariantEntry:
    fields = Fields(value, "manifest: variant")
    name = fields.text("name", 32)
    if not is_variant_name(name):
        raise PeerError(f"manifest: variant: expected a name of {VARIANT_NAMES}, found {name!a}")
    entry = VariantEntry(
        name,
        fields.sha256("manifest_sha256"),
        fields.integer("manifest_bytes", 1, ENVELOPE_BYTES),
        fields.integer("bundle_bytes", 1, limits.BUNDLE_FILES * limits.ARTEFACT_BYTES),
        fields.integer("tuning_bytes", 0, _MAX_BYTES),
    )
    fields.close()
    return entry


def _plain(value: object) -> JsonValue:
    """`value` of a `to_json` that is typed more loosely than it is."""
    assert isinstance(value, dict)
    return value
