"""Variants: the emulators of one release that are compressed in other ways, for smaller machines.

    bundle/                    the main emulator: its manifest stands for the release
    bundle/variants/<name>/    a complete bundle each, signed by the same key

An edge keeps the main manifest and the files of the one emulator that it uses. Whichever that is,
the adapter has the same names and shapes, so the updates of all edges meet in one average, and a
plan names the release by the digest of the main manifest.

Rules it enforces: a variant is the one that the main manifest names by digest, and it is of the
same project, version, times, base model, adapter, slots and tokenizer. See
docs/adr/0005-per-edge-emulators.md.
"""

import hashlib
from pathlib import Path

from offsite.emulator.bundle.manifest import MAIN, Manifest, VariantEntry
from offsite.emulator.bundle.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG
from offsite.secure.errors import ConfigError, IntegrityError, PeerError

VARIANTS = "variants"


def variant_folder(folder: Path, name: str) -> Path:
    """Where the emulator of that name lies in the folder of a release."""
    return folder if name == MAIN else folder / VARIANTS / name


def emulator_names(main: Manifest) -> tuple[str, ...]:
    """The names an edge can choose from."""
    return MAIN, *(entry.name for entry in main.variants)


def variant_entry(main: Manifest, name: str) -> VariantEntry:
    """The variant of that name. Raises ConfigError that lists the names."""
    for entry in main.variants:
        if entry.name == name:
            return entry
    raise ConfigError(
        f"expected an emulator of this release ({', '.join(emulator_names(main))}), found {name!a}"
    )


def check_envelope(entry: VariantEntry, envelope: bytes) -> None:
    """The signed manifest of a variant must be the very one that the main manifest names."""
    if hashlib.sha256(envelope).digest() != entry.manifest_sha256:
        raise IntegrityError(
            f"variant {entry.name}: expected the manifest that the release names, found another"
        )


def check_variant(main: Manifest, entry: VariantEntry, variant: Manifest) -> None:
    """Whether a verified manifest fits the release.

    Raises:
        PeerError: it names what differs.
    """
    if variant.variants:
        raise PeerError(f"variant {entry.name}: expected no variants of its own, found some")
    expected, found = _common(main), _common(variant)
    expected |= {"bundle_bytes": entry.bundle_bytes, "tuning_bytes": entry.tuning_bytes}
    found |= {"bundle_bytes": variant.bundle_bytes, "tuning_bytes": variant.tuning_bytes}
    for what, value in expected.items():
        if found[what] != value:
            raise PeerError(
                f"variant {entry.name}: {what}: expected {value!a:.200} as the release has it,"
                f" found {found[what]!a:.200}"
            )


def _common(manifest: Manifest) -> dict[str, object]:
    """What the emulators of a release have in common."""
    facts, layer_map = manifest.facts, manifest.layer_map
    digests = {entry.path: entry.sha256.hex() for entry in manifest.files}
    return {
        "project": facts.project,
        "release_version": facts.release_version,
        "created_unix_s": facts.created_unix_s,
        "expires_unix_s": facts.expires_unix_s,
        "base_model": facts.base_model,
        "base_fingerprint": facts.base_fingerprint,
        "base_blocks": layer_map.base_blocks,
        "slots": [(slot.name, slot.base_block) for slot in layer_map.slots],
        "adapter": manifest.adapter,
        "adapter_sha256": manifest.adapter_sha256.hex(),
        TOKENIZER: digests.get(TOKENIZER),
        TOKENIZER_CONFIG: digests.get(TOKENIZER_CONFIG),
    }
