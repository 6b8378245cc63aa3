"""What counts as a message and as its reply, across kills, strangers and deadlines."""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.loopback import Post

from offsite.coordinator.mailbox import Outgoing
from offsite.coordinator.spool import ReplyFile
from offsite.secure.errors import ExpiredError, PeerError

ID, OTHER = "a" * 32, "b" * 32
DEADLINE_S = 60.0
MOST_REPLY_BYTES = 1 << 20


@pytest.fixture
def post(tmp_path: Path) -> Post:
    post = Post(tmp_path, "anna", "ben")
    post.mailbox.post(1, "1.1", [outgoing(ID, "anna")])
    return post


def outgoing(message_id: str, client_id: str) -> Outgoing:
    data = b"tune " + client_id.encode()
    return Outgoing(message_id, client_id, [data], time.time() + DEADLINE_S, MOST_REPLY_BYTES)


def reply(post: Post, data: bytes, client_id: str = "anna", message_id: str = ID) -> None:
    file = ReplyFile(message_id, len(data), hashlib.sha256(data).digest())
    upload = post.mailbox.open_upload(client_id, file, 0)
    if upload is not None:
        with upload:
            upload.write(data)
            post.mailbox.accept(client_id, upload)


def accepted(post: Post) -> bytes | None:
    row = post.mailbox.get(ID)
    path = None if row is None else post.mailbox.reply_path(row)
    return None if path is None else path.read_bytes()


def test_messages_and_replies_outlive_a_kill(post: Post) -> None:
    post = post.again()
    row = post.mailbox.next_instruction("anna")
    assert row is not None and row.message_id == ID
    assert post.mailbox.instruction_path("anna", ID).read_bytes() == b"tune anna"
    reply(post, b"done")
    post = post.again()
    assert accepted(post) == b"done"
    assert post.mailbox.next_instruction("anna") is None


def test_only_the_addressee_sees_a_message(post: Post) -> None:
    assert post.mailbox.next_instruction("ben") is None
    messages = []
    for client_id, message_id in (("ben", ID), ("anna", OTHER)):
        with pytest.raises(PeerError) as refused:
            post.mailbox.instruction_path(client_id, message_id)
        messages.append(str(refused.value).replace(message_id, "ID"))
        with pytest.raises(PeerError, match="not known to you"):
            reply(post, b"forged", client_id, message_id)
    assert messages[0] == messages[1]  # foreign or unknown: the same words
    assert accepted(post) is None


def test_the_same_reply_again_is_acknowledged_again(post: Post) -> None:
    reply(post, b"done")
    reply(post, b"done")
    assert post.mailbox.stored_bytes("anna", ID, hashlib.sha256(b"done").digest()) is None
    assert accepted(post) == b"done"


def test_another_reply_is_refused_and_logged(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    reply(post, b"done")
    with caplog.at_level(logging.WARNING), pytest.raises(PeerError, match="only the first counts"):
        reply(post, b"else")
    assert accepted(post) == b"done"
    assert "client anna sent a second, different reply" in caplog.text


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(500_000)])
def test_what_cannot_be_a_digest_is_refused_and_never_logged(
    post: Post, caplog: pytest.LogCaptureFixture, digest: bytes
) -> None:
    reply(post, b"done")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(PeerError, match=f"32 bytes, found {len(digest)}$"),
    ):
        post.mailbox.stored_bytes("anna", ID, digest)
    assert caplog.text == ""


def test_no_reply_is_taken_past_the_deadline(post: Post) -> None:
    post.offset_s = DEADLINE_S + 5
    with pytest.raises(ExpiredError, match="goes on without it"):
        reply(post, b"done")
    assert accepted(post) is None
    assert post.mailbox.next_instruction("anna") is None


def test_a_reply_that_becomes_late_while_it_travels_is_not_taken(post: Post) -> None:
    file = ReplyFile(ID, 4, hashlib.sha256(b"done").digest())
    upload = post.mailbox.open_upload("anna", file, 0)
    assert upload is not None
    with upload:
        upload.write(b"done")
        post.offset_s = DEADLINE_S + 5
        with pytest.raises(ExpiredError):
            post.mailbox.accept("anna", upload)
    assert accepted(post) is None


def test_a_closed_round_leaves_nothing_behind(post: Post) -> None:
    file = ReplyFile(ID, 4, hashlib.sha256(b"done").digest())
    upload = post.mailbox.open_upload("anna", file, 0)
    assert upload is not None
    post.mailbox.close(1, "1.1")
    assert post.spool.message_ids() == []
    assert post.mailbox.of_group(1, "1.1") == []
    with upload:  # one that was on its way
        upload.write(b"done")
        with pytest.raises(PeerError, match="withdrawn"):
            post.mailbox.accept("anna", upload)
    assert post.spool.message_ids() == []


def test_a_message_that_is_erased_meanwhile_was_withdrawn(post: Post) -> None:
    post.spool.erase(ID)
    with pytest.raises(PeerError, match="withdrawn"):
        reply(post, b"done")


def test_whoever_goes_on_with_a_message_has_not_taken_the_end(post: Post) -> None:
    post.mailbox.tell_end("anna")
    post.mailbox.tell_end("ben")
    post.mailbox.close(1, "1.1")
    with pytest.raises(PeerError):
        post.mailbox.stored_bytes("anna", ID, bytes(32))
    assert post.mailbox.told == {"ben"}


def test_instructions_are_posted_together_or_not_at_all(post: Post) -> None:
    def messages() -> Iterator[Outgoing]:
        yield outgoing(OTHER, "ben")
        raise RuntimeError("no further message")

    with pytest.raises(RuntimeError):
        post.mailbox.post(1, "2.1", messages())
    assert post.mailbox.next_instruction("ben") is None
    assert post.spool.message_ids() == [ID]


def test_files_without_a_row_are_erased_at_the_start(post: Post) -> None:
    post.spool.write_instruction(OTHER, [b"killed before its row was written"])
    post = post.again()
    assert post.spool.message_ids() == [ID]


def test_a_reply_that_was_killed_before_its_row_is_taken_anew(post: Post) -> None:
    post.spool.reply(ID).write_bytes(b"complete, but never acknowledged")
    post = post.again()
    assert accepted(post) is None
    reply(post, b"done")
    assert accepted(post) == b"done"


def test_a_reply_is_no_larger_than_what_its_instruction_admits(post: Post) -> None:
    file = ReplyFile(ID, MOST_REPLY_BYTES + 1, bytes(32))
    with pytest.raises(PeerError, match=f"at most {MOST_REPLY_BYTES} bytes"):
        post.mailbox.open_upload("anna", file, 0)
    with pytest.raises(PeerError, match=f"at most {MOST_REPLY_BYTES} bytes"):
        post.again().mailbox.open_upload("anna", file, 0)


def test_listeners_are_rung_for_their_own_messages(post: Post) -> None:
    rung: list[str] = []
    with (
        post.mailbox.listening("anna", lambda: rung.append("anna")),
        post.mailbox.listening("ben", lambda: rung.append("ben")),
    ):
        post.mailbox.post(1, "2.1", [outgoing(OTHER, "ben")])
    post.mailbox.post(1, "3.1", [outgoing("c" * 32, "ben")])
    assert rung == ["ben"]
