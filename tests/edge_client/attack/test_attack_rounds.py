"""An update is attacked before it leaves: one that tells too much stays, and nobody else learns why."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.edge_client.attack.edges import BY_HEART, GENTLE, HALF, LIMIT, ROWS, Edge
from tests.edge_client.tuning.test_client_app import (
    Release,
    _identity,
    call,
    instruction,
    kept,
    release,
)

from offsite.audit.attack.audit import audit_attack
from offsite.audit.attack.evidence import read_evidence
from offsite.audit.attack.verdict import Verdict
from offsite.edge_client import client_app, worker
from offsite.edge_client.attack.attack_rounds import SITS_OUT
from offsite.edge_client.attack.learnt import learnt_examples
from offsite.edge_client.privacy import private_rounds
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.private_tuning import PrivateOutcome, PrivateRun
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import tune
from offsite.emulator.rounds.exchange import read_exchange
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.ledger.bodies import Aborted, AuditKind, AuditResult, Committed

__all__ = ["_identity", "release"]  # fixtures


@pytest.fixture
def edge(release: Release, tmp_path: Path) -> Edge:
    return Edge(release, tmp_path / "edge")


class Killed(BaseException):
    """What ends a process in a test."""


def nothing_is_told(edge: Edge, error: PolicyError) -> None:
    """Beside that it sits the round out: no figure, no verdict, not even that there was an attack."""
    assert str(error) == SITS_OUT
    assert worker.public_text(error) == f"SitsOutError: {SITS_OUT}"
    told = " ".join(edge.statuses)
    assert not any(word in told for word in ("attack", "advantage", "exceeded", "secret", "held"))


def test_an_overfitted_adapter_is_held_back_and_nothing_of_it_leaves(edge: Edge) -> None:
    with pytest.raises(PolicyError) as caught:
        edge.answer(edge.plan(BY_HEART))
    nothing_is_told(edge, caught.value)
    assert edge.sums == []  # no terms were taken, nothing was encoded
    (path,) = edge.evidence
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    found = read_evidence(path.read_bytes())
    assert found.judgement.verdict is Verdict.EXCEEDED and found.membership.advantage.low > 0.1
    assert len(found.measured.members) == len(found.measured.held_out) == ROWS // 2
    assert found.exposure is not None and found.exposure.is_beyond_chance(0.95)
    said = "\n".join(edge.said)
    assert "attack: exceeded; membership advantage" in said and str(path) in said
    assert "the update was held back" in said


def test_an_adapter_that_tells_little_leaves_as_it_was_tuned(edge: Edge, tmp_path: Path) -> None:
    reply = edge.answer(edge.plan())
    digest = read_exchange(reply)[0]
    found = kept(edge.release, edge.folder, reply, digest)
    assert read_evidence(edge.evidence[0].read_bytes()).judgement.verdict is not Verdict.EXCEEDED
    assert edge.statuses[-1] == "tuning, round 1 of 2"
    # The same rows and secrets without an attack give the same update: it changes nothing.
    quiet = Edge(edge.release, tmp_path / "quiet", replace(HALF, is_on=False))
    (draw,) = edge.draws
    copy = quiet.folder / "attack" / "draws" / draw.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(draw.read_bytes())
    again = kept(edge.release, quiet.folder, quiet.answer(edge.plan()), digest)
    assert quiet.evidence == []
    for name, change in found.delta.items():
        assert torch.equal(change, again.delta[name])


@pytest.mark.parametrize("limit", [None, LIMIT], ids=["plain", "private"])
def test_an_attack_leaves_a_warm_model_ready_for_the_next_round(
    edge: Edge, limit: PrivacyLimit | None
) -> None:
    edge.limit = limit
    app = edge.app()
    for number in (1, 2):
        call(app, instruction(edge.plan(round=number), edge.release.adapter)[0])
    assert edge.statuses.count("loading the emulator") == 1
    first, second = (read_evidence(path.read_bytes()).measured for path in edge.evidence)
    # Other rows are measured first, of the same model with the adapter as it was received.
    assert first.before_sha256 == second.before_sha256
    assert first.after_sha256 != second.after_sha256
    assert sorted(first.held_out.before.nats) == pytest.approx(sorted(second.held_out.before.nats))


def test_a_private_adapter_is_returned_and_its_attack_is_in_the_ledger(edge: Edge) -> None:
    edge.limit = LIMIT
    edge.answer(edge.plan())
    entry = edge.bodies[-1]
    assert isinstance(entry, AuditResult) and entry.passed and entry.audit is AuditKind.ATTACK
    data = edge.evidence[0].read_bytes()
    assert entry.evidence == hashlib.sha256(data).digest()
    assert read_evidence(data).judgement.verdict in (Verdict.WITHIN, Verdict.UNDECIDED)
    # Half of the rows and four secrets: sampling is of them.
    reserved = next(iter(edge._privacy().ledger.budget.campaigns.values())).reserved  # type: ignore[union-attr]
    assert reserved.mechanism.sampling.denominator == (ROWS // 2 + HALF.planted_secrets) // 4  # type: ignore[union-attr]
    assert not any(str(ROWS // 2 + 4) in text for text in edge.statuses)


def test_a_mechanism_that_learns_by_heart_is_held_back_and_the_ledger_says_so(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = private_rounds.tune_privately

    def broken(run: PrivateRun, *more, **named):  # type: ignore[no-untyped-def]
        """Spends what it claims, and then tunes on the rows themselves."""
        right(run, *more, **named)
        for parameter in run.parameters.values():
            parameter.requires_grad_(True)
        examples = [example for unit in run.units.of_unit for example in unit]
        task = replace(run.task, settings=BY_HEART)
        found = tune(run.model, run.parameters, run.base, examples, task)
        return PrivateOutcome(found.delta, 4, 1.0, has_trained=True)

    monkeypatch.setattr(private_rounds, "tune_privately", broken)
    edge.limit = LIMIT
    with pytest.raises(PolicyError) as caught:
        edge.answer(edge.plan())
    nothing_is_told(edge, caught.value)
    assert edge.sums == []
    *_, result, aborted = edge.bodies
    assert isinstance(result, AuditResult) and not result.passed
    assert result.evidence == hashlib.sha256(edge.evidence[0].read_bytes()).digest()
    assert isinstance(aborted, Aborted) and aborted.reason == "SitsOutError"
    assert sum(body.steps for body in edge.bodies if isinstance(body, Committed)) == 4


def test_a_restart_keeps_the_same_rows_held_out(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[bytes]] = []

    def recording(model, parameters, base, examples, task, **named):  # type: ignore[no-untyped-def]
        seen.append({example.ids.tobytes() for example in examples})
        return tune(model, parameters, base, examples, task, **named)

    monkeypatch.setattr(client_app, "tune", recording)

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        edge.answer(edge.plan(), die)
    (draw,) = edge.draws
    before = draw.read_bytes()
    assert draw.stat().st_mode & 0o777 == 0o600
    edge.answer(edge.plan())
    # Neither another share nor switching the attack off makes held-out rows members.
    edge.choice = replace(HALF, held_out_share=0.2, planted_secrets=9)
    edge.answer(edge.plan(round=2))
    edge.choice = replace(HALF, is_on=False)
    edge.answer(edge.plan(round=2, attempt=2))
    assert len(seen) == 4 and len(seen[0]) == ROWS // 2 + HALF.planted_secrets
    assert all(one == seen[0] for one in seen)
    assert edge.draws == [draw] and draw.read_bytes() == before
    # Another campaign draws anew.
    edge.choice = HALF
    edge.answer(edge.plan(campaign_id=6))
    assert len(edge.draws) == 2 and seen[-1] != seen[0]


def test_the_same_round_gives_the_same_evidence_again(edge: Edge) -> None:
    edge.answer(edge.plan())
    first = edge.evidence[0].read_bytes()
    shutil.rmtree(edge.folder / "secure")  # as if it had been killed before the update was encoded
    edge.answer(edge.plan())
    assert edge.evidence[0].read_bytes() == first


def test_an_edge_that_tuned_without_an_attack_sits_the_campaign_out(edge: Edge) -> None:
    edge.choice = None
    edge.answer(edge.plan())
    edge.choice = HALF
    with pytest.raises(PolicyError) as caught:
        edge.answer(edge.plan(round=2))
    nothing_is_told(edge, caught.value)
    assert "sits the campaign out" in edge.said[-1] and edge.draws == []
    edge.choice = replace(HALF, is_on=False)
    edge.answer(edge.plan(round=2))


def test_a_private_edge_that_tuned_without_an_attack_sits_the_campaign_out(edge: Edge) -> None:
    edge.limit, edge.choice = LIMIT, None
    edge.answer(edge.plan())
    edge.choice = HALF
    with pytest.raises(PolicyError, match=SITS_OUT):
        edge.answer(edge.plan(attempt=2))
    assert isinstance(edge.bodies[-1], Aborted)
    edge.choice = replace(HALF, is_on=False)  # on the terms that were reserved
    edge.answer(edge.plan(attempt=3))


def test_data_that_change_during_a_campaign_are_said_to_weaken_the_attack(edge: Edge) -> None:
    edge.answer(edge.plan())
    edge.rows = ROWS + 20
    edge.answer(edge.plan(round=2))
    assert len(edge.draws) == 2
    assert any("may have been learnt before" in line for line in edge.said)


def test_a_damaged_draw_is_refused(edge: Edge) -> None:
    edge.answer(edge.plan())
    (draw,) = edge.draws
    whole = json.loads(draw.read_bytes())
    for changes in ({"units": ROWS - 1}, {"held_out": ROWS}, {"entropy": "00"}, {"more": 1}):
        draw.write_text(json.dumps(whole | changes))
        with pytest.raises(ConfigError, match=r"damaged|expected a draw"):
            edge.answer(edge.plan(round=2))


def test_too_few_learnt_rows_return_nothing(edge: Edge) -> None:
    few = replace(GENTLE, local_steps=1)  # 16 rows
    with pytest.raises(ConfigError, match="at least 20 members"):
        edge.answer(edge.plan(few))
    assert edge.sums == []
    edge.rows, edge.statuses = 30, []
    with pytest.raises(ConfigError, match="at least 20 rows that are held out"):
        edge.answer(edge.plan(campaign_id=6))
    assert edge.statuses == ["encoding the data"]  # before anything is tuned


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_members_are_the_examples_that_steps_saw(
    edge: Edge, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: set[bytes] = set()

    def recording(chosen: list[Example], tokens: int) -> object:
        if torch.is_grad_enabled():
            trained.update(example.ids.tobytes() for example in chosen)
        return micro_batches(chosen, tokens)

    examples: list[Example] = []

    def noted(model, parameters, base, given, task, **named):  # type: ignore[no-untyped-def]
        monkeypatch.setattr("offsite.edge_client.tuning.micro_batches", recording)
        examples.extend(given)
        trained.clear()
        found = tune(model, parameters, base, given, task, **named)
        return found

    monkeypatch.setattr(client_app, "tune", noted)
    settings = replace(GENTLE, validation_share=share, local_steps=3)
    edge.answer(edge.plan(settings))
    task = Task(settings, 1, 2, 3)
    found = {examples[place].ids.tobytes() for place in learnt_examples(examples, task, 3)}
    assert len(found) == 48 and found <= trained
    if not share:
        assert found == trained
    evidence = audit_attack(edge.evidence[0]).attack.measured
    assert len(evidence.members) + len(evidence.planted) == 48
