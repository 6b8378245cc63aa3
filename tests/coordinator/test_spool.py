"""Uploads on the coordinator's disk: reserved, resumed, hashed, bounded."""

import errno
import hashlib
import os
from pathlib import Path
from typing import NoReturn

import pytest

from offsite.coordinator import spool as spools
from offsite.coordinator.spool import ReplyFile, Spool
from offsite.secure import limits
from offsite.secure.errors import DiskFullError, IntegrityError, MachineError, PeerError

ID = "0123456789abcdef" * 2
DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.write_instruction(ID, [b"instruction"])
    return spool


def promised(data: bytes = DATA) -> ReplyFile:
    return ReplyFile(ID, len(data), hashlib.sha256(data).digest())


def test_a_reply_is_stored_whole_and_only_then_has_its_name(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        for start in range(0, len(DATA), limits.CHUNK_BYTES):
            upload.write(DATA[start : start + limits.CHUNK_BYTES])
            assert not spool.reply(ID).exists()
        upload.finish()
    assert spool.reply(ID).read_bytes() == DATA
    assert sorted(p.name for p in spool.reply(ID).parent.iterdir()) == ["instruction", "reply"]
    assert spool.instruction(ID).read_bytes() == b"instruction"


def test_the_disk_is_reserved_before_the_first_byte(spool: Spool) -> None:
    with spool.open_upload(promised(), 0):
        part = spool.reply(ID).with_name("reply.part").stat()
        assert part.st_size == len(DATA)
        assert part.st_blocks * 512 >= len(DATA)


def test_a_killed_upload_goes_on_where_it_was(spool: Spool) -> None:
    file, cut = promised(), 3 * limits.CHUNK_BYTES
    with spool.open_upload(file, 0) as upload:
        upload.write(DATA[:cut])
    after_restart = Spool(spool.folder)
    assert after_restart.stored_bytes(ID, file.sha256) == cut
    with after_restart.open_upload(file, cut) as upload:
        upload.write(DATA[cut:])
        upload.finish()
    assert spool.reply(ID).read_bytes() == DATA


class Killed(BaseException):
    """Stands for `kill -9`."""


def killed(*_: object, **__: object) -> NoReturn:
    raise Killed


@pytest.mark.parametrize("step", ["unlink", "rename", "sync_folder"])
def test_a_reply_that_was_killed_while_it_was_completed_is_taken_anew(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with spool.open_upload(promised(), 0) as upload, monkeypatch.context() as patch:
        upload.write(DATA)
        patch.setattr(spools if step == "sync_folder" else Path, step, killed)
        with pytest.raises(Killed):
            upload.finish()
    if step != "unlink":  # the state goes first
        assert not spool.reply(ID).with_name("reply.state").exists()
    stored = spool.stored_bytes(ID, promised().sha256)
    with spool.open_upload(promised(), stored) as upload:
        upload.write(DATA[stored:])
        upload.finish()
    assert spool.reply(ID).read_bytes() == DATA


def test_the_same_digest_with_another_size_starts_anew(spool: Spool) -> None:
    small = ReplyFile(ID, 2, promised().sha256)
    with spool.open_upload(small, 0) as upload:
        upload.write(DATA[:1])
    with pytest.raises(PeerError, match="go on at byte 0, found 1"):
        spool.open_upload(promised(), 1)
    with spool.open_upload(promised(), 0) as upload:
        assert spool.reply(ID).with_name("reply.part").stat().st_size == len(DATA)
        upload.write(DATA)
        upload.finish()
    assert spool.reply(ID).read_bytes() == DATA


def test_a_state_without_its_bytes_promises_nothing(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        upload.write(DATA[:100])
    spool.reply(ID).with_name("reply.part").unlink()  # as a power cut may leave it
    assert spool.stored_bytes(ID, promised().sha256) == 0
    spool.open_upload(promised(), 0).close()


def test_an_upload_that_cannot_be_opened_keeps_no_descriptor(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = os.open

    def recorded(path: Path, flags: int) -> int:
        opened.append(real(path, flags))
        return opened[-1]

    monkeypatch.setattr(os, "open", recorded)
    monkeypatch.setattr(spools, "_hash_up_to", refused)
    with pytest.raises(MachineError):
        spool.open_upload(promised(), 0)
    assert len(opened) == 2
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_the_first_surplus_byte_stops_an_upload(spool: Spool) -> None:
    with spool.open_upload(promised(DATA[:10]), 0) as upload:
        upload.write(DATA[:8])
        with pytest.raises(PeerError, match="expected 10 bytes, found more"):
            upload.write(DATA[8:11])
        assert upload.stored_bytes == 8
    assert spool.reply(ID).with_name("reply.part").stat().st_size == 10


def test_an_incomplete_upload_is_not_accepted_but_kept(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        upload.write(DATA[:-1])
        with pytest.raises(PeerError, match="resume the upload"):
            upload.finish()
    assert spool.stored_bytes(ID, promised().sha256) == len(DATA) - 1


def test_bytes_with_another_digest_are_not_kept(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        upload.write(DATA[:-1] + b"?")
        with pytest.raises(IntegrityError, match="send it again from the start"):
            upload.finish()
    assert spool.stored_bytes(ID, promised().sha256) == 0
    assert not spool.reply(ID).exists()


def test_bytes_that_a_power_cut_lost_are_found_by_the_digest(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        upload.write(DATA[:-1])
    part = spool.reply(ID).with_name("reply.part")
    with part.open("r+b") as file:
        file.write(bytes(4096))
    with spool.open_upload(promised(), len(DATA) - 1) as upload:
        upload.write(DATA[-1:])
        with pytest.raises(IntegrityError):
            upload.finish()


def test_another_reply_replaces_one_that_was_not_complete(spool: Spool) -> None:
    with spool.open_upload(promised(), 0) as upload:
        upload.write(DATA[:100])
    other = promised(b"other")
    assert spool.stored_bytes(ID, other.sha256) == 0
    with spool.open_upload(other, 0) as upload:
        upload.write(b"other")
        upload.finish()
    assert spool.reply(ID).read_bytes() == b"other"


def test_an_upload_goes_on_nowhere_else(spool: Spool) -> None:
    with pytest.raises(PeerError, match="go on at byte 0, found 4096"):
        spool.open_upload(promised(), 4096)


def test_a_full_disk_is_said_with_the_bytes_that_are_missing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"room for 1048576 bytes .* free at least \d+ bytes"):
        spool.open_upload(promised(), 0)
    assert not spool.reply(ID).with_name("reply.part").exists()


def refused(*_: object) -> NoReturn:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("call", ["fsync", "pwrite", "posix_fallocate"])
def test_whatever_the_disk_refuses_is_an_error_of_ours(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, refused)
    with (
        pytest.raises(MachineError, match="Input/output error"),
        spool.open_upload(promised(), 0) as upload,
    ):
        upload.write(DATA)
        upload.finish()
    if call != "posix_fallocate":
        with pytest.raises(MachineError, match="Input/output error"):
            spool.write_instruction("f" * 32, [b"instruction"])


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"a file where the folder should be")
    with pytest.raises(MachineError, match="Not a directory"):
        Spool(tmp_path / "spool").write_instruction(ID, [b"instruction"])


@pytest.mark.parametrize("message_id", ["", "..", "../" * 10 + "etc", ID.upper(), ID + "/x", "a"])
def test_an_id_that_is_not_ours_never_becomes_a_path(spool: Spool, message_id: str) -> None:
    with pytest.raises(PeerError, match="32 hex digits"):
        spool.stored_bytes(message_id, promised().sha256)


@pytest.mark.parametrize("size", [0, limits.ROUND_MESSAGE_BYTES + 1])
def test_a_reply_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(PeerError, match="expected a reply of 1 to"):
        ReplyFile(ID, size, bytes(32))
