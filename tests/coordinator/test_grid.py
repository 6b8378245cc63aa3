"""Flower's Grid on the mailbox: durable, and sceptical about what replies say of themselves."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from tests.loopback import Post

from offsite.coordinator.grid import PRESENCE_S, GrpcGrid
from offsite.coordinator.spool import ReplyFile
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes
from offsite.secure.errors import ConfigError, MachineError
from offsite.secure.names import node_id

ANNA, BEN = node_id("anna"), node_id("ben")


@pytest.fixture
def post(tmp_path: Path) -> Post:
    post = Post(tmp_path, "anna", "ben")
    for client_id in ("anna", "ben"):
        post.mailbox.heard_from(client_id, "waiting")
    return post


@pytest.fixture
def grid(post: Post) -> GrpcGrid:
    return grid_of(post)


def grid_of(post: Post) -> GrpcGrid:
    return GrpcGrid(post.mailbox, post.store, 7, post.clock)


def instruction(grid: GrpcGrid, node: int, group: str = "1.1") -> Message:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(3, np.float32))})})
    return grid.create_message(content, "train", node, group, ttl=60.0)


def answer(post: Post, client_id: str, value: float = 1.0, **spoofed: int) -> None:
    """What the client's worker and the service do, without a network."""
    row = post.mailbox.next_instruction(client_id)
    assert row is not None
    path = post.mailbox.instruction_path(client_id, row.message_id)
    arrays = ArrayRecord({"w": Array(np.full(3, value, np.float32))})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})})
    reply = Message(content, reply_to=message_from_bytes(path.read_bytes()))
    for name, number in spoofed.items():
        reply.metadata.__dict__[f"_{name}"] = number
    send(post, client_id, row.message_id, message_to_bytes(reply))


def send(post: Post, client_id: str, message_id: str, data: bytes) -> None:
    file = ReplyFile(message_id, len(data), hashlib.sha256(data).digest())
    upload = post.mailbox.open_upload(client_id, file, 0)
    assert upload is not None
    with upload:
        upload.write(data)
        post.mailbox.accept(client_id, upload)


def test_a_pushed_message_reaches_its_client_as_it_was_made(post: Post, grid: GrpcGrid) -> None:
    (message_id,) = grid.push_messages([instruction(grid, ANNA)])
    found = message_from_bytes(post.mailbox.instruction_path("anna", message_id).read_bytes())
    assert found.metadata.message_id == message_id
    assert (found.metadata.run_id, found.metadata.dst_node_id) == (7, ANNA)
    assert found.content["arrays"]["w"].numpy().tolist() == [0.0, 0.0, 0.0]


def test_messages_of_an_open_round_outlive_a_kill(post: Post, grid: GrpcGrid) -> None:
    ids = list(grid.push_messages([instruction(grid, node) for node in (ANNA, BEN)]))
    answer(post, "anna", 1.0)
    post = post.again()  # killed here, started again
    grid = grid_of(post)
    assert grid.find("1.1") == ids
    assert [m.metadata.reply_to_message_id for m in grid.pull_messages(ids)] == ids[:1]
    answer(post, "ben", 2.0)
    assert len(grid.receive(grid.find("1.1"))) == 2
    assert len(list(grid.pull_messages(ids))) == 2  # and again
    grid.close("1.1")
    assert grid.find("1.1") == [] and list(grid.pull_messages(ids)) == []


def test_send_and_receive_returns_as_soon_as_all_replies_are_there(
    post: Post, grid: GrpcGrid
) -> None:
    def both() -> None:
        while post.mailbox.next_instruction("ben") is None:
            pass
        answer(post, "ben")
        answer(post, "anna")

    edges = threading.Thread(target=both)
    edges.start()
    replies = grid.send_and_receive([instruction(grid, node) for node in (ANNA, BEN)], timeout=60)
    edges.join()
    assert {reply.metadata.src_node_id for reply in replies} == {ANNA, BEN}


def test_stragglers_are_left_out_at_the_deadline(post: Post, grid: GrpcGrid) -> None:
    grid.push_messages([instruction(grid, node) for node in (ANNA, BEN)])
    answer(post, "anna")
    post.offset_s = 61
    assert [m.metadata.src_node_id for m in grid.receive(grid.find("1.1"))] == [ANNA]


def test_a_timeout_returns_what_is_there(grid: GrpcGrid) -> None:
    assert list(grid.send_and_receive([instruction(grid, ANNA)], timeout=0.0)) == []


def test_metadata_of_a_reply_are_the_coordinators(post: Post, grid: GrpcGrid) -> None:
    (message_id,) = grid.push_messages([instruction(grid, ANNA)])
    answer(post, "anna", src_node_id=BEN, run_id=99)
    (reply,) = grid.pull_messages([message_id])
    assert (reply.metadata.src_node_id, reply.metadata.run_id) == (ANNA, 7)
    assert reply.metadata.reply_to_message_id == message_id
    assert reply.metadata.group_id == "1.1"


def test_an_unreadable_reply_is_an_error_and_stops_nobody(post: Post, grid: GrpcGrid) -> None:
    ids = list(grid.push_messages([instruction(grid, node) for node in (ANNA, BEN)]))
    send(post, "anna", ids[0], b"\xff no message at all")
    answer(post, "ben")
    broken, good = grid.pull_messages(ids)
    assert broken.has_error() and broken.error.reason == "the reply of anna cannot be read"
    assert broken.metadata.src_node_id == ANNA
    assert good.has_content()


def test_an_error_of_the_client_app_comes_as_one(post: Post, grid: GrpcGrid) -> None:
    (message_id,) = grid.push_messages([instruction(grid, ANNA)])
    path = post.mailbox.instruction_path("anna", message_id)
    failed = Message(Error(2, "no"), reply_to=message_from_bytes(path.read_bytes()))
    send(post, "anna", message_id, message_to_bytes(failed))
    (reply,) = grid.pull_messages([message_id])
    assert reply.has_error() and (reply.error.code, reply.error.reason) == (2, "no")


def test_nodes_are_active_clients_that_were_heard_from(post: Post, grid: GrpcGrid) -> None:
    assert set(grid.get_node_ids()) == {ANNA, BEN}
    post.store.clients.revoke("ben", "left", post.clock())
    assert set(grid.get_node_ids()) == {ANNA}
    post.offset_s = PRESENCE_S + 5
    assert set(grid.get_node_ids()) == set()


def test_nothing_is_sent_to_a_revoked_client(post: Post, grid: GrpcGrid) -> None:
    messages = [instruction(grid, node) for node in (ANNA, BEN)]
    post.store.clients.revoke("ben", "left", post.clock())
    assert len(list(grid.push_messages(messages))) == 1
    assert post.mailbox.next_instruction("ben") is None


def test_messages_of_two_rounds_are_not_mixed(grid: GrpcGrid) -> None:
    with pytest.raises(ConfigError, match=r"group '1\.1' alone"):
        grid.push_messages([instruction(grid, ANNA, "1.1"), instruction(grid, BEN, "2.1")])
    assert grid.find("1.1") == []


def test_flowers_own_loop_runs_on_it(post: Post, grid: GrpcGrid) -> None:
    def edges() -> None:
        for client_id, value in (("anna", 1.0), ("ben", 3.0)):
            while post.mailbox.next_instruction(client_id) is None:
                pass
            answer(post, client_id, value)

    running = threading.Thread(target=edges)
    running.start()
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    result = strategy.start(grid, start, num_rounds=1, train_config=ConfigRecord(), timeout=60)
    running.join()
    assert result.arrays["w"].numpy().tolist() == [2.0, 2.0, 2.0]


def test_replies_are_read_one_by_one(post: Post, grid: GrpcGrid) -> None:
    ids = grid.push_messages([instruction(grid, node) for node in (ANNA, BEN)])
    answer(post, "anna")
    answer(post, "ben")
    replies = iter(grid.pull_messages(ids))
    assert next(replies).metadata.src_node_id == ANNA
    grid.close("1.1")
    assert list(replies) == []  # nobody had read it yet


def test_a_reply_that_the_disk_does_not_give_is_this_machines_fault(
    post: Post, grid: GrpcGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(grid.push_messages([instruction(grid, ANNA)]))
    answer(post, "anna")

    def refused(path: Path, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(MachineError, match=r"cannot read .*Too many open files"):
            list(grid.pull_messages(ids))
    assert len(list(grid.pull_messages(ids))) == 1  # nothing was lost
