"""How fast, how lean and how resumable a release travels: `python -m benchmarks.transport`.

A server process and a client process on loopback, mutual TLS, the real service and the real
fetching code; the release is one file of random bytes with a real signed manifest. A whole bundle
is checked once more after it arrived (`open_bundle`); that is not transport and not measured.

Baselines: a bare gRPC server-stream of the same chunks of the same file over the same TLS, read by
a generated stub that counts bytes and drops them.
    bare        gRPC as it comes, in processes of its own; the ratio refers to it
    bare_tuned  the same with the allocator settings of `offsite.emulator.heap`, from the real server
All take turns, so that a busy machine disturbs all. A fetch does more than `bare_tuned` does: it
hashes every byte (about 0.5 s of processor time per GiB) and writes it (about 0.25 s).

Prints one JSON line per measurement and a summary:
    {"what": "bare" | "bare_tuned" | "fetch", "run": n, "seconds": s, "cpu_s": client's, ...}
    {"what": "resume", ...}   a client killed (SIGKILL) at half, and what its successor was sent
    {"what": "summary", "ratio": fetch / bare by medians, "client_peak_mb": above idle, ...}
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from offsite.coordinator.gatekeeper import Gatekeeper, Peer, PeerRole
from offsite.coordinator.service.artefacts import ArtefactService
from offsite.coordinator.service.server import Register, ServerTls, start_server
from offsite.edge_client import fetch
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.manifest import MANIFEST_NAME, MANIFEST_TYPE, Manifest, ReleaseFacts
from offsite.emulator.heap import keep_freed_buffers
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.progress import Report, silent
from offsite.secure import certificates, envelope, limits, names
from offsite.secure.identity import IdentityKey
from offsite.v1 import artefacts_pb2 as pb
from offsite.v1 import artefacts_pb2_grpc as pb_grpc

FILE = "emulator.safetensors"
BARE = "/offsite.benchmark.Bare/Stream"
SENT = "/offsite.benchmark.Count/Sent"
OPTIONS = (
    ("grpc.ssl_target_name_override", names.SERVER_NAME),
    ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES),
)


# ---- what both processes find in the work folder


def prepare(work: Path, size: int) -> None:
    """Writes the release, its key and the certificates of both sides."""
    now = time.time()
    release = work / "release"
    release.mkdir()
    with ChunkedFile(release, FILE) as file:
        for start in range(0, size, limits.MIB):
            file.write(os.urandom(min(limits.MIB, size - start)))
        entry = file.finish()
    facts = ReleaseFacts(
        "benchmark", 1, int(now), int(now) + 86_400, "none", "00" * 32, "none", 1.0, {}
    )
    layer_map = LayerMap.of(Placement(1, 1), 3, [1])
    manifest = Manifest(facts, layer_map, AdapterSpec(AdapterKind.WHOLE_BLOCK), (entry,))
    key = IdentityKey.from_seed(secrets.token_bytes(32))
    signed = envelope.sign(MANIFEST_TYPE, manifest.to_bytes(), key)
    (release / MANIFEST_NAME).write_bytes(envelope.to_bytes(signed))
    (work / "identity.seed").write_bytes(key.seed)
    _write_certificates(work, now)


def _write_certificates(work: Path, now: float) -> None:
    authority = certificates.create_authority(secrets.token_bytes(32), secrets.token_bytes(16), now)
    server, client = (certificates.tls_key_from_seed(secrets.token_bytes(32)) for _ in range(2))
    hosts = [names.SERVER_NAME, "127.0.0.1"]
    server_pem = certificates.issue_server(
        authority, server.public_key(), hosts, secrets.token_bytes(16), now
    )
    client_pem = certificates.issue_client(
        authority, certificates.make_csr(client), "edge", secrets.token_bytes(16), now
    )
    for name, data in (
        ("ca.pem", authority.cert_pem),
        ("server.pem", server_pem),
        ("server.key", certificates.tls_key_pem(server)),
        ("client.pem", client_pem),
        ("client.key", certificates.tls_key_pem(client)),
    ):
        (work / name).write_bytes(data)


# ---- the server process


class Anyone(Gatekeeper):
    """Lets every peer in whom the handshake let in."""

    def __init__(self) -> None:
        """Needs no database."""

    def identify(self, cert_pem: bytes) -> Peer:
        """The one client of the benchmark."""
        return Peer(PeerRole.CLIENT, "edge")


class CountingArtefacts(ArtefactService):
    """The real service; counts what it hands to gRPC."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sent = 0

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        async for response in super().Fetch(request, context):
            self.sent += len(response.data)
            yield response


def serve(work: Path) -> None:
    """The real service, and the baseline beside it."""
    artefacts = CountingArtefacts(work / "release")

    async def sent(
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchRequest]",
    ) -> pb.FetchRequest:
        count, artefacts.sent = artefacts.sent, 0
        return pb.FetchRequest(offset=count)

    handler = grpc.unary_unary_rpc_method_handler(
        sent, pb.FetchRequest.FromString, pb.FetchRequest.SerializeToString
    )

    def register(server: grpc.aio.Server) -> None:
        pb_grpc.add_ArtefactServiceServicer_to_server(artefacts, server)
        sent_handler = grpc.method_handlers_generic_handler(
            "offsite.benchmark.Count", {"Sent": handler}
        )
        server.add_generic_rpc_handlers((sent_handler,))

    _serve(work, [register, _bare_service(work)])


def serve_bare(work: Path) -> None:
    """The baseline alone, with nothing of ours in the process but the way it is started."""
    _serve(work, [_bare_service(work)])


def _serve(work: Path, services: list[Register]) -> None:
    """Serves until a line arrives on standard input; then says how much memory it took."""
    credential = certificates.Credential(
        (work / "server.pem").read_bytes(), (work / "server.key").read_bytes()
    )
    tls = ServerTls(lambda: credential, (work / "ca.pem").read_bytes())
    with start_server("127.0.0.1:0", tls, Anyone(), services) as running:
        say(port=running.port, idle_mb=memory_mb("VmRSS"))
        sys.stdin.readline()
        say(peak_mb=memory_mb("VmHWM"))


def _bare_service(work: Path) -> Register:
    descriptor = os.open(work / "release" / FILE, os.O_RDONLY)

    async def bare(
        request: pb.FetchRequest,
        context: "grpc.aio.ServicerContext[pb.FetchRequest, pb.FetchResponse]",
    ) -> AsyncIterator[pb.FetchResponse]:
        offset = 0
        while data := os.pread(descriptor, limits.CHUNK_BYTES, offset):
            offset += len(data)
            yield pb.FetchResponse(data=data)

    handler = grpc.unary_stream_rpc_method_handler(
        bare, pb.FetchRequest.FromString, pb.FetchResponse.SerializeToString
    )

    def register(server: grpc.aio.Server) -> None:
        handlers = grpc.method_handlers_generic_handler(
            "offsite.benchmark.Bare", {"Stream": handler}
        )
        server.add_generic_rpc_handlers((handlers,))

    return register


# ---- the client processes


def stream(work: Path, port: int, tuned: bool) -> None:
    """A baseline."""
    if tuned:
        keep_freed_buffers()
    with connected(work, port) as channel:
        _bare(channel, limit=limits.MIB)
        say_rate(timed(lambda: _bare(channel)))


def client(work: Path, port: int) -> None:
    """A fetch, and what memory it took above that of the connected process."""
    with connected(work, port) as channel:
        idle_mb = memory_mb("VmRSS")
        say_rate(timed(lambda: fetch_into(work, channel, "run")))
        say(idle_mb=idle_mb, peak_mb=memory_mb("VmHWM"))
    shutil.rmtree(work / "run.incoming")


def half(work: Path, port: int) -> None:
    """Fetches half of the release and is killed."""

    def stop_at_half(done: int, total: int) -> None:
        if done >= total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with connected(work, port) as channel:
        ask_sent(channel)
        fetch_into(work, channel, "resumed", stop_at_half)


def rest(work: Path, port: int) -> None:
    """Goes on where `half` was killed; the server says what it sent since it was last asked."""
    with connected(work, port) as channel:
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
def connected(work: Path, port: int) -> Iterator[grpc.Channel]:
    """The channel of an enrolled client."""
    credentials = grpc.ssl_channel_credentials(
        (work / "ca.pem").read_bytes(),
        (work / "client.key").read_bytes(),
        (work / "client.pem").read_bytes(),
    )
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        yield channel


def fetch_into(work: Path, channel: grpc.Channel, name: str, report: Report = silent) -> int:
    """The real thing: manifest, list of digests, chunks; returns the bytes of the release."""
    key = IdentityKey.from_seed((work / "identity.seed").read_bytes()).public
    source = fetch.Source(channel, key, time.time())
    signed_bytes, signed = fetch.ask_for_release(source)
    incoming = fetch.prepare_incoming(work / name, signed_bytes)
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


# ---- measuring and saying


@dataclass(frozen=True, slots=True)
class Took:
    """What moving `size` bytes cost the client: time on the clock and on its processors."""

    size: int
    seconds: float
    cpu_s: float


def timed(work: Callable[[], int]) -> Took:
    start, cpu_start = time.perf_counter(), time.process_time()
    size = work()
    return Took(size, time.perf_counter() - start, time.process_time() - cpu_start)


def say_rate(took: Took) -> None:
    """The line of one run."""
    rate = round(took.size / took.seconds / 1e9, 3)
    say(seconds=round(took.seconds, 3), cpu_s=round(took.cpu_s, 3), gb_per_s=rate)


def say(**fields: str | float) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def memory_mb(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise AssertionError(f"no {field} in /proc/self/status")


# ---- the process that runs the others


def child(work: Path, role: str, *arguments: str) -> "subprocess.Popen[str]":
    """A process of this module in one of its roles."""
    command = [sys.executable, "-m", "benchmarks.transport", "--role", role, "--work", str(work)]
    return subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def lines_of(process: "subprocess.Popen[str]") -> Iterator[dict[str, str | float]]:
    """What a process says, until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
    process.wait()


class Server:
    """A server process."""

    def __init__(self, work: Path, role: str) -> None:
        self._process = child(work, role)
        self._said = lines_of(self._process)
        started = next(self._said)
        self.port = str(started["port"])
        self._idle_mb = float(started["idle_mb"])

    def stop(self) -> float:
        """Stops it; returns its peak memory above idle, MB."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        peak_mb = float(next(self._said)["peak_mb"])
        self._process.wait()
        return round(peak_mb - self._idle_mb, 1)


def measure(work: Path, runs: int) -> None:
    """Runs all processes, repeats their lines and sums up."""
    real, bare = Server(work, "serve"), Server(work, "serve-bare")
    ports = {"bare": bare.port, "bare_tuned": real.port, "fetch": real.port}
    rates: dict[str, list[float]] = {what: [] for what in ports}
    peaks_mb: list[float] = []
    for run in range(runs):
        for what, port in ports.items():
            for fields in lines_of(child(work, what, "--port", port)):
                if "peak_mb" in fields:
                    peaks_mb.append(float(fields["peak_mb"]) - float(fields["idle_mb"]))
                    continue
                print(json.dumps({"what": what, "run": run} | fields), flush=True)
                rates[what].append(float(fields["gb_per_s"]))
    child(work, "half", "--port", real.port).wait()
    resumed = next(lines_of(child(work, "rest", "--port", real.port)))
    print(json.dumps(resumed), flush=True)
    bare.stop()
    median = {what: statistics.median(values) for what, values in rates.items()}
    say(
        what="summary",
        bare_gb_per_s=round(median["bare"], 3),
        bare_tuned_gb_per_s=round(median["bare_tuned"], 3),
        fetch_gb_per_s=round(median["fetch"], 3),
        ratio=round(median["fetch"] / median["bare"], 3),
        ratio_tuned=round(median["fetch"] / median["bare_tuned"], 3),
        client_peak_mb=round(max(peaks_mb), 1),
        server_peak_mb=real.stop(),
        resent_share=round(float(resumed["sent_after_restart"]) / float(resumed["size"]), 3),
    )


def main() -> None:
    """Parses, prepares and measures; `--role` is for the processes that it starts itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the release")
    parser.add_argument("--runs", type=int, default=3, help="runs of either kind")
    parser.add_argument("--quick", action="store_true", help="64 MiB, one run")
    parser.add_argument("--role", help="internal")
    parser.add_argument("--work", type=Path, help="internal")
    parser.add_argument("--port", type=int, help="internal")
    given = parser.parse_args()
    match given.role:
        case "serve":
            serve(given.work)
        case "serve-bare":
            serve_bare(given.work)
        case "bare" | "bare_tuned":
            stream(given.work, given.port, tuned=given.role == "bare_tuned")
        case "fetch":
            client(given.work, given.port)
        case "half":
            half(given.work, given.port)
        case "rest":
            rest(given.work, given.port)
        case _:
            size = 64 * limits.MIB if given.quick else int(given.gib * 1024) * limits.MIB
            with tempfile.TemporaryDirectory(prefix="offsite-transport-") as work:
                prepare(Path(work), size)
                measure(Path(work), 1 if given.quick else given.runs)


if __name__ == "__main__":
    main()
