"""The client processes: the baselines, a fetch, and a fetch that is killed and resumed."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from benchmarks.transport.release import FILE
from benchmarks.transport.saying import memory_mb, say, say_rate, timed
from offsite.edge_client import fetch
from offsite.edge_client.channel import channel_options
from offsite.emulator.heap import keep_freed_buffers
from offsite.emulator.progress import Report, silent
from offsite.secure import limits, names
from offsite.secure.identity import IdentityKey
from offsite.v1 import artefacts_pb2 as pb

BARE = "/offsite.benchmark.Bare/Stream"
SENT = "/offsite.benchmark.Count/Sent"
BARE_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.ssl_target_name_override", names.SERVER_NAME),
    ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES),
]


def stream(work: Path, port: int, tuned: bool) -> None:
    """A baseline."""
    if tuned:
        keep_freed_buffers()
    with connected(work, port, BARE_OPTIONS) as channel:
        _bare(channel, limit=limits.MIB)
        say_rate(timed(lambda: _bare(channel)))


def client(work: Path, port: int) -> None:
    """A fetch, and what memory it took above that of the connected process."""
    with connected(work, port, channel_options()) as channel:
        idle_mb = memory_mb("VmRSS")
        say_rate(timed(lambda: fetch_into(work, channel, "run")))
        say(idle_mb=idle_mb, peak_mb=memory_mb("VmHWM"))
    shutil.rmtree(work / "run.incoming")


def half(work: Path, port: int) -> None:
    """Fetches half of the release and is killed."""

    def stop_at_half(done: int, total: int) -> None:
        if done >= total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with connected(work, port, channel_options()) as channel:
        ask_sent(channel)
        fetch_into(work, channel, "resumed", stop_at_half)


def rest(work: Path, port: int) -> None:
    """Goes on where `half` was killed; the server says what it sent since it was last asked."""
    with connected(work, port, channel_options()) as channel:
        first = ask_sent(channel)
        kept = (work / "resumed.incoming" / FILE).stat().st_size
        took = timed(lambda: fetch_into(work, channel, "resumed"))
        second = ask_sent(channel)
        say(
            what="resume",
            size=took.size,
            sent_before_kill=first,
            kept_on_disk=kept,
            sent_after_restart=second,
            seconds=round(took.seconds, 3),
        )


@contextmanager
def connected(
    work: Path, port: int, options: list[tuple[str, int | str]]
) -> Iterator[grpc.Channel]:
    """The channel of an enrolled client."""
    credentials = grpc.ssl_channel_credentials(
        (work / "ca.pem").read_bytes(),
        (work / "client.key").read_bytes(),
        (work / "client.pem").read_bytes(),
    )
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        yield channel


def fetch_into(work: Path, channel: grpc.Channel, name: str, report: Report = silent) -> int:
    """The real thing: manifest, list of digests, chunks; returns the bytes of the release."""
    key = IdentityKey.from_seed((work / "identity.seed").read_bytes()).public
    source = fetch.Source(channel, key, time.time())
    signed_bytes, signed = fetch.ask_for_release(source)
    wanted = fetch.ask_for_emulator(source, signed_bytes, signed)
    incoming = fetch.prepare_incoming(work / name, wanted)
    fetch.receive_files(source, signed.manifest, incoming, report)
    return signed.manifest.bundle_bytes


def ask_sent(channel: grpc.Channel) -> int:
    """Bytes of the release that the server has sent since it was last asked."""
    ask = channel.unary_unary(SENT, pb.FetchRequest.SerializeToString, pb.FetchRequest.FromString)
    return ask(pb.FetchRequest(), timeout=limits.CALL_DEADLINE_S).offset


def _bare(channel: grpc.Channel, limit: int | None = None) -> int:
    stream = channel.unary_stream(
        BARE, pb.FetchRequest.SerializeToString, pb.FetchResponse.FromString
    )(pb.FetchRequest())
    received = 0
    for response in stream:
        received += len(response.data)
        if limit is not None and received >= limit:
            stream.cancel()
            break
    return received
