"""Opening a bundle: everything is verified before anything of it is used.

The order is the point. Nothing is parsed before its signature or digest was checked, and nothing
is allocated from a number that the signature does not cover. Files are read 256 KiB at a time and
never held whole, the tensors included; torch is not imported. Nothing is written: fetch into a
folder of its own and rename that after `open_bundle` returned.

A release with variants is one folder of several bundles (`variants.py`); on an edge it holds the
main manifest and the files of the one emulator in use, and that one is opened.

Guarantees: a changed bit, a cut, an appended byte, a missing or additional file, or a link
anywhere in the folder is refused (`tests/emulator/bundle/test_tampering.py`).

Source: the client workflow of TUF 1.0, section 5, for freshness and rollback.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from offsite.emulator.bundle.bundle import Bundle, SignedManifest
from offsite.emulator.bundle.checks import Checklist, Observer, unobserved
from offsite.emulator.bundle.chunks import verify_chunks
from offsite.emulator.bundle.config_rules import MAX_CONFIG_BYTES, check_config
from offsite.emulator.bundle.files import (
    ADAPTER_WEIGHTS,
    CONFIG,
    EMULATOR_WEIGHTS,
    ENVELOPE_BYTES,
    MAX_BYTES,
    REQUIRED,
)
from offsite.emulator.bundle.manifest import MAIN, MANIFEST_NAME, MANIFEST_TYPE, Manifest
from offsite.emulator.bundle.row_reader import check_scales
from offsite.emulator.bundle.tensor_schema import SCHEMA, BundleSchema
from offsite.emulator.bundle.tokenizer_files import check_tokenizer
from offsite.emulator.bundle.variants import (
    VARIANTS,
    check_envelope,
    check_variant,
    variant_entry,
    variant_folder,
)
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import check_file_finite, check_schema, read_header
from offsite.emulator.strict_json import JsonObject, parse_json
from offsite.secure import limits
from offsite.secure.envelope import from_bytes, verify
from offsite.secure.errors import ConfigError, ExpiredError, IntegrityError, MachineError, PeerError
from offsite.secure.identity import IdentityPublicKey


def open_manifest(
    envelope: bytes,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
    *,
    expected_base: str | None = None,
    minimum_version: int = 0,
    observe: Observer = unobserved,
) -> SignedManifest:
    """Verifies a signed manifest by itself, before any file of the release is fetched.

    Args:
        expected_base: fingerprint of the full model that the caller knows, if it knows one.
        minimum_version: the release version accepted last; 0 when none was.

    Raises:
        SignatureError: forged, of another type, or by another key.
        ExpiredError: past its time, or not valid yet.
        PeerError: malformed, older than `minimum_version`, or of another base model.
    """
    checks = Checklist(observe)
    # (1) Size, before any parsing.
    with checks.step("envelope size"):
        if len(envelope) > ENVELOPE_BYTES:
            raise PeerError(f"expected a manifest of at most {ENVELOPE_BYTES} bytes, found more")
    # (2) Type and signature, over the exact bytes.
    with checks.step("type and signature"):
        payload = verify(from_bytes(envelope), MANIFEST_TYPE, coordinator_key)
    # (3) Format version, then every field: types, bounds, no unknown key, known files of a
    # size that theirs may have: nothing else is ever fetched.
    with checks.step("manifest format"):
        manifest = Manifest.from_bytes(payload)
        _check_entries(manifest)
    # (4) Freshness: neither from the future nor past its time.
    with checks.step("validity period"):
        _check_period(manifest, now_unix_s)
    # (5) No way back to a release older than one that was accepted.
    if minimum_version == 0:
        checks.skip("no rollback", "no release was accepted before")
    else:
        with checks.step("no rollback"):
            _check_version(manifest, minimum_version)
    # (6) The same full model as before.
    if expected_base is None:
        checks.skip("base model", "no release was accepted before")
    else:
        with checks.step("base model"):
            _check_base(manifest, expected_base)
    digest = hashlib.sha256(payload).digest()
    return SignedManifest(manifest, digest, coordinator_key.fingerprint)


def open_variant_manifest(
    envelope: bytes,
    main: Manifest,
    name: str,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
) -> SignedManifest:
    """Verifies the signed manifest of a variant against a verified main one, before its files.

    Raises:
        ConfigError: the release has no variant of that name.
        PeerError: as `open_manifest`; it is another manifest than the release names, or does not
            fit the release.
    """
    entry = variant_entry(main, name)
    check_envelope(entry, envelope)
    signed = open_manifest(envelope, coordinator_key, now_unix_s)
    check_variant(main, entry, signed.manifest)
    return signed


def open_bundle(
    folder: Path,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
    *,
    emulator: str | None = None,
    expected_base: str | None = None,
    minimum_version: int = 0,
    report: Report = silent,
    observe: Observer = unobserved,
) -> Bundle:
    """Verifies an emulator in the folder of a release whole and gives access to it; reports bytes.

    `emulator` is `main` or the name of a variant; None takes the main one if its files are there,
    else the variant that is.

    Raises:
        ConfigError: there is no bundle at `folder`, or no variant of that name in the release.
        PeerError: as `open_manifest`, and IntegrityError for a file that is not as signed.
        MachineError: the disk could not be read.
    """
    try:
        # (1) to (6): the manifest.
        signed = open_manifest(
            _read_envelope(folder),
            coordinator_key,
            now_unix_s,
            expected_base=expected_base,
            minimum_version=minimum_version,
            observe=observe,
        )
        checks = Checklist(observe)
        name = emulator or _name_of_what_is_there(folder)
        if name == MAIN:
            return _open_files(folder, signed, report, checks)
        # (6b) The manifest of the variant: of this release.
        with checks.step("variant"):
            variant = _read_variant(folder, signed.manifest, name, coordinator_key, now_unix_s)
        bundle = _open_files(variant_folder(folder, name), variant, report, checks)
        return replace(bundle, main=signed, variant=name)
    except OSError as error:
        raise MachineError(f"{folder}: could not be read: {error}") from error


def _open_files(folder: Path, signed: SignedManifest, report: Report, checks: Checklist) -> Bundle:
    manifest = signed.manifest
    # (7) Exactly the files of the manifest, all that are needed, all regular.
    with checks.step("file set"):
        _check_file_set(folder, manifest)
    # (8) Sizes, the cheap check that catches a cut file.
    with checks.step("file sizes"):
        _check_sizes(folder, manifest)
    # (9) Every chunk of every file against its digest; from here on the bytes are the signer's.
    with checks.step("chunk digests"):
        advance = _advance(report, sum(entry.size for entry in manifest.files))
        for entry in manifest.files:
            verify_chunks(folder, entry, advance)
    # (10) The signed tensor schema, and the headers of the tensor files against it.
    with checks.step("tensor schema"):
        schema = _check_tensors(folder, manifest)
    # (11) The configuration: nothing that could load code or allocate without bound.
    with checks.step("model configuration"):
        config = _read_config(folder, len(manifest.layer_map.kept))
    # (12) The tokenizer: data only, known settings only.
    with checks.step("tokenizer"):
        tokenizer_settings = check_tokenizer(folder)
    # (13) Every value of every tensor.
    with checks.step("finite values"):
        check_file_finite(folder / EMULATOR_WEIGHTS)
        if schema.packed:
            check_scales(folder / EMULATOR_WEIGHTS, schema)
        if schema.stored_adapter:
            check_file_finite(folder / ADAPTER_WEIGHTS)
    return Bundle(folder, signed, schema, config, tokenizer_settings)


def _read_envelope(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected the folder of a bundle, found none")
    if not path.is_file():  # a link is found with the file set
        raise IntegrityError(f"{folder}: expected {MANIFEST_NAME}, found none: fetch it again")
    with path.open("rb") as file:
        return file.read(ENVELOPE_BYTES + 1)


def _name_of_what_is_there(folder: Path) -> str:
    """`main`, unless the folder holds a main manifest and a single variant alone."""
    if {*os.listdir(folder)} != {MANIFEST_NAME, VARIANTS} or not (folder / VARIANTS).is_dir():
        return MAIN
    variants = os.listdir(folder / VARIANTS)
    return variants[0] if len(variants) == 1 else MAIN


def _read_variant(
    folder: Path,
    main: Manifest,
    name: str,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
) -> SignedManifest:
    variant_entry(main, name)  # before the name becomes a path
    path = variant_folder(folder, name)
    for part in (path.parent, path):
        if part.is_symlink() or not part.is_dir():
            raise IntegrityError(f"expected {part.name} as a folder, found a link, a file or none")
    envelope = _read_envelope(path)
    return open_variant_manifest(envelope, main, name, coordinator_key, now_unix_s)


def _check_period(manifest: Manifest, now_unix_s: float) -> None:
    facts = manifest.facts
    if now_unix_s > facts.expires_unix_s + limits.CLOCK_SKEW_S:
        late_s = int(now_unix_s) - facts.expires_unix_s
        raise ExpiredError(f"the release expired {late_s} s ago: ask its owner for a new one")
    if now_unix_s < facts.created_unix_s - limits.CLOCK_SKEW_S:
        early_s = facts.created_unix_s - int(now_unix_s)
        raise ExpiredError(
            f"the release is valid in {early_s} s only: set the clock of this machine"
        )


def _check_version(manifest: Manifest, minimum_version: int) -> None:
    found = manifest.facts.release_version
    if found < minimum_version:
        raise PeerError(
            f"expected release {minimum_version} or later, found {found}: an old release was"
            " offered again"
        )


def _check_base(manifest: Manifest, expected_base: str) -> None:
    found = manifest.facts.base_fingerprint
    if found != expected_base:
        raise PeerError(
            f"expected a release of the base model {expected_base[:16]}, found {found[:16]}: a "
            "campaign keeps its model; to follow the owner to another one, join with a new state "
            "folder"
        )


def _check_entries(manifest: Manifest) -> None:
    for entry in manifest.files:
        limit = MAX_BYTES.get(entry.path)
        if limit is None:
            raise _other_files(manifest)
        if entry.size > limit:
            raise PeerError(f"{entry.path}: expected at most {limit} bytes, found {entry.size}")


def _other_files(manifest: Manifest) -> PeerError:
    return PeerError(
        f"manifest: expected the files {sorted(REQUIRED)} and perhaps {ADAPTER_WEIGHTS},"
        f" found {sorted(entry.path for entry in manifest.files)}"
    )


def _check_file_set(folder: Path, manifest: Manifest) -> None:
    paths = {entry.path for entry in manifest.files}
    if not paths >= REQUIRED:
        raise _other_files(manifest)
    missing = {MANIFEST_NAME, *paths, *(entry.chunks_path for entry in manifest.files)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == VARIANTS and manifest.variants:
                _check_variant_folders(folder / VARIANTS, manifest)
                continue
            if entry.name not in missing:
                raise IntegrityError(f"expected no file {entry.name[:64]!a} in the bundle")
            if not entry.is_file(follow_symlinks=False):
                raise IntegrityError(
                    f"expected {entry.name} as a plain file, found a link or folder"
                )
            missing.remove(entry.name)
    if missing:
        raise IntegrityError(f"expected the file {min(missing)}, found none: fetch it again")


def _check_variant_folders(folder: Path, manifest: Manifest) -> None:
    """Beside the main emulator lie all variants or none, each a folder; `open_bundle` opens one."""
    expected = {entry.name for entry in manifest.variants}
    if folder.is_symlink() or not folder.is_dir():
        raise IntegrityError(f"expected {VARIANTS} as a folder, found a link or file")
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    if found != expected or len(list(folder.iterdir())) != len(expected):
        raise IntegrityError(f"expected the variants {sorted(expected)} and nothing else")


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for entry in manifest.files:
        for name, size in ((entry.path, entry.size), (entry.chunks_path, entry.chunks_bytes)):
            found = (folder / name).stat().st_size
            if found != size:
                raise IntegrityError(f"{name}: expected {size} bytes, found {found}")


def _advance(report: Report, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return advance


def _check_tensors(folder: Path, manifest: Manifest) -> BundleSchema:
    schema = BundleSchema.from_bytes(
        (folder / SCHEMA).read_bytes(), manifest.layer_map, manifest.packing
    )
    if schema.adapter_sha256 != manifest.adapter_sha256:
        raise PeerError(f"{SCHEMA}: expected the adapter that the manifest names, found another")
    check_schema(read_header(folder / EMULATOR_WEIGHTS), schema.stored_emulator)
    has_adapter_file = any(entry.path == ADAPTER_WEIGHTS for entry in manifest.files)
    found = read_header(folder / ADAPTER_WEIGHTS) if has_adapter_file else {}
    check_schema(found, schema.stored_adapter)
    return schema


def _read_config(folder: Path, kept_blocks: int) -> JsonObject:
    data = (folder / CONFIG).read_bytes()
    return check_config(parse_json(data, CONFIG, MAX_CONFIG_BYTES), kept_blocks)
