"""One task of a SuperNode after the other: only installed code answers, and its failures stay here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from flwr.app import Context, Message, RecordDict

from offsite.edge_client.engines.flower import rounds
from offsite.edge_client.engines.flower.rounds import run_flower_rounds
from offsite.edge_client.inbox import ROUND_FOLDER
from offsite.edge_client.worker import FAILED_TEXT, Ears, Edge, Ending
from offsite.emulator.engines.flower.fab import fab_sha256
from offsite.emulator.engines.flower.internals import ClientInput
from offsite.emulator.rounds.flower_internals import assign_message_id, set_task_identity
from offsite.secure.errors import (
    ConfigError,
    ExpiredError,
    IdentityError,
    StaleReleaseError,
    TransportError,
)
from offsite.v1 import rounds_pb2 as pb

OVER = pb.AwaitResponse(phase=pb.CAMPAIGN_PHASE_ENDED, reason="done")
FAILED = pb.AwaitResponse(phase=pb.CAMPAIGN_PHASE_FAILED, reason="too few")


def instruction() -> Message:
    set_task_identity(1, 1)
    message = Message(RecordDict(), dst_node_id=42, message_type="train")
    assign_message_id(message, "ab" * 32)
    return message


class PulseStub:
    def __init__(self) -> None:
        self.over: pb.AwaitResponse | None = None
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def beating(self, message_id: str) -> Iterator[None]:
        assert message_id == ""
        yield


@dataclass
class TaskStub:
    """A task of the SuperNode; `fails` is raised where it would be pulled."""

    fab: str = field(default_factory=fab_sha256)
    fails: Exception | None = None
    pushed: list[Message] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def pull(self) -> ClientInput:
        if self.fails is not None:
            raise self.fails
        return ClientInput(instruction(), Context(1, 42, {}, RecordDict(), {}), self.fab)

    def push(self, reply: Message) -> None:
        self.pushed.append(reply)


class NodeStub:
    """Hands out tasks; the campaign ends after the last one."""

    def __init__(self, pulse: PulseStub, tasks: list[TaskStub], end: pb.AwaitResponse) -> None:
        self.pulse, self.tasks, self.end = pulse, list(tasks), end
        self.restarts, self.silent_s = 0, 0.0
        self.refusal: Exception | None = None
        self.shim = self.child = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def restart(self) -> None:
        self.restarts += 1

    def next_task(self) -> TaskStub | None:
        if not self.tasks:
            self.pulse.over = self.end
            return None
        return self.tasks.pop(0)


class Place:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.pulse = folder, PulseStub()
        self.node: NodeStub | None = None
        self.said: list[str] = []
        monkeypatch.setattr(rounds, "SuperNode", lambda state, channel: self.node)

    def run(
        self,
        app: Callable[[Message, Context], Message],
        *tasks: TaskStub,
        end: pb.AwaitResponse = OVER,
        refusal: Exception | None = None,
    ):  # type: ignore[no-untyped-def]
        self.node = NodeStub(self.pulse, list(tasks), end)
        self.node.refusal = refusal
        edge = Edge(
            channel=None,  # type: ignore[arg-type]
            client_id="a",
            rounds=self.folder / "rounds",
            pulse=self.pulse,  # type: ignore[arg-type]
            ears=Ears(self.said.append),
            pause=lambda seconds: None,
        )
        return run_flower_rounds(edge, app, None)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def answering(message: Message, context: Context) -> Message:
    folder = Path(str(context.node_config[ROUND_FOLDER]))
    assert folder.is_dir() and folder.name == message.metadata.message_id
    (folder / "checkpoint").touch()
    return Message(RecordDict(), reply_to=message)


def test_a_task_is_answered_by_the_installed_app_in_a_folder_of_its_own(place: Place) -> None:
    task = TaskStub()
    end = place.run(answering, task)
    assert (end.ending, end.reason) == (Ending.ENDED, "done")
    assert not task.pushed[0].has_error()
    assert list((place.folder / "rounds").iterdir()) == []  # nothing of a round is kept
    assert '"replies": 1' in (place.folder / "returned").read_text()


def test_a_run_with_other_code_is_refused_and_nothing_is_called(place: Place) -> None:
    def never(message: Message, context: Context) -> Message:
        raise AssertionError("called")

    task = TaskStub(fab="00" * 32)
    place.run(never, task)
    assert "found one with other code" in str(task.pushed[0].error.reason)


def test_what_fails_on_an_edge_says_nothing_of_its_data(place: Place) -> None:
    def fails(message: Message, context: Context) -> Message:
        raise ConfigError("/home/me/patients.jsonl: row 7")

    task = TaskStub()
    end = place.run(fails, task)
    assert task.pushed[0].error.reason == FAILED_TEXT
    assert any("patients" in text for text in place.said) and end.ending is Ending.ENDED


def test_another_release_is_fetched_after_the_coordinator_was_told(place: Place) -> None:
    def stale(message: Message, context: Context) -> Message:
        raise StaleReleaseError("fetch the release again")

    task = TaskStub()
    assert place.run(stale, task, TaskStub()) is None
    assert task.pushed[0].has_error()


@pytest.mark.parametrize("error", [TransportError("cut"), ExpiredError("gone")])
def test_a_supernode_whose_message_was_lost_begins_afresh(place: Place, error: Exception) -> None:
    place.run(answering, TaskStub(fails=error), after := TaskStub())
    assert place.node is not None and place.node.restarts == 1
    assert not after.pushed[0].has_error()


def test_a_campaign_that_failed_is_said_to_have_failed(place: Place) -> None:
    assert place.run(answering, end=FAILED).ending is Ending.FAILED


def test_an_edge_that_was_revoked_stops(place: Place) -> None:
    with pytest.raises(IdentityError):
        place.run(answering, TaskStub(), refusal=IdentityError("revoked"))


def test_a_coordinator_that_stays_away_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SILENCE_S", -1.0)
    with pytest.raises(TransportError, match="no answer from the coordinator"):
        place.run(answering, TaskStub())
