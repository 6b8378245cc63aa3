"""Whatever is changed in a bundle's folder after it was signed is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offsite.emulator.bundle.chunks import ChunkedFile, verify_chunks
from offsite.emulator.bundle.reader import open_bundle
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityKey
from offsite.secure.limits import CHUNK_BYTES

NOW_UNIX_S = 1_790_000_100

FILES = [
    f"{name}{suffix}"
    for name in (
        "adapter.safetensors",
        "config.json",
        "emulator.safetensors",
        "schema.json",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    for suffix in ("", ".chunks")
] + ["manifest.envelope"]


def assert_refused(folder: Path, signer: IdentityKey) -> None:
    with pytest.raises(PeerError):
        open_bundle(folder, signer.public, NOW_UNIX_S)


def test_these_are_all_the_files(pristine: Path, signer: IdentityKey) -> None:
    assert sorted(path.name for path in pristine.iterdir()) == sorted(FILES)
    open_bundle(pristine, signer.public, NOW_UNIX_S)


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(
    name: str, position: int, bit: int, bundle_folder: Path, signer: IdentityKey
) -> None:
    path = bundle_folder / name
    original = path.read_bytes()
    changed = bytearray(original)
    changed[position % len(changed)] ^= 1 << bit
    path.write_bytes(changed)
    assert_refused(bundle_folder, signer)
    path.write_bytes(original)
    open_bundle(bundle_folder, signer.public, NOW_UNIX_S)


def test_the_whole_manifest_is_covered(bundle_folder: Path, signer: IdentityKey) -> None:
    path = bundle_folder / "manifest.envelope"
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        changed = bytearray(original)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        assert_refused(bundle_folder, signer)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(name: str, bundle_folder: Path, signer: IdentityKey) -> None:
    path = bundle_folder / name
    original = path.read_bytes()
    for length in (0, 1, len(original) // 2, len(original) - 1):
        path.write_bytes(original[:length])
        assert_refused(bundle_folder, signer)


@pytest.mark.parametrize("name", FILES)
def test_an_extended_file_is_refused(name: str, bundle_folder: Path, signer: IdentityKey) -> None:
    with (bundle_folder / name).open("ab") as file:
        file.write(b"\0")
    assert_refused(bundle_folder, signer)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, bundle_folder: Path, signer: IdentityKey) -> None:
    (bundle_folder / name).unlink()
    assert_refused(bundle_folder, signer)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_the_right_bytes_is_refused(
    name: str, bundle_folder: Path, tmp_path: Path, signer: IdentityKey
) -> None:
    (bundle_folder / name).rename(tmp_path / name)
    (bundle_folder / name).symlink_to(tmp_path / name)
    assert_refused(bundle_folder, signer)


@pytest.mark.parametrize("name", ["modeling.py", ".hidden", "model.safetensors", "config.json~"])
def test_an_additional_file_is_refused(name: str, bundle_folder: Path, signer: IdentityKey) -> None:
    (bundle_folder / name).write_bytes(b"x")
    assert_refused(bundle_folder, signer)


def test_an_additional_folder_or_pipe_is_refused(bundle_folder: Path, signer: IdentityKey) -> None:
    (bundle_folder / "more").mkdir()
    assert_refused(bundle_folder, signer)
    (bundle_folder / "more").rmdir()
    (bundle_folder / "config.json").unlink()
    os.mkfifo(bundle_folder / "config.json")
    assert_refused(bundle_folder, signer)


def test_swapped_files_are_refused(bundle_folder: Path, signer: IdentityKey) -> None:
    for suffix in ("", ".chunks"):
        first, second = (
            bundle_folder / f"{name}.safetensors{suffix}" for name in ("adapter", "emulator")
        )
        first.rename(bundle_folder / "swap")
        second.rename(first)
        (bundle_folder / "swap").rename(second)
    assert_refused(bundle_folder, signer)


def test_the_chunk_that_differs_is_named(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) * 3 + b"end"
    with ChunkedFile(tmp_path, "big.bin") as file:
        for start in range(0, len(data), 100_003):
            file.write(data[start : start + 100_003])
        entry = file.finish()
    assert (entry.size, entry.num_chunks, entry.chunks_bytes) == (len(data), 4, 128)
    counted: list[int] = []
    verify_chunks(tmp_path, entry, counted.append)
    assert counted == [CHUNK_BYTES] * 3 + [3]
    changed = bytearray(data)
    changed[2 * CHUNK_BYTES + 5] ^= 1
    (tmp_path / "big.bin").write_bytes(changed)
    with pytest.raises(IntegrityError, match=r"big.bin: chunk 2 of 4"):
        verify_chunks(tmp_path, entry, counted.append)


def test_a_list_that_fits_a_changed_file_is_refused(tmp_path: Path) -> None:
    for name in ("signed", "forged"):
        (tmp_path / name).mkdir()
        with ChunkedFile(tmp_path / name, "a") as file:
            file.write(name.encode())
            entry = file.finish()
        if name == "signed":
            signed = entry
    read: list[int] = []
    with pytest.raises(IntegrityError, match=r"a\.chunks: expected the signed digest"):
        verify_chunks(tmp_path / "forged", signed, read.append)
    assert not read
