"""An edge that waits: it states its facts, and says what the coordinator says it waits for."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.loopback import Post, round_service, serving

from offsite.coordinator.mailbox import CampaignStatus, Mailbox, Phase
from offsite.coordinator.policy.eligibility import Eligibility
from offsite.coordinator.policy.eligibility import Facts as Stated
from offsite.edge_client.facts import Facts
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.resume import Persistence
from offsite.edge_client.worker import Ears, Edge, Ending, run_worker
from offsite.v1 import rounds_pb2 as pb
from offsite.v1.rounds_pb2_grpc import RoundServiceStub

ENOUGH = Facts("0.1.0", 1 << 30, 100)


def _post(folder: Path, eligibility: Eligibility | None = None) -> Post:
    post = Post(folder, "anna")
    post.mailbox = Mailbox(post.store, post.spool, post.clock, eligibility)
    return post


def _heard(post: Post, folder: Path, *statuses: CampaignStatus, facts: Facts | None) -> list[str]:
    """What an edge says until the campaign ends, the coordinator going through `statuses`."""
    said: list[str] = []
    left = iter([*statuses, CampaignStatus(Phase.ENDED, "done")])
    post.mailbox.set_status(next(left))

    def pause(_: float) -> None:
        post.mailbox.set_status(next(left))

    with serving(round_service(post.mailbox, 0.0)) as loopback, loopback.channel("anna") as line:
        edge = Edge(
            line,
            "anna",
            folder / "rounds",
            Pulse(line, facts),
            Ears(said.append),
            Persistence(retries=2, sleep=lambda _: None),
            pause=pause,
        )
        end = run_worker(edge, lambda message, context: message)
    assert end is not None and end.ending is Ending.ENDED
    return said


def test_a_paused_campaign_is_named_once_and_the_edge_stays(tmp_path: Path) -> None:
    paused = CampaignStatus(Phase.PAUSED, "paused by its owner: holidays")
    waiting = CampaignStatus(Phase.WAITING, "the next round may begin at 22:00 UTC")
    said = _heard(_post(tmp_path), tmp_path, paused, paused, waiting, facts=None)
    assert said == [
        "waiting for the next round",
        "the campaign is paused by its owner: holidays",
        "the coordinator says: the next round may begin at 22:00 UTC",
    ]


@pytest.mark.parametrize(
    ("facts", "misfit"),
    [
        (ENOUGH, ""),
        (Facts("0.1.0"), "100 examples are wanted, nothing stated"),
        (replace(ENOUGH, examples=99), "100 examples are wanted, 99 stated"),
    ],
)
def test_an_edge_that_is_not_asked_hears_why(facts: Facts, misfit: str, tmp_path: Path) -> None:
    post = _post(tmp_path, Eligibility(least_examples=100))
    said = _heard(post, tmp_path, CampaignStatus(Phase.RUNNING), facts=facts)
    expected = [f"the coordinator does not ask this edge: {misfit}"] if misfit else []
    assert said[1:] == expected
    assert post.mailbox.misfit("anna") == misfit
    row = post.store.clients.get("anna")
    assert row is not None
    assert row.facts == Stated(facts.version, facts.free_memory_bytes, facts.examples)


def test_what_was_stated_stays_while_an_edge_is_busy_and_goes_when_it_is_taken_back(
    tmp_path: Path,
) -> None:
    post = _post(tmp_path)
    with serving(round_service(post.mailbox, 0.0)) as loopback, loopback.channel("anna") as line:
        stub = RoundServiceStub(line)

        def stated(request: pb.AwaitRequest) -> Stated:
            stub.Await(request, timeout=30)
            row = post.store.clients.get("anna")
            assert row is not None
            return row.facts

        full = stated(pb.AwaitRequest(facts=ENOUGH.to_message()))
        assert full == Stated("0.1.0", 1 << 30, 100)
        assert stated(pb.AwaitRequest(status="an older edge states nothing")) == full
        assert stated(pb.AwaitRequest(facts=Facts("0.2").to_message())) == Stated("0.2")
        # Numbers that no database holds, and words that would not print as themselves.
        odd = pb.EdgeFacts(version="1\x1b[2J" + "x" * 99, examples=2**64 - 1)
        assert stated(pb.AwaitRequest(facts=odd)).examples == 2**63 - 1
        row = post.store.clients.get("anna")
        assert row is not None and "\x1b" not in row.facts.version and len(row.facts.version) <= 64
