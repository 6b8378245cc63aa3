"""The edge inside a campaign: every instruction answered once, whatever dies in between."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tests.loopback import Guests, Loopback, Post, round_service, serving
from tests.secure.aggregation.fleets import config

from offsite.coordinator.gatekeeper import Peer
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.mailbox import CampaignStatus, Phase
from offsite.coordinator.spool import ReplyFile, Upload
from offsite.edge_client import worker
from offsite.edge_client.inbox import Inbox, fetch_instruction
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.resume import Persistence
from offsite.edge_client.upload import Reply, upload_reply
from offsite.edge_client.worker import Ears, Edge, Ending, run_worker
from offsite.emulator.rounds.messages import message_from_bytes
from offsite.secure import limits
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.errors import (
    ConfigError,
    ExpiredError,
    IdentityError,
    IntegrityError,
    MachineError,
    PeerError,
    PolicyError,
    StaleReleaseError,
    TermsRefusedError,
)
from offsite.secure.names import node_id
from offsite.v1 import rounds_pb2 as pb
from offsite.v1.rounds_pb2_grpc import RoundServiceStub

PATIENT = Persistence(retries=2, sleep=lambda _: None)
DONE = CampaignStatus(Phase.ENDED, "all rounds are done")
WEIGHTS = 400_000  # more than six chunks


@pytest.fixture
def post(tmp_path: Path) -> Post:
    post = Post(tmp_path, "anna")
    post.mailbox.heard_from("anna", "joined")
    post.mailbox.set_status(CampaignStatus(Phase.RUNNING))
    return post


@pytest.fixture
def grid(post: Post) -> GrpcGrid:
    return GrpcGrid(post.mailbox, post.store, 1, post.clock)


@pytest.fixture
def loopback(post: Post) -> Iterator[Loopback]:
    with serving(round_service(post.mailbox)) as running:
        yield running


@pytest.fixture
def edge(loopback: Loopback, tmp_path: Path) -> Iterator[Edge]:
    with loopback.channel("anna") as channel:
        yield Edge(
            channel,
            "anna",
            tmp_path / "rounds",
            Pulse(channel),
            Ears(),
            PATIENT,
            pause=lambda _: None,
        )


class Recorded(Pulse):
    """Remembers what the coordinator is told."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel)
        self.said: list[str] = []

    def say(self, status: str) -> None:
        self.said.append(status)
        super().say(status)


def send(grid: GrpcGrid, group: str = "1.1", ttl: float = 60.0) -> str:
    arrays = ArrayRecord({"w": Array(np.arange(WEIGHTS, dtype=np.float32))})
    content = RecordDict({"arrays": arrays})
    message = grid.create_message(content, "train", node_id("anna"), group, ttl)
    (message_id,) = grid.push_messages([message])
    return message_id


def add_one(message: Message, context: Context) -> Message:
    """The reply of an edge whose tuning adds 1."""
    tuned = message.content["arrays"]["w"].numpy() + 1
    arrays = ArrayRecord({"w": Array(tuned)})
    metrics = MetricRecord({"num-examples": 3})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def ending(
    post: Post,
    app: worker.App,
    status: CampaignStatus = DONE,
) -> worker.App:
    """`app`, in a campaign that ends as soon as a reply is there."""
    accept = post.mailbox.accept

    def accept_and_end(client_id: str, upload: Upload) -> None:
        accept(client_id, upload)
        post.mailbox.set_status(status)

    post.mailbox.accept = accept_and_end
    return app


def is_tuned(grid: GrpcGrid, message_id: str) -> bool:
    (reply,) = grid.pull_messages([message_id])
    return bool((reply.content["arrays"]["w"].numpy() == np.arange(WEIGHTS) + 1).all())


def test_an_instruction_is_answered_and_the_end_is_heard(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)
    app = ClientApp()
    app.train()(ending(post, add_one))
    end = run_worker(edge, app)
    assert (end.ending, end.reason) == (Ending.ENDED, "all rounds are done")
    assert is_tuned(grid, message_id)
    assert list(edge.rounds.iterdir()) == []  # nothing is kept of a round that is over


def test_rounds_follow_each_other_until_the_campaign_fails(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    ids = [send(grid, "1.1")]

    def app(message: Message, context: Context) -> Message:
        if len(ids) < 3:
            ids.append(send(grid, f"{len(ids) + 1}.1"))
            return add_one(message, context)
        return ending(post, add_one, CampaignStatus(Phase.FAILED, "the gate got worse"))(
            message, context
        )

    end = run_worker(edge, app)
    assert (end.ending, end.reason) == (Ending.FAILED, "the gate got worse")
    assert all(is_tuned(grid, message_id) for message_id in ids)
    assert Inbox(edge.rounds).returned() == 3


def test_a_failing_app_becomes_an_error_that_tells_no_data(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)
    pulse = Recorded(edge.channel)

    def fail(message: Message, context: Context) -> Message:
        raise ConfigError("row 17 of /home/anna/patients.csv: 'Smith, John' is no label")

    run_worker(replace(edge, pulse=pulse), ending(post, fail))
    assert pulse.said and not any("/" in text or "Smith" in text for text in pulse.said)
    (reply,) = grid.pull_messages([message_id])
    assert reply.has_error()
    assert reply.error.reason == worker.FAILED_TEXT


@pytest.mark.parametrize(
    "error",
    [ConfigError("x"), MachineError("x"), ZeroDivisionError("x"), MemoryError(), KeyError("x")],
)
def test_the_class_of_an_error_on_this_edge_is_not_told(error: Exception) -> None:
    """A template of the coordinator's could choose it, row by row."""
    expected = "the round failed on this edge; its log says why"
    assert worker.public_text(error) == expected
    assert worker.public_text(PolicyError("no")) == "PolicyError: no"


def test_refused_terms_are_named_and_what_this_machine_demands_stays_here() -> None:
    terms = config(2)
    with pytest.raises(TermsRefusedError, match="at least 7 are demanded here") as caught:
        PolicyFloor(least_cohort=7, most_coordinate_bound=0.125).check(terms)
    said = worker.public_text(caught.value)
    assert said.endswith("refuses these terms of the round: least_members, coordinate_bound")
    assert "7" not in said and "0.125" not in said


def test_a_coordinator_that_answers_at_once_is_not_asked_in_a_tight_loop(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = pb.AwaitResponse(phase=pb.CAMPAIGN_PHASE_RUNNING)
    answers = iter([running, running, running, pb.AwaitResponse(phase=pb.CAMPAIGN_PHASE_ENDED)])
    monkeypatch.setattr(worker, "_next", lambda _: next(answers))
    times = iter([0.0, 0.5, 1.5, 21.5, 21.5, 21.6, 22.6])
    pauses: list[float] = []
    run_worker(replace(edge, pause=pauses.append, clock=lambda: next(times)), add_one)
    assert pauses == [1.0, 1.0]  # not after the long poll


def test_a_refused_plan_is_an_error_with_its_reason(post: Post, grid: GrpcGrid, edge: Edge) -> None:
    message_id = send(grid)

    def refuse(message: Message, context: Context) -> Message:
        raise PeerError("the plan is for another release")

    run_worker(edge, ending(post, refuse))
    (reply,) = grid.pull_messages([message_id])
    assert reply.error.reason == "PeerError: the plan is for another release"


def test_the_app_gets_a_folder_that_stays_across_kills(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)
    folders = []

    class Killed(BaseException):
        pass

    def app(message: Message, context: Context) -> Message:
        folder = Path(str(context.node_config["round-folder"]))
        folders.append(folder)
        checkpoint = folder / "tuning.safetensors"
        if not checkpoint.exists():
            checkpoint.write_bytes(b"step 5")
            raise Killed
        assert checkpoint.read_bytes() == b"step 5"
        return ending(post, add_one)(message, context)

    with pytest.raises(Killed):
        run_worker(edge, app)
    run_worker(edge, app)
    assert folders == [(edge.rounds / message_id).resolve()] * 2
    assert is_tuned(grid, message_id)


def test_a_reply_from_before_a_kill_is_only_sent(
    post: Post, grid: GrpcGrid, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = send(grid)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(worker, "upload_reply", die)
        with pytest.raises(Killed):
            run_worker(edge, ending(post, add_one))

    def never(message: Message, context: Context) -> Message:
        raise AssertionError("tuned twice")

    assert Inbox(edge.rounds).returned() == 0
    run_worker(edge, never)
    assert is_tuned(grid, message_id)
    assert Inbox(edge.rounds).returned() == 1


def test_a_reply_that_was_sent_twice_counts_once(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "rounds")
    for message_id in ("a", "a", "b"):  # killed between counting and erasing the first
        inbox.count_returned(message_id)
    assert inbox.returned() == 2
    (tmp_path / "returned").write_bytes(b"damaged")
    assert inbox.returned() == 0


def test_a_reply_outlives_a_certificate_that_lapsed(
    post: Post, grid: GrpcGrid, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gatekeeper says that something expired, as it does of a round that is over."""
    message_id = send(grid)

    def refuse(guests: Guests, cert_pem: bytes) -> Peer:
        raise ExpiredError("the certificate of 'anna' has expired; ask for a new token")

    with monkeypatch.context() as patch:

        def lapse(message: Message, context: Context) -> Message:
            patch.setattr(Guests, "identify", refuse)
            return add_one(message, context)

        with pytest.raises(IdentityError, match=r"expired; ask .* operator to invite it again"):
            run_worker(edge, lapse)
        with pytest.raises(IdentityError, match="nothing was lost"):
            run_worker(edge, add_one)
    assert Inbox(edge.rounds).unsent() == [message_id]
    run_worker(edge, ending(post, add_one))
    assert is_tuned(grid, message_id)


def test_a_plan_for_another_release_is_a_pause_once_and_then_an_error(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)

    def stale(message: Message, context: Context) -> Message:
        raise StaleReleaseError("a plan for the release cd")

    assert run_worker(edge, stale) is None  # the release is fetched again
    assert list(grid.pull_messages([message_id])) == []
    assert run_worker(edge, ending(post, stale)) is not None  # in vain
    (reply,) = grid.pull_messages([message_id])
    assert reply.error.reason == "StaleReleaseError: a plan for the release cd"


def test_a_plan_for_another_release_is_obeyed_once_that_was_fetched(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)

    def stale(message: Message, context: Context) -> Message:
        raise StaleReleaseError("a plan for the release cd")

    assert run_worker(edge, stale) is None
    run_worker(edge, ending(post, add_one))
    assert is_tuned(grid, message_id)


@pytest.mark.parametrize("phase", [Phase.ENDED, Phase.FAILED])
def test_an_end_that_is_heard_while_tuning_ends_the_edge_without_an_upload(
    post: Post, grid: GrpcGrid, edge: Edge, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    """The coordinator may be gone by the time that a straggler is done."""
    send(grid)
    pulse = Pulse(edge.channel, interval_s=0.0)

    def straggle(message: Message, context: Context) -> Message:
        post.mailbox.set_status(CampaignStatus(phase, "enough"))
        while True:
            pulse.check()

    def never(*_: object) -> None:
        raise AssertionError("nobody waits for it")

    monkeypatch.setattr(worker, "upload_reply", never)
    end = run_worker(replace(edge, pulse=pulse), straggle)
    assert end is not None and (end.ending.name, end.reason) == (phase.name, "enough")
    assert list(edge.rounds.iterdir()) == []


def test_a_reply_that_is_too_late_is_dropped_and_work_goes_on(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    late = send(grid, "1.1", ttl=60)
    said: list[str] = []

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_id == late:
            post.offset_s = 100
            send(grid, "2.1", ttl=600)
            return add_one(message, context)
        return ending(post, add_one)(message, context)

    run_worker(replace(edge, ears=Ears(said.append)), app)
    assert list(grid.pull_messages([late])) == []
    assert is_tuned(grid, grid.find("2.1")[0])
    assert any("too late" in text for text in said)


def test_a_message_that_is_withdrawn_while_it_is_tuned_can_be_noticed(
    post: Post, grid: GrpcGrid, loopback: Loopback, edge: Edge
) -> None:
    send(grid)
    noticed = threading.Event()
    with loopback.channel("anna") as channel:
        pulse = Pulse(channel, interval_s=0.0)

        def app(message: Message, context: Context) -> Message:
            grid.close("1.1")
            post.mailbox.set_status(CampaignStatus(Phase.ENDED))
            while True:
                try:
                    pulse.check()
                except PeerError:
                    noticed.set()
                    raise

        run_worker(replace(edge, pulse=pulse), app)
    assert noticed.is_set()


def test_the_coordinator_hears_what_a_busy_edge_does(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    send(grid)

    def app(message: Message, context: Context) -> Message:
        edge.pulse.say("tuning round 1, step 3 of 9")
        while "step 3" not in doing(post):
            pass
        return add_one(message, context)

    busy = replace(edge, pulse=Pulse(edge.channel, interval_s=0.0))
    edge = busy
    run_worker(busy, ending(post, app))


def doing(post: Post) -> str:
    client = post.store.clients.get("anna")
    assert client is not None
    return client.doing


def test_an_instruction_that_cannot_be_read_ends_it_after_a_few_tries(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)
    row = post.mailbox.get(message_id)
    assert row is not None
    post.spool.instruction(message_id).write_bytes(bytes(row.size_bytes))
    with pytest.raises(IntegrityError, match="expected an instruction with SHA-256"):
        run_worker(edge, add_one)


def test_an_instruction_is_resumed_from_what_a_kill_left(
    post: Post, grid: GrpcGrid, edge: Edge
) -> None:
    message_id = send(grid)
    stub = RoundServiceStub(edge.channel)
    ref = stub.Await(pb.AwaitRequest(), timeout=60).instruction
    data = post.spool.instruction(message_id).read_bytes()
    inbox = Inbox(edge.rounds)
    part = inbox.of(message_id) / "instruction.part"
    for left in (data[: limits.CHUNK_BYTES + 9], bytes(2 * limits.CHUNK_BYTES), data):
        part.parent.mkdir(parents=True)
        part.write_bytes(left)
        seen: list[int] = []
        path = fetch_instruction(
            edge.channel, inbox, ref, PATIENT, lambda done, _, seen=seen: seen.append(done)
        )
        assert path.read_bytes() == data
        if left == data[: limits.CHUNK_BYTES + 9]:
            assert seen[0] == 2 * limits.CHUNK_BYTES  # the first chunk was not sent again
        inbox.erase(message_id)


def test_an_upload_does_not_send_what_is_stored(
    post: Post, grid: GrpcGrid, edge: Edge, tmp_path: Path
) -> None:
    message_id = send(grid)
    path = tmp_path / "reply"
    path.write_bytes(os.urandom(3 * limits.CHUNK_BYTES))
    reply = Reply.of(message_id, path)
    stored = post.mailbox.open_upload("anna", ReplyFile(message_id, reply.size, reply.sha256), 0)
    assert stored is not None
    with stored:  # what came through before the line was cut
        stored.write(path.read_bytes()[: limits.CHUNK_BYTES])
    sent: list[int] = []
    upload_reply(edge.channel, reply, PATIENT, lambda done, _: sent.append(done))
    assert sent[0] == 2 * limits.CHUNK_BYTES and sent[-1] == reply.size
    assert post.spool.reply(message_id).read_bytes() == path.read_bytes()


def test_stale_rounds_are_erased(post: Post, grid: GrpcGrid, edge: Edge) -> None:
    (edge.rounds / ("0" * 32)).mkdir(parents=True)
    (edge.rounds / ("0" * 32) / "instruction").write_bytes(b"of a round that is over")
    message_id = send(grid)
    run_worker(edge, ending(post, add_one))
    assert is_tuned(grid, message_id) and list(edge.rounds.iterdir()) == []


PROGRAM = """
import signal
import sys
from pathlib import Path
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.worker import Edge, run_worker
from offsite.secure.certificates import Credential
from tests.edge_client.test_worker import add_one
from tests.loopback import dial

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off

def app(message, context):
    marker = folder / "tuning"
    if not marker.exists():
        marker.touch()
        print("tuning", flush=True)
        sys.stdin.readline()  # tunes until somebody kills it
    return add_one(message, context)

folder = Path(sys.argv[2])
ca, cert, key = ((folder / name).read_bytes() for name in ("ca", "cert", "key"))
with dial(sys.argv[1], ca, Credential(cert, key)) as channel:
    run_worker(Edge(channel, "anna", folder / "rounds", Pulse(channel)), app)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_after_a_kill_or_ctrl_c(
    post: Post, grid: GrpcGrid, loopback: Loopback, tmp_path: Path, how: signal.Signals
) -> None:
    credential = loopback.credential("anna")
    (tmp_path / "ca").write_bytes(loopback.authority.cert_pem)
    (tmp_path / "cert").write_bytes(credential.cert_pem)
    (tmp_path / "key").write_bytes(credential.key_pem)
    message_id = send(grid)
    command = [sys.executable, "-c", PROGRAM, loopback.address, str(tmp_path)]
    pipe = subprocess.PIPE
    first = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert first.stdout is not None
    assert first.stdout.readline() == b"tuning\n"
    first.send_signal(how)
    first.communicate(timeout=60)
    assert first.returncode in (-how, 1)
    assert message_from_bytes((tmp_path / "rounds" / message_id / "instruction").read_bytes())
    second = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    (reply,) = grid.receive([message_id], timeout=60)
    assert (reply.content["arrays"]["w"].numpy() == np.arange(WEIGHTS) + 1).all()
    post.mailbox.set_status(CampaignStatus(Phase.ENDED))
    assert second.wait(timeout=60) == 0
