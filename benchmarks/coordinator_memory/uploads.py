"""All clients send a masked vector at once; the coordinator adds them up."""

import hashlib
import secrets
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Message

from benchmarks.coordinator_memory.memory import Peak, resident_mb
from benchmarks.coordinator_memory.scene import client_name, connected, open_store, serve
from benchmarks.transport.saying import say
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.secure_sums.vector_sum import VectorSum
from offsite.edge_client.resume import WORKER_RETRIES, Persistence
from offsite.edge_client.upload import Reply, upload_reply
from offsite.emulator.rounds.exchange import Action, exchange_content, most_reply_bytes, read_words
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.messages import message_to_bytes
from offsite.secure import limits
from offsite.secure.names import node_id
from offsite.v1 import rounds_pb2 as pb
from offsite.v1 import rounds_pb2_grpc as pb_grpc

GROUP = "1.1.0.mask"
DIGEST = bytes(32)


def words_of(work: Path, megabytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The vector that every client sends: random words, from a seed in the work folder."""
    seed = int.from_bytes((work / "seed").read_bytes(), "big")
    return np.random.default_rng(seed).integers(0, 1 << 32, megabytes * 250_000, np.uint32)


def prepare(work: Path, megabytes: int) -> None:
    """One reply for all clients: the coordinator takes from it nothing but its body."""
    (work / "seed").write_bytes(secrets.token_bytes(8))
    set_task_identity(1, 1)
    words = words_of(work, megabytes)
    reply = Message(
        exchange_content(DIGEST, b"header", words),
        dst_node_id=1,
        message_type=Action.MASK.message_type,
        group_id=GROUP,
    )
    (work / "reply").write_bytes(message_to_bytes(reply))
    (work / "words.sha256").write_bytes(hashlib.sha256(words.tobytes()).digest())


def coordinator(work: Path, clients: int, megabytes: int) -> None:
    """Serves; posts when told so; adds up; says what it took."""
    store = open_store(work, clients)
    server, mailbox = serve(work, store)
    count = megabytes * 250_000
    expected = (work / "words.sha256").read_bytes()
    say(port=server.port)
    sys.stdin.readline()  # every client is connected
    idle_mb = resident_mb()
    started = time.monotonic()
    with Peak() as peak, server:
        grid = GrpcGrid(
            mailbox,
            store,
            1,
            most_reply_bytes=lambda m: most_reply_bytes(m.metadata.message_type, count),
        )
        ids = list(
            grid.push_messages(
                Message(
                    exchange_content(DIGEST, b"members"),
                    dst_node_id=node_id(client_name(index)),
                    message_type=Action.MASK.message_type,
                    group_id=GROUP,
                    ttl=3600.0,
                )
                for index in range(clients)
            )
        )
        total = VectorSum(work / "evidence", count)
        added_s: dict[str, float] = {}
        while waiting := [i for i in ids if i not in added_s]:
            for reply in grid.pull_messages(waiting):
                message_id = reply.metadata.reply_to_message_id
                total.add(message_id, read_words(reply, count), partial(_check, expected))
                added_s[message_id] = time.monotonic() - started
            time.sleep(0.05)
        took_s = time.monotonic() - started
        grid.close("1.1")
    times = sorted(added_s.values())
    say(
        idle_mb=idle_mb,
        peak_mb=peak.resident_mb,
        above_idle_mb=round(peak.resident_mb - idle_mb, 1),
        anonymous_peak_mb=peak.anonymous_mb,
        after_mb=resident_mb(),
        seconds=round(took_s, 1),
        first_s=round(times[0], 1),
        last_s=round(times[-1], 1),
        gb_per_s=round(clients * megabytes / 1000 / took_s, 3),
        exact=_is_exact(work, megabytes, clients, total),
    )


def _check(expected: bytes, found: bytes) -> None:
    assert found == expected


def _is_exact(work: Path, megabytes: int, clients: int, total: VectorSum) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(total.words, words_of(work, megabytes) * np.uint32(clients)))


def edges(work: Path, port: int, clients: int) -> None:
    """All clients: connect, say so, send when asked."""
    path = work / "reply"
    reply = Reply.of("0" * 32, path)
    there = threading.Barrier(clients + 1)
    threads = [
        threading.Thread(target=_edge, args=(work, port, client_name(index), reply, there))
        for index in range(clients)
    ]
    for thread in threads:
        thread.start()
    there.wait()
    say(connected=clients)
    for thread in threads:
        thread.join()


def _edge(work: Path, port: int, name: str, reply: Reply, there: threading.Barrier) -> None:
    persistence = Persistence(WORKER_RETRIES)
    with connected(work, port, name) as channel:
        stub = pb_grpc.RoundServiceStub(channel)
        ask = pb.GetUploadRequest(reply_to_message_id="0" * 32, sha256=bytes(32))
        try:
            stub.GetUpload(ask, timeout=limits.CALL_DEADLINE_S, wait_for_ready=True)
        except Exception as error:  # noqa: BLE001 - unknown message: the line is up
            assert "not known to you" in str(error), error
        there.wait()
        while True:
            answer = persistence.run(
                lambda: stub.Await(pb.AwaitRequest(), timeout=limits.LONG_POLL_S * 3)
            )
            if answer.HasField("instruction"):
                break
        mine = Reply(answer.instruction.message_id, reply.path, reply.size, reply.sha256)
        upload_reply(channel, mine, persistence)
