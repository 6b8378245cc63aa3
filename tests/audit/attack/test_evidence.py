"""Evidence of an attack: read again, it says the same, or it is refused."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.audit.attack.adapters import ENTROPY, SETTINGS, overfitted, scene
from tests.tiny import save_tokenizer

from offsite.audit.attack.analysis import analyse
from offsite.audit.attack.attack import adapter_sha256, attack_adapter
from offsite.audit.attack.evidence import audit_result, read_evidence, result_json, sha256, to_bytes
from offsite.audit.attack.planted import draw_secrets, with_candidates
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.attack.table import render
from offsite.audit.attack.verdict import Verdict
from offsite.emulator.training.tokens import Encoding
from offsite.secure.errors import ConfigError, IntegrityError, OffsiteError, PeerError
from offsite.secure.privacy.ledger.bodies import AuditKind


@pytest.fixture(scope="module")
def evidence() -> bytes:
    here = scene()
    return to_bytes(attack_adapter(here.target(overfitted()), here.rows, SETTINGS, ENTROPY))


def test_evidence_gives_the_result_again(evidence: bytes) -> None:
    found = read_evidence(evidence)
    assert to_bytes(found) == evidence and len(sha256(evidence)) == 64
    assert found.measured.after_sha256 == adapter_sha256(overfitted())
    assert found.measured.before_sha256 != found.measured.after_sha256
    again = analyse(found.measured, found.settings, found.entropy)
    assert result_json(again) == result_json(found)


def _verdict(document: dict[str, Any]) -> None:
    document["result"]["judgement"]["verdict"] = "within"


def _advantage(document: dict[str, Any]) -> None:
    document["result"]["membership"]["advantage"]["low"] -= 0.5


def _allowed(document: dict[str, Any]) -> None:
    document["settings"]["allowed_advantage"] = 1.0


def _losses(document: dict[str, Any]) -> None:
    document["members"]["after_nats"] = document["members"]["before_nats"]


def _digest(document: dict[str, Any]) -> None:
    document["after_sha256"] = document["before_sha256"]


def _more_ranks(document: dict[str, Any]) -> None:
    document["result"]["exposure"]["ranks"].append(1)


def _true_for_a_number(document: dict[str, Any]) -> None:
    document["result"]["membership"]["members_measured"] = True


@pytest.mark.parametrize(
    "change", [_verdict, _advantage, _allowed, _losses, _digest, _more_ranks, _true_for_a_number]
)
def test_a_changed_verdict_is_refused(
    evidence: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(evidence)
    change(document)
    with pytest.raises(IntegrityError, match="expected the result that follows"):
        read_evidence(json.dumps(document).encode())


def _unknown(document: dict[str, Any]) -> None:
    document["more"] = 1


def _shorter(document: dict[str, Any]) -> None:
    document["held_out"]["tokens"].pop()


def _words(document: dict[str, Any]) -> None:
    document["held_out"]["tokens"][0] = "4"


def _no_tokens(document: dict[str, Any]) -> None:
    document["held_out"]["tokens"][0] = 0


def _few(document: dict[str, Any]) -> None:
    document["members"] = {name: values[:3] for name, values in document["members"].items()}


@pytest.mark.parametrize("change", [_unknown, _shorter, _words, _no_tokens, _few])
def test_what_is_no_evidence_is_refused(
    evidence: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(evidence)
    change(document)
    with pytest.raises(OffsiteError):
        read_evidence(json.dumps(document).encode())
    with pytest.raises(PeerError, match="strict JSON"):
        read_evidence(evidence[:-1])


def test_the_last_digits_may_be_those_of_another_machine(evidence: bytes) -> None:
    document = json.loads(evidence)
    document["result"]["exposure"]["mean_bits"]["low"] *= 1 + 1e-12
    assert read_evidence(json.dumps(document).encode()).judgement.verdict is Verdict.EXCEEDED


def test_evidence_says_nothing_of_a_row_but_its_losses(evidence: bytes) -> None:
    document = json.loads(evidence)
    assert document["members"].keys() == {"before_nats", "after_nats", "tokens"}
    assert len(document["planted"]) == 6


def test_planted_secrets_are_rows_with_others_like_them(tmp_path: Path) -> None:
    tokenizer, secrets = save_tokenizer(tmp_path), draw_secrets(5, ENTROPY)
    assert len({secret.prompt for secret in secrets}) == 5
    assert secrets == draw_secrets(5, ENTROPY) != draw_secrets(5, bytes(32))
    planted = with_candidates(secrets, 31, tokenizer, Encoding(64), bytes(32))
    for secret, plant in zip(secrets, planted, strict=True):
        text = tokenizer.decode(plant.secret.ids)
        assert text == secret.prompt + secret.completion
        learnt = tokenizer.decode(plant.secret.ids[plant.secret.learnt])
        assert learnt == secret.completion and len(learnt.split()) == 9
        texts = {tokenizer.decode(example.ids) for example in plant.candidates}
        assert len(texts) == 31 and text not in texts
        assert all(other.startswith(secret.prompt) for other in texts)
    with pytest.raises(ConfigError, match="found 0"):
        draw_secrets(0, ENTROPY)


def test_an_adapter_has_another_digest_when_a_name_or_value_changes() -> None:
    tensors = dict(overfitted())
    name = next(iter(tensors))
    other = {("x" if key == name else key): value for key, value in tensors.items()}
    assert len({adapter_sha256(t) for t in (tensors, other, scene().before)}) == 3
    assert AttackSettings.from_json(AttackSettings().to_json()) == AttackSettings()


def test_the_ledger_is_told_the_digest_and_the_verdict(evidence: bytes) -> None:
    entry = audit_result("c1", read_evidence(evidence), evidence)
    assert entry.audit is AuditKind.ATTACK and entry.evidence.hex() == sha256(evidence)
    assert not entry.passed and entry.confidence == 0.95 and entry.epsilon_at_least is None


def test_the_table_says_the_verdict_first(evidence: bytes) -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(read_evidence(evidence)))
    text = console.export_text()
    assert "The adapter tells more about its rows than is allowed" in text
    assert "exceeded" in text and "allowed 0.1" in text and "none were planted" not in text
