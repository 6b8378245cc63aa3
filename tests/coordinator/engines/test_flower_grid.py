"""The `flower` engine as the round loop sees it, on runs that a test plays."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from tests.coordinator.engines.test_tunnel import public_pem
from tests.coordinator.fleet import NAMES, Fleet, campaign

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import DurableGrid
from offsite.coordinator.engines.flower import grid as grid_module
from offsite.coordinator.engines.flower.grid import FlowerGrid
from offsite.coordinator.engines.flower.node_keys import NodeKeys
from offsite.emulator.rounds.flower_internals import (
    SERVER_NODE_ID,
    message_with_metadata,
    set_task_identity,
)
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes
from offsite.secure.errors import ExpiredError, TransportError
from offsite.secure.names import node_id

FLOWERS = {name: 10_000 + index for index, name in enumerate(NAMES)}
"""Flower's own number of each client's node."""


class TaskStub:
    """A run whose nodes answer with the apps of a fleet, under Flower's numbers."""

    numbers = itertools.count(77)

    def __init__(self, keys: NodeKeys, fleet: Fleet) -> None:
        self.run_id, self.is_lost, self.is_dead = next(self.numbers), False, False
        self.closed = self.finished = False
        self._keys, self._apps = keys, fleet.apps()
        self._sent: dict[str, bytes] = {}
        self.seen: list[Metadata] = []
        self.offline: set[str] = set()
        self.dies_at_pull = False

    def nodes(self) -> dict[bytes, int]:
        self._check()
        return {
            key: FLOWERS[name]
            for key, name in self._keys.clients().items()
            if name not in self.offline
        } | {b"a node that nobody told us of": 4}

    def push(self, message: Message) -> str | None:
        self._check()
        self.seen.append(message.metadata)
        message_id = f"{len(self._sent):064x}"
        message.metadata.__dict__["_message_id"] = message_id
        self._sent[message_id] = message_to_bytes(message)
        return message_id

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        if self.dies_at_pull:
            self.is_dead = True
        self._check()
        return [self._answer(self._sent.pop(i)) for i in message_ids if i in self._sent]

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.is_dead:
            raise TransportError("no answer")
        if self.is_lost:
            raise ExpiredError("no such task")

    def _answer(self, data: bytes) -> Message:
        message = message_from_bytes(data)
        name = next(n for n, number in FLOWERS.items() if number == message.metadata.dst_node_id)
        from flwr.app import Context

        context = Context(1, node_id(name), {}, RecordDict(), {})
        return self._apps[node_id(name)](message, context)


class RunsStub:
    def __init__(self, keys: NodeKeys, fleet: Fleet) -> None:
        self.keys, self.fleet = keys, fleet
        self.tasks: list[TaskStub] = []
        self.prepare: Callable[[TaskStub], None] = lambda task: None

    def start(self) -> TaskStub:
        self.tasks.append(TaskStub(self.keys, self.fleet))
        self.prepare(self.tasks[-1])
        return self.tasks[-1]


class Place:
    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(now=time.time())
        self.keys = NodeKeys(folder / "nodes")
        for name in NAMES:
            self.keys.set(name, public_pem())
        self.runs = RunsStub(self.keys, self.fleet)
        self.rings = 0
        self.grid = FlowerGrid(self.runs, self.keys, self.ring)  # type: ignore[arg-type]

    def ring(self) -> None:
        self.rings += 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(grid_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(grid_module, "AT_ONCE", 1)
    set_task_identity(5, SERVER_NODE_ID)
    yield Place(tmp_path)


def instruction(name: str) -> Message:
    content = RecordDict({"config": ConfigRecord({"x": 1})})
    return Message(content, dst_node_id=node_id(name), message_type="train", group_id="1.1")


def test_a_campaign_on_it_is_the_campaign_on_any_other_grid(place: Place, tmp_path: Path) -> None:
    here = run_campaign(campaign(tmp_path / "flower", place.fleet, place.grid))
    there = run_campaign(campaign(tmp_path / "local", Fleet(now=place.fleet.now)))
    assert {name: value.tolist() for name, value in here.adapter.items()} == {
        name: value.tolist() for name, value in there.adapter.items()
    }
    assert len(place.runs.tasks) == 1  # one run for all rounds
    assert place.rings == 3 * 3 * 6  # every instruction of three rounds


def test_it_is_not_durable() -> None:
    assert not issubclass(FlowerGrid, DurableGrid)


def test_nodes_are_named_by_the_key_that_their_client_told(place: Place) -> None:
    assert set(place.grid.get_node_ids()) == {node_id(name) for name in NAMES}
    place.runs.tasks[0].offline = {"bob"}
    assert node_id("bob") not in set(place.grid.get_node_ids())
    ids = list(place.grid.push_messages([instruction(name) for name in NAMES]))
    assert [m.dst_node_id for m in place.runs.tasks[0].seen] == [FLOWERS["alice"], FLOWERS["carol"]]
    assert len(ids) == 2


def test_instructions_are_of_flowers_run_whatever_this_process_calls_itself(place: Place) -> None:
    list(place.grid.push_messages([instruction("alice")]))
    sent = place.runs.tasks[0].seen[0]
    assert (sent.run_id, sent.src_node_id) == (place.runs.tasks[0].run_id, SERVER_NODE_ID)


def test_a_reply_says_what_we_know_and_not_what_it_says(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (message_id,) = place.grid.push_messages([instruction("alice")])

    def forged(self: TaskStub, message_ids: Iterable[str]) -> list[Message]:
        metadata = Metadata(
            9, "r", FLOWERS["bob"], SERVER_NODE_ID, message_id, "9.9", time.time(), 1.0, "query"
        )
        return [message_with_metadata(metadata, Error(1, "x"))]

    monkeypatch.setattr(TaskStub, "pull", forged)
    (reply,) = place.grid.pull_messages([message_id])
    assert reply.metadata.src_node_id == node_id("alice")
    assert (reply.metadata.group_id, reply.metadata.message_type) == ("1.1", "train")
    assert list(place.grid.pull_messages([message_id])) == []  # answered


def test_messages_of_a_lost_run_are_answered_at_once_and_the_next_run_is_new(place: Place) -> None:
    ids = list(place.grid.push_messages([instruction(name) for name in NAMES]))
    place.runs.tasks[0].is_lost = True
    replies = list(place.grid.pull_messages(ids))
    assert {reply.metadata.src_node_id for reply in replies} == {node_id(name) for name in NAMES}
    assert all(reply.has_error() for reply in replies)
    assert list(place.grid.push_messages([instruction("alice")]))
    assert len(place.runs.tasks) == 2 and place.runs.tasks[0].closed


def test_a_round_whose_run_was_lost_is_repeated_with_another(place: Place, tmp_path: Path) -> None:
    def first_one_dies(task: TaskStub) -> None:
        task.dies_at_pull = len(place.runs.tasks) == 1

    place.runs.prepare = first_one_dies
    result = run_campaign(campaign(tmp_path / "flower", place.fleet, place.grid))
    assert result.standing.closed == 3 and len(place.runs.tasks) == 2
    assert {(n, a) for _, n, a in place.fleet.trained} == {(1, 2), (2, 1), (3, 1)}


def test_a_superlink_that_is_away_means_that_nobody_is_there(place: Place) -> None:
    list(place.grid.get_node_ids())
    place.runs.tasks[0].is_dead = True
    assert list(place.grid.get_node_ids()) == []


def test_the_end_of_the_grid_ends_its_run(place: Place) -> None:
    list(place.grid.get_node_ids())
    place.grid.finish()
    assert place.runs.tasks[0].finished and place.runs.tasks[0].closed
