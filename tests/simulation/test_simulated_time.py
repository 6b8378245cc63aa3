"""Replies arrive when they arrive, and waiting costs nothing."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from offsite.simulation.simulated_time import Line, SimulatedClock, SimulatedGrid

TAKES = {1: 10.0, 2: 50.0, 3: None, 4: 101.0}
"""Seconds to each node's reply."""


class Scene:
    """Four clients that note when they work."""

    def __init__(self) -> None:
        self.clock = SimulatedClock(1000.0)
        self.worked: list[tuple[int, float]] = []
        self.prepared: list[list[int]] = []
        self.line = Line(self.clock, lambda m: TAKES[m.metadata.dst_node_id], self._prepare)
        self.grid = SimulatedGrid({node: self._app(node) for node in TAKES}, self.line)

    def _prepare(self, messages: object) -> None:
        self.prepared.append([m.metadata.dst_node_id for m in messages])  # type: ignore[attr-defined]

    def _app(self, node: int) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            self.worked.append((node, self.clock.of_client()))
            return Message(message.content, reply_to=message)

        return app

    def push(self, group: str = "1.1") -> list[str]:
        content = RecordDict({"c": ConfigRecord({"n": 1})})
        messages = [
            Message(content, dst_node_id=node, message_type="train", group_id=group, ttl=100.0)
            for node in TAKES
        ]
        return list(self.grid.push_messages(messages))

    def pull(self, ids: list[str]) -> list[int]:
        return [m.metadata.src_node_id for m in self.grid.pull_messages(ids)]


def test_a_reply_is_there_once_it_has_arrived_and_not_before() -> None:
    scene = Scene()
    ids = scene.push()
    assert scene.pull(ids) == [] and scene.worked == []
    scene.line.pause(0.05)
    assert scene.clock.now == 1010.0 and scene.pull(ids) == [1]
    scene.line.pause(0.05)
    assert scene.clock.now == 1050.0 and scene.pull(ids[1:]) == [2]
    scene.line.pause(0.05)
    assert scene.clock.now == 1100.0 and scene.pull(ids[2:]) == []  # the time is over


def test_a_client_works_when_it_is_asked_and_not_if_nobody_waits_for_it() -> None:
    scene = Scene()
    ids = scene.push()
    for _ in range(5):
        scene.line.pause(1.0)
        scene.pull(ids)
    assert scene.worked == [(1, 1000.0), (2, 1000.0)]
    assert scene.prepared == [[1, 2]]


def test_where_nothing_will_happen_time_goes_on_by_itself() -> None:
    scene = Scene()
    scene.line.pause(60.0)
    assert scene.clock.now == 1060.0
    scene.line.pause(0.0)
    assert scene.clock.now > 1060.0


def test_what_was_closed_is_waited_for_no_longer() -> None:
    scene = Scene()
    ids = scene.push()
    scene.grid.close("1.1")
    scene.line.pause(7.0)
    assert scene.clock.now == 1007.0 and scene.pull(ids) == []
