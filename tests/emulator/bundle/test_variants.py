"""Variants of a release: complete bundles of their own, named and bound by the main manifest."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.varied import SIGNER, Varied, tiny_varied

from offsite.emulator.bundle.manifest import (
    MANIFEST_NAME,
    MANIFEST_TYPE,
    MAX_VARIANTS,
    Manifest,
    ReleaseFacts,
)
from offsite.emulator.bundle.reader import open_bundle, open_manifest, open_variant_manifest
from offsite.emulator.bundle.variants import check_variant, emulator_names, variant_entry
from offsite.emulator.bundle.writer import Contents, Variant, write_bundle
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.packing.packing import Packing
from offsite.secure.envelope import from_bytes, sign, to_bytes
from offsite.secure.errors import ConfigError, IntegrityError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey

NOW = 1_800_000_000
STRANGER = IdentityKey.from_seed(bytes(32))


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Varied:
    return tiny_varied(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def written(varied: Varied, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "bundle"
    varied.release(folder, now=NOW)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(written, tmp_path / "bundle")
    yield tmp_path / "bundle"


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_bytes(from_bytes((folder / MANIFEST_NAME).read_bytes()).payload)


def test_every_variant_is_a_complete_bundle_of_the_same_release(written: Path) -> None:
    main = open_bundle(written, SIGNER.public, NOW)
    assert (main.variant, main.main, main.release_digest) == ("main", None, main.digest)
    assert emulator_names(main.manifest) == ("main", "small", "packed")
    for name in ("small", "packed"):
        variant = open_bundle(written, SIGNER.public, NOW, emulator=name)
        alone = open_bundle(written / "variants" / name, SIGNER.public, NOW)
        assert alone.signed == variant.signed and alone.manifest.variants == ()
        assert variant.variant == name and variant.folder == written / "variants" / name
        assert variant.release_digest == main.digest != variant.digest
        assert variant.adapter_schema == main.adapter_schema
        entry = variant_entry(main.manifest, name)
        assert entry.bundle_bytes == variant.manifest.bundle_bytes
        assert entry.tuning_bytes == variant.manifest.tuning_bytes > 0
        variant.load_emulator(torch.float32)
    small, packed = (variant_entry(main.manifest, name) for name in ("small", "packed"))
    assert small.tuning_bytes < main.manifest.tuning_bytes == packed.tuning_bytes
    assert packed.bundle_bytes < main.manifest.bundle_bytes


def test_equal_input_gives_equal_bytes(varied: Varied, written: Path, tmp_path: Path) -> None:
    varied.release(tmp_path / "bundle", now=NOW)
    for path in written.rglob("*"):
        if path.is_file():
            again = tmp_path / "bundle" / path.relative_to(written)
            assert again.read_bytes() == path.read_bytes()


def test_the_manifest_with_variants_round_trips(written: Path) -> None:
    manifest = manifest_of(written)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_variants_are_asked_for_one_by_one(varied: Varied, tmp_path: Path) -> None:
    """An emulator is on the disk before the next one is made."""
    facts = varied.facts(now=NOW)
    seen: list[list[str]] = []

    def variants() -> Iterator[Variant]:
        for name in ("one", "two"):
            done = tmp_path.glob(f"bundle.partial/variants/*/{MANIFEST_NAME}")
            seen.append([path.parent.name for path in done])
            yield Variant(name, varied.contents(0.3), facts)

    folder = tmp_path / "bundle"
    write_bundle(folder, varied.contents(1.0), facts, SIGNER, variants=variants())
    assert sorted(path.name for path in (folder / "variants").iterdir()) == ["one", "two"]
    assert seen == [[], ["one"]]


@pytest.mark.parametrize("name", ["main", "auto", "", "a/b", "..", "Small", "a" * 33, "-a"])
def test_a_name_that_could_be_misread_is_refused(name: str, varied: Varied, tmp_path: Path) -> None:
    facts = varied.facts(now=NOW)
    variant = Variant(name, varied.contents(0.3), facts)
    with pytest.raises(ConfigError, match="variant: expected a name of"):
        write_bundle(tmp_path / "b", varied.contents(1.0), facts, SIGNER, variants=[variant])
    assert not list(tmp_path.iterdir())


def test_a_name_twice_is_refused(varied: Varied, tmp_path: Path) -> None:
    facts = varied.facts(now=NOW)
    variant = Variant("small", varied.contents(0.3), facts)
    with pytest.raises(ConfigError, match="found small twice"):
        write_bundle(
            tmp_path / "b", varied.contents(1.0), facts, SIGNER, variants=[variant, variant]
        )


def other_slots(varied: Varied) -> Contents:
    return replace(varied, placement=Placement(1, 2)).contents(1.0)


def other_rank(varied: Varied) -> Contents:
    return replace(varied, spec=replace(varied.spec, rank=3)).contents(1.0)


@pytest.mark.parametrize(
    ("change", "contents", "message"),
    [
        ({"release_version": 2}, None, "release_version: expected 1"),
        ({"project": "sea"}, None, "project"),
        ({"base_model": "other"}, None, "base_model"),
        ({"base_fingerprint": "cd" * 32}, None, "base_fingerprint"),
        ({"created_unix_s": NOW - 1}, None, "created_unix_s"),
        ({"expires_unix_s": NOW + 9999}, None, "expires_unix_s"),
        ({}, other_slots, "slots"),
        ({}, other_rank, "adapter"),
    ],
)
def test_a_variant_of_another_release_is_not_published(
    change: dict[str, object],
    contents: Callable[[Varied], Contents] | None,
    message: str,
    varied: Varied,
    tmp_path: Path,
) -> None:
    facts = varied.facts(now=NOW)
    made = varied.contents(0.3) if contents is None else contents(varied)
    variant = Variant("small", made, replace(facts, **change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"an edge would refuse.*variant small: {message}"):
        write_bundle(tmp_path / "b", varied.contents(1.0), facts, SIGNER, variants=[variant])
    assert not list(tmp_path.iterdir())


# What an edge refuses before it fetches a file


def test_the_manifest_of_a_variant_is_refused_unless_it_is_the_named_one(written: Path) -> None:
    main = manifest_of(written)
    packed = (written / "variants" / "packed" / MANIFEST_NAME).read_bytes()
    open_variant_manifest(packed, main, "packed", SIGNER.public, NOW)
    with pytest.raises(IntegrityError, match="variant small: expected the manifest that the"):
        open_variant_manifest(packed, main, "small", SIGNER.public, NOW)
    with pytest.raises(ConfigError, match=r"\(main, small, packed\), found 'huge'"):
        open_variant_manifest(packed, main, "huge", SIGNER.public, NOW)


def named(main: Manifest, name: str, envelope: bytes) -> Manifest:
    """A main manifest that names another envelope: what a hostile owner could sign."""
    digest = hashlib.sha256(envelope).digest()
    entries = tuple(
        replace(entry, manifest_sha256=digest) if entry.name == name else entry
        for entry in main.variants
    )
    return replace(main, variants=entries)


def test_a_variant_signed_by_another_key_is_refused(written: Path) -> None:
    main = manifest_of(written)
    payload = from_bytes((written / "variants/small" / MANIFEST_NAME).read_bytes()).payload
    forged = to_bytes(sign(MANIFEST_TYPE, payload, STRANGER))
    with pytest.raises(SignatureError):
        open_variant_manifest(forged, named(main, "small", forged), "small", SIGNER.public, NOW)


def changed(manifest: Manifest, **facts: object) -> Manifest:
    return replace(manifest, facts=replace(manifest.facts, **facts))  # type: ignore[arg-type]


def moved(manifest: Manifest) -> Manifest:
    """Its top slot is another block of the full model."""
    return replace(manifest, layer_map=LayerMap.of(Placement(1, 1), 7, (1, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: changed(m, release_version=2), "release_version"),
        (lambda m: changed(m, project="sea"), "project"),
        (lambda m: changed(m, base_fingerprint="cd" * 32), "base_fingerprint"),
        (lambda m: changed(m, base_model="other"), "base_model"),
        (lambda m: changed(m, expires_unix_s=NOW + 5000), "expires_unix_s"),
        (lambda m: replace(m, adapter=replace(m.adapter, seed=9)), "adapter"),
        (lambda m: replace(m, adapter_sha256=bytes(32)), "adapter_sha256"),
        (moved, "base_blocks"),
        (lambda m: replace(m, tuning_bytes=m.tuning_bytes - 1), "tuning_bytes"),
        (lambda m: replace(m, files=m.files[1:]), "bundle_bytes"),
        (
            lambda m: replace(
                m,
                files=tuple(
                    replace(f, sha256=bytes(32)) if f.path == "tokenizer.json" else f
                    for f in m.files
                ),
            ),
            "tokenizer.json",
        ),
    ],
)
def test_a_variant_that_does_not_fit_the_release_is_refused(
    change: Callable[[Manifest], Manifest], message: str, written: Path
) -> None:
    main = manifest_of(written)
    small = manifest_of(written / "variants" / "small")
    check_variant(main, variant_entry(main, "small"), small)
    payload = change(small).to_bytes()
    forged = to_bytes(sign(MANIFEST_TYPE, payload, SIGNER))
    with pytest.raises(PeerError, match=f"variant small: {message}: expected"):
        open_variant_manifest(forged, named(main, "small", forged), "small", SIGNER.public, NOW)


def test_a_variant_with_variants_is_refused(written: Path) -> None:
    main = manifest_of(written)
    payload = replace(manifest_of(written / "variants/small"), variants=main.variants).to_bytes()
    forged = to_bytes(sign(MANIFEST_TYPE, payload, SIGNER))
    with pytest.raises(PeerError, match="no variants of its own"):
        open_variant_manifest(forged, named(main, "small", forged), "small", SIGNER.public, NOW)


ENTRY = {
    "name": "small",
    "manifest_sha256": "0" * 64,
    "manifest_bytes": 1,
    "bundle_bytes": 1,
    "tuning_bytes": 1,
}


@pytest.mark.parametrize(
    "variants",
    [
        [{**ENTRY, "name": name}]
        for name in ("main", "auto", "..", "a/b", "A", "", "a" * 33, "a\x00", "-", None)
    ]
    + [
        [{**ENTRY, "manifest_sha256": "0"}],
        [{**ENTRY, "manifest_bytes": 0}],
        [{**ENTRY, "manifest_bytes": 1 << 20}],
        [{**ENTRY, "bundle_bytes": 0}],
        [{**ENTRY, "bundle_bytes": 1 << 53}],
        [{**ENTRY, "tuning_bytes": -1}],
        [{**ENTRY, "more": 1}],
        [{**ENTRY, "name": f"a{i}"} for i in range(MAX_VARIANTS + 1)],
        [ENTRY, ENTRY],
        {},
        ...,
    ],
    ids=lambda variants: ascii(variants)[:50],
)
def test_a_malformed_list_of_variants_is_refused(variants: object, written: Path) -> None:
    fields = json.loads(manifest_of(written).to_bytes())
    fields["variants"] = [ENTRY]
    Manifest.from_bytes(json.dumps(fields).encode())
    fields["variants"] = variants
    if variants is ...:
        del fields["variants"]
    with pytest.raises(PeerError):
        Manifest.from_bytes(json.dumps(fields).encode())


@pytest.mark.parametrize("field", ["tuning_bytes", "packing", "adapter_sha256"])
def test_the_other_new_fields_are_needed_too(field: str, written: Path) -> None:
    fields = json.loads(manifest_of(written).to_bytes())
    del fields[field]
    with pytest.raises(PeerError, match=field):
        Manifest.from_bytes(json.dumps(fields).encode())


def test_the_adapter_is_the_one_whose_digest_the_manifest_states(
    written: Path, folder: Path
) -> None:
    manifest = replace(manifest_of(written), adapter_sha256=bytes(32), variants=())
    shutil.rmtree(folder / "variants")
    payload = manifest.to_bytes()
    (folder / MANIFEST_NAME).write_bytes(to_bytes(sign(MANIFEST_TYPE, payload, SIGNER)))
    with pytest.raises(PeerError, match="expected the adapter that the manifest names"):
        open_bundle(folder, SIGNER.public, NOW)


# Folders


def only(folder: Path, name: str) -> None:
    """What an edge keeps: the main manifest and one variant."""
    for path in folder.iterdir():
        if path.name not in (MANIFEST_NAME, "variants"):
            path.unlink()
    for path in (folder / "variants").iterdir():
        if path.name != name:
            shutil.rmtree(path)


def test_an_edge_opens_the_emulator_that_is_there(folder: Path) -> None:
    only(folder, "small")
    bundle = open_bundle(folder, SIGNER.public, NOW)
    assert bundle.variant == "small" and bundle.manifest.facts.ratio == 0.3
    with pytest.raises(PeerError):
        open_bundle(folder, SIGNER.public, NOW, emulator="main")
    with pytest.raises(IntegrityError):
        open_bundle(folder, SIGNER.public, NOW, emulator="packed")
    with pytest.raises(ConfigError, match="main, small, packed"):
        open_bundle(folder, SIGNER.public, NOW, emulator="../variants/small")


def test_the_main_emulator_alone_is_a_whole_release(folder: Path) -> None:
    shutil.rmtree(folder / "variants")
    assert open_bundle(folder, SIGNER.public, NOW).variant == "main"


@pytest.mark.parametrize(
    "name", ["manifest.envelope", "emulator.safetensors", "schema.json.chunks"]
)
def test_a_changed_variant_is_refused(name: str, folder: Path) -> None:
    path = folder / "variants" / "small" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    open_bundle(folder, SIGNER.public, NOW)
    with pytest.raises(PeerError):
        open_bundle(folder, SIGNER.public, NOW, emulator="small")


def test_something_beside_the_variants_is_refused(folder: Path) -> None:
    (folder / "variants" / "more").mkdir()
    with pytest.raises(IntegrityError, match="and nothing else"):
        open_bundle(folder, SIGNER.public, NOW)
    (folder / "variants" / "more").rmdir()
    (folder / "variants" / "small" / "more").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="expected no file 'more'"):
        open_bundle(folder, SIGNER.public, NOW, emulator="small")


def test_a_missing_variant_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "variants" / "small")
    with pytest.raises(IntegrityError, match="and nothing else"):
        open_bundle(folder, SIGNER.public, NOW)


@pytest.mark.parametrize("name", ["variants", "variants/small"])
def test_a_link_in_the_place_of_a_folder_is_refused(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / name)
    for emulator in ("main", "small"):
        with pytest.raises(IntegrityError):
            open_bundle(folder, SIGNER.public, NOW, emulator=emulator)


def test_a_release_without_variants_has_no_such_folder(varied: Varied, tmp_path: Path) -> None:
    facts: ReleaseFacts = varied.facts(now=NOW)
    write_bundle(tmp_path / "b", varied.contents(1.0), facts, SIGNER)
    (tmp_path / "b" / "variants").mkdir()
    with pytest.raises(IntegrityError, match="expected no file 'variants'"):
        open_bundle(tmp_path / "b", SIGNER.public, NOW)


def test_a_failure_in_a_variant_leaves_the_earlier_release(varied: Varied, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    facts = varied.facts(2, NOW)
    unmeasured = replace(varied.contents(1.0), packing=Packing.INT8)
    with pytest.raises(ConfigError, match="call roundtrip"):
        variants = [Variant("small", unmeasured, facts)]
        write_bundle(folder, varied.contents(1.0), facts, SIGNER, variants=variants)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_the_main_manifest_can_be_verified_by_itself(written: Path) -> None:
    signed = open_manifest((written / MANIFEST_NAME).read_bytes(), SIGNER.public, NOW)
    assert [entry.name for entry in signed.manifest.variants] == ["small", "packed"]
