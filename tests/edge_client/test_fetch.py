"""Fetching a release: verified as it arrives, resumed, never mixed, never lost."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.edge_client.releases import CHUNKS, FILE, SIGNER, SIZE, Line, artefacts, write_release
from tests.loopback import Loopback, serving

from offsite.edge_client import sink
from offsite.edge_client.fetch import (
    Source,
    ask_for_emulator,
    ask_for_release,
    fetch_release,
    prepare_incoming,
    receive_files,
    reserved_bytes,
)
from offsite.edge_client.resume import Persistence
from offsite.emulator.bundle.manifest import CHUNKS_SUFFIX, MANIFEST_NAME
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.progress import Report, silent
from offsite.secure import limits
from offsite.secure.errors import (
    DiskFullError,
    ExpiredError,
    IntegrityError,
    MachineError,
    PeerError,
    SignatureError,
    TransportError,
)
from offsite.secure.identity import IdentityKey

GIB = 1024 * limits.MIB
PATIENT = Persistence(retries=2, sleep=lambda _: None)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    write_release(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def line(published: Path) -> Line:
    return Line(published)


@pytest.fixture
def loopback(line: Line) -> Iterator[Loopback]:
    with serving(artefacts(line)) as running:
        yield running


@pytest.fixture
def source(loopback: Loopback) -> Iterator[Source]:
    with loopback.channel("anna") as channel:
        yield Source(channel, SIGNER.public, time.time(), persistence=PATIENT)


def receive(source: Source, folder: Path, report: Report = silent) -> Path:
    """Steps (1) to (4) of `fetch_release`; the bytes of these releases are no model."""
    envelope, signed = ask_for_release(source)
    wanted = ask_for_emulator(source, envelope, signed)
    incoming = prepare_incoming(folder, wanted)
    receive_files(source, wanted.manifest, incoming, report)
    return incoming


def test_a_release_arrives_as_it_was_published(
    source: Source, published: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    incoming = receive(source, tmp_path / "bundle", lambda *at: seen.append(at))
    names = sorted(path.name for path in published.iterdir())
    assert sorted(path.name for path in incoming.iterdir()) == names
    for name in names:
        assert (incoming / name).read_bytes() == (published / name).read_bytes()
    total = SIZE + CHUNKS * 32
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_a_cut_stream_goes_on_at_the_last_verified_chunk(
    source: Source, line: Line, published: Path, tmp_path: Path
) -> None:
    line.cuts = [1, 1, 1]  # more cuts than tries, but each moved something
    incoming = receive(source, tmp_path / "bundle")
    assert line.offsets == [index * limits.CHUNK_BYTES for index in range(4)]
    assert line.sent == [1, 1, 1, 2]
    assert (incoming / FILE).read_bytes() == (published / FILE).read_bytes()


def test_cuts_without_progress_end_it_and_lose_nothing(
    source: Source, line: Line, tmp_path: Path
) -> None:
    line.cuts = [2, 0, 0, 0]
    with pytest.raises(TransportError, match="the line was cut"):
        receive(source, tmp_path / "bundle")
    receive(source, tmp_path / "bundle")
    assert line.offsets[-1] == 2 * limits.CHUNK_BYTES and line.sent[-1] == 3


def test_a_flipped_bit_is_noticed_on_arrival_and_not_written(
    source: Source, line: Line, published: Path, tmp_path: Path
) -> None:
    line.flip = 3
    with pytest.raises(IntegrityError, match=f"{FILE}: chunk 3 of {CHUNKS} differs"):
        receive(source, tmp_path / "bundle")
    kept = (tmp_path / "bundle.incoming" / FILE).read_bytes()
    assert kept == (published / FILE).read_bytes()[: 3 * limits.CHUNK_BYTES]
    line.flip = None
    receive(source, tmp_path / "bundle")
    assert line.offsets[-1] == 3 * limits.CHUNK_BYTES


def test_a_chunk_of_another_size_is_refused(source: Source, line: Line, tmp_path: Path) -> None:
    line.shortened = 1
    with pytest.raises(PeerError, match="does not follow the protocol"):
        receive(source, tmp_path / "bundle")
    assert (tmp_path / "bundle.incoming" / FILE).stat().st_size == limits.CHUNK_BYTES


def test_the_first_surplus_byte_ends_a_stream(source: Source, line: Line, tmp_path: Path) -> None:
    line.surplus = b"x"
    with pytest.raises(PeerError, match=f"a chunk of 0 bytes at byte {SIZE}, found 1"):
        receive(source, tmp_path / "bundle")
    assert (tmp_path / "bundle.incoming" / FILE).stat().st_size == SIZE


def test_a_flipped_bit_in_the_list_of_digests_is_refused(
    source: Source, published: Path, tmp_path: Path
) -> None:
    path = published / (FILE + CHUNKS_SUFFIX)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(IntegrityError, match="expected the signed digest"):
        receive(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle.incoming" / path.name).exists()


def test_what_a_kill_left_on_the_disk_is_hashed_again(
    source: Source, line: Line, published: Path, tmp_path: Path
) -> None:
    incoming = receive(source, tmp_path / "bundle")
    path = incoming / FILE
    data = path.read_bytes()
    path.write_bytes(data[: 2 * limits.CHUNK_BYTES] + bytes(limits.CHUNK_BYTES))  # a hole
    receive(source, tmp_path / "bundle")
    assert line.offsets == [0, 2 * limits.CHUNK_BYTES]
    assert path.read_bytes() == (published / FILE).read_bytes()
    receive(source, tmp_path / "bundle")
    assert line.offsets == [0, 2 * limits.CHUNK_BYTES]  # complete: nothing was asked for


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.edge_client.releases import SIGNER
from tests.edge_client.test_fetch import Source, receive
from tests.loopback import dial
from offsite.secure import limits
from offsite.secure.certificates import Credential

def kill(done, total):
    if done > 2 * limits.CHUNK_BYTES:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[2])
ca, cert, key = ((folder / name).read_bytes() for name in ("ca", "cert", "key"))
with dial(sys.argv[1], ca, Credential(cert, key)) as channel:
    receive(Source(channel, SIGNER.public, time.time()), folder / "bundle", kill)
"""


def test_a_killed_fetch_resumes(
    loopback: Loopback, line: Line, source: Source, published: Path, tmp_path: Path
) -> None:
    credential = loopback.credential("anna")
    (tmp_path / "ca").write_bytes(loopback.authority.cert_pem)
    (tmp_path / "cert").write_bytes(credential.cert_pem)
    (tmp_path / "key").write_bytes(credential.key_pem)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, loopback.address, str(tmp_path)], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    incoming = receive(source, tmp_path / "bundle")
    assert (incoming / FILE).read_bytes() == (published / FILE).read_bytes()
    assert line.offsets[0] == 0 and line.offsets[1] >= 2 * limits.CHUNK_BYTES


def test_a_new_release_in_between_starts_anew_without_mixing(
    source: Source, line: Line, published: Path, tmp_path: Path
) -> None:
    line.cuts = [2, 0, 0, 0]
    with pytest.raises(TransportError):
        receive(source, tmp_path / "bundle")
    data = write_release(published, version=2, seed=1)
    incoming = receive(source, tmp_path / "bundle")
    assert (incoming / FILE).read_bytes() == data
    assert (incoming / MANIFEST_NAME).read_bytes() == (published / MANIFEST_NAME).read_bytes()
    assert line.offsets[-1] == 0


def test_a_release_published_during_a_stream_is_fetched_instead(
    source: Source, line: Line, published: Path, tmp_path: Path
) -> None:
    line.cuts = [2]

    def publish(done: int, total: int) -> None:
        if line.sent == [2] and done > limits.CHUNK_BYTES:
            line.sent.append(0)
            write_release(published, version=2, seed=1)

    # The bytes are no model, so the last check refuses the second release, and it alone.
    with pytest.raises(PeerError, match="expected the files"):
        fetch_release(source, tmp_path / "bundle", report=publish)
    assert line.offsets == [0, 0]


def test_a_full_disk_is_met_before_it_is_full(
    source: Source, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, SIZE))
    with pytest.raises(DiskFullError, match=f"free at least {CHUNKS * 32} bytes"):
        receive(source, tmp_path / "bundle")
    assert line.offsets == []


@pytest.mark.parametrize(
    ("disk", "reserved"),
    [
        (1000 * GIB, 50 * GIB),
        (4 * GIB, 256 * limits.MIB),
        (GIB, GIB // 10),
        (0, 0),
    ],
)
def test_a_release_leaves_some_of_a_disk_free(disk: int, reserved: int) -> None:
    assert reserved_bytes(disk) == reserved


def test_a_release_that_would_take_the_last_of_a_disk_is_not_fetched(
    source: Source, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    disk, needed = 100 * GIB, SIZE + CHUNKS * 32
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(disk, 0, 5 * GIB + needed - 1))
    with pytest.raises(DiskFullError, match="free at least 1 bytes"):
        receive(source, tmp_path / "bundle")
    assert line.offsets == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(disk, 0, 5 * GIB + needed))
    receive(source, tmp_path / "bundle")


def test_a_disk_that_fills_up_keeps_what_is_there(
    source: Source, line: Line, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    written = 0

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal written
        if written + len(data) > 2 * limits.CHUNK_BYTES:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
            raise OSError(errno.ENOSPC, "No space left on device")
        written += len(data)
        return real_write(descriptor, data)

    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(sink.os, "write", write)
        with pytest.raises(DiskFullError) as refused:
            receive(source, tmp_path / "bundle")
    missing = SIZE - 2 * limits.CHUNK_BYTES - 1000
    assert f"free at least {missing} bytes" in str(refused.value)
    assert "what was fetched is kept" in str(refused.value)
    monkeypatch.undo()
    incoming = receive(source, tmp_path / "bundle")
    assert line.offsets[-1] == 2 * limits.CHUNK_BYTES
    assert (incoming / FILE).read_bytes() == (published / FILE).read_bytes()


def test_a_manifest_by_another_key_is_refused_before_anything_is_fetched(
    source: Source, line: Line, tmp_path: Path
) -> None:
    stranger = IdentityKey.from_seed(bytes(32)).public
    with pytest.raises(SignatureError):
        fetch_release(replace(source, coordinator_key=stranger), tmp_path / "bundle")
    assert line.offsets == [] and not (tmp_path / "bundle.incoming").exists()


def test_an_expired_release_is_refused(source: Source, line: Line, tmp_path: Path) -> None:
    with pytest.raises(ExpiredError):
        fetch_release(replace(source, now_unix_s=time.time() + 10**6), tmp_path / "bundle")
    assert line.offsets == []


def test_a_release_of_another_base_model_is_refused(
    source: Source, line: Line, tmp_path: Path
) -> None:
    write_release(tmp_path / "bundle", base="11" * 32)  # accepted before
    with pytest.raises(PeerError, match="of the base model"):
        fetch_release(source, tmp_path / "bundle")
    assert line.offsets == []


def test_an_older_release_is_refused(source: Source, line: Line, tmp_path: Path) -> None:
    write_release(tmp_path / "bundle", version=2, seed=1, ttl_s=-30)  # accepted once, now expired
    with pytest.raises(PeerError, match="expected release 2 or later, found 1"):
        fetch_release(source, tmp_path / "bundle")
    assert line.offsets == []


def test_no_release_yet_is_a_matter_of_time(
    source: Source, published: Path, tmp_path: Path
) -> None:
    shutil.rmtree(published)
    with pytest.raises(TransportError, match="no release is published yet"):
        fetch_release(source, tmp_path / "bundle")


@pytest.fixture(scope="module")
def real_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a release that holds a model: `1` and `2`."""
    import torch
    from tests.tiny import save_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
    from offsite.emulator.bundle.manifest import ReleaseFacts
    from offsite.emulator.bundle.writer import Contents, write_bundle
    from offsite.emulator.layer_map import LayerMap, Placement

    folder = tmp_path_factory.mktemp("real")
    tokenizer = save_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    layer_map = LayerMap.of(Placement(1, 1), 3, (1,))
    spec = AdapterSpec(AdapterKind.WHOLE_BLOCK)
    adapter = make_adapter(spec, layer_map)
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    now = int(time.time())
    for version in (1, 2):
        facts = ReleaseFacts("test", version, now, now + 3600, "tiny", "00" * 32, "none", 1.0, {})
        contents = Contents(model, config, layer_map, spec, tensors, tokenizer)
        write_bundle(folder / str(version), contents, facts, SIGNER)
    return folder


def publish(real_releases: Path, version: int, published: Path) -> None:
    shutil.rmtree(published)
    shutil.copytree(real_releases / str(version), published)


def test_a_verified_release_takes_the_place_of_the_one_before(
    source: Source, line: Line, real_releases: Path, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    for version in (1, 2):
        publish(real_releases, version, published)
        bundle = fetch_release(source, folder)
        assert bundle.folder == folder
        assert bundle.manifest.facts.release_version == version
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "published"]
    fetch_release(source, folder)
    assert len(line.offsets) == 2  # the third time nothing was asked for
    publish(real_releases, 1, published)
    with pytest.raises(PeerError, match="an old release was offered again"):
        fetch_release(source, folder)
    assert open_bundle(folder, SIGNER.public, time.time()).manifest.facts.release_version == 2


def test_a_damaged_release_is_fetched_again(
    source: Source, line: Line, real_releases: Path, published: Path, tmp_path: Path
) -> None:
    publish(real_releases, 1, published)
    path = fetch_release(source, tmp_path / "bundle").folder / FILE
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fetch_release(source, tmp_path / "bundle")
    assert path.read_bytes() == data and len(line.offsets) == 2


@pytest.mark.parametrize("damage", [b"", b"damaged", bytes(300_000)])
def test_a_damaged_manifest_is_fetched_again(
    source: Source, real_releases: Path, published: Path, tmp_path: Path, damage: bytes
) -> None:
    publish(real_releases, 1, published)
    manifest = fetch_release(source, tmp_path / "bundle").folder / MANIFEST_NAME
    data = manifest.read_bytes()
    manifest.write_bytes(damage)
    fetch_release(source, tmp_path / "bundle")
    assert manifest.read_bytes() == data


def test_a_folder_that_refuses_is_an_error_of_ours(source: Source, tmp_path: Path) -> None:
    (tmp_path / "bundle.incoming").write_bytes(b"no folder")
    with pytest.raises(MachineError, match="cannot write"):
        fetch_release(source, tmp_path / "bundle")


def test_a_sink_that_cannot_begin_keeps_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(sink.os, "ftruncate", refuse)
        with (
            pytest.raises(MachineError, match="Input/output error"),
            sink.VerifiedSink(tmp_path / "file", b"", 0),
        ):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kill_between_the_renames_loses_no_release(
    source: Source, line: Line, real_releases: Path, published: Path, tmp_path: Path
) -> None:
    publish(real_releases, 1, published)
    folder = fetch_release(source, tmp_path / "bundle").folder
    folder.rename(tmp_path / "bundle.previous")  # killed here
    fetch_release(source, folder)
    assert len(line.offsets) == 1 and not (tmp_path / "bundle.previous").exists()


def test_a_release_that_fails_the_last_check_is_not_put_in_place(
    source: Source, tmp_path: Path
) -> None:
    with pytest.raises(PeerError, match="expected the files"):
        fetch_release(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "bundle.incoming").exists()
    assert (tmp_path / "published" / MANIFEST_NAME).exists()
