"""What one client may ask at a time: it is told when to come back, and nobody is starved."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from tests.loopback import Post, serving

from offsite.coordinator.config_quotas import QuotaSection
from offsite.coordinator.mailbox import Outgoing
from offsite.coordinator.service import quotas as module
from offsite.coordinator.service.quotas import Quotas, QuotaSettings
from offsite.coordinator.service.rounds import RoundService
from offsite.edge_client.channel import error_of
from offsite.edge_client.resume import Persistence
from offsite.edge_client.upload import Reply, upload_reply
from offsite.secure.errors import BusyError, ConfigError
from offsite.v1 import rounds_pb2 as pb
from offsite.v1.rounds_pb2_grpc import RoundServiceStub, add_RoundServiceServicer_to_server


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_calls_beyond_the_burst_are_told_when_to_come_back() -> None:
    clock = Clock()
    quotas = Quotas(QuotaSettings(calls_per_s=2.0, call_burst=3), clock)
    for _ in range(3):
        quotas.admit_call("anna")
    with pytest.raises(BusyError) as refused:
        quotas.admit_call("anna")
    assert refused.value.retry_after_s == pytest.approx(0.5)
    quotas.admit_call("ben")  # another client has a bucket of its own
    clock.now += 0.5
    quotas.admit_call("anna")
    clock.now += 1e9
    for _ in range(3):  # it never holds more than the burst
        quotas.admit_call("anna")
    with pytest.raises(BusyError):
        quotas.admit_call("anna")


def test_buckets_that_are_full_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BUCKETS", 4)
    clock = Clock()
    quotas = Quotas(QuotaSettings(calls_per_s=1.0, call_burst=2), clock)
    for number in range(100):
        quotas.admit_call(f"edge-{number}")
        clock.now += 10.0
    assert len(quotas._buckets) <= 5


def test_uploads_of_one_client_are_bounded_in_number_and_bytes() -> None:
    quotas = Quotas(QuotaSettings(uploads_per_client=2, upload_bytes_per_client=100))
    with quotas.uploading("anna", 60):
        with pytest.raises(BusyError, match="found 120"), quotas.uploading("anna", 60):
            pass
        with (
            quotas.uploading("anna", 40),
            quotas.uploading("ben", 60),
            pytest.raises(BusyError, match="at most 2 uploads"),
            quotas.uploading("anna", 0),
        ):
            pass
    with quotas.uploading("anna", 10_000):  # one alone is bounded by its message
        pass
    assert not quotas._uploads and not quotas._bytes


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    async def play() -> list[int]:
        quotas, order, most = Quotas(QuotaSettings(uploads_at_once=2)), [], 0
        inside = 0

        async def upload(number: int) -> None:
            nonlocal inside, most
            async with quotas.turn():
                inside += 1
                most = max(most, inside)
                order.append(number)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(upload(number) for number in range(50)))
        assert most == 2
        return order

    assert asyncio.run(play()) == list(range(50))


def test_a_long_turn_ends_when_others_wait_and_a_long_queue_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 1)

    async def play() -> None:
        clock = Clock()
        quotas = Quotas(QuotaSettings(uploads_at_once=1), clock)

        async def wait() -> None:
            async with quotas.turn():
                pass

        async with quotas.turn() as turn:
            clock.now += module.TURN_S + 1
            turn.check()  # nobody waits
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="resume it"):
                turn.check()
            with pytest.raises(BusyError, match="1 uploads wait"):
                await wait()
        await waiting

    asyncio.run(play())


DATA = bytes(range(256)) * 8192


def test_edges_share_few_turns_and_a_tiny_bucket_and_all_arrive(tmp_path: Path) -> None:
    names = [f"edge-{number}" for number in range(6)]
    (tmp_path / "state").mkdir()
    post = Post(tmp_path / "state", *names)
    ids = {name: f"{number:032x}" for number, name in enumerate(names)}
    until = post.clock() + 3600
    post.mailbox.post(1, "1.1", [Outgoing(ids[n], n, [b"go"], until, len(DATA)) for n in names])
    path = tmp_path / "reply"
    path.write_bytes(DATA)
    clock = Clock()
    quotas = Quotas(QuotaSettings(calls_per_s=10.0, call_burst=2, uploads_at_once=1), clock)
    for _ in range(2):
        quotas.admit_call(names[0])  # its first call is one too many
    service = RoundService(post.mailbox, quotas=quotas)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.now += seconds

    persistence = Persistence(retries=0, sleep=sleep, uniform=lambda low, high: low)
    with (
        serving(
            lambda s: add_RoundServiceServicer_to_server(service, s), quotas=quotas
        ) as loopback,
        ExitStack() as opened,
        ThreadPoolExecutor(len(names)) as pool,
    ):
        channels = {name: opened.enter_context(loopback.channel(name)) for name in names}
        sent = [
            pool.submit(
                upload_reply,
                channels[name],
                Reply(ids[name], path, len(DATA), sha256(DATA).digest()),
                persistence,
            )
            for name in names
        ]
        for one in sent:
            one.result(60)
    assert waited  # at least one was told to come back, and it counted as no failure
    for name in names:
        row = post.mailbox.get(ids[name])
        assert row is not None and row.reply_sha256 == sha256(DATA).digest()


def test_an_edge_hears_when_to_come_back(tmp_path: Path) -> None:
    post = Post(tmp_path, "anna")
    quotas = Quotas(QuotaSettings(calls_per_s=1e-3, call_burst=1))
    service = RoundService(post.mailbox, 0.01, quotas)
    with (
        serving(
            lambda s: add_RoundServiceServicer_to_server(service, s), quotas=quotas
        ) as loopback,
        loopback.channel("anna") as channel,
    ):
        stub = RoundServiceStub(channel)
        stub.Await(pb.AwaitRequest(), timeout=60)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Await(pb.AwaitRequest(), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = error_of(refused.value)
    assert isinstance(error, BusyError)
    assert error.retry_after_s == 60.0  # a coordinator cannot make an edge wait for longer


def test_settings_are_bounded_and_are_those_of_the_service() -> None:
    assert QuotaSection().settings() == QuotaSettings()
    with pytest.raises(ConfigError, match=r"uploads_per_client.*upload_mib_per_client"):
        QuotaSection(uploads_per_client=0, upload_mib_per_client=1)
