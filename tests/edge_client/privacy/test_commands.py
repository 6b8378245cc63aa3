"""`edge-client plan` and `edge-client audit`: before anything is spent, and after."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import pytest
from tests.audit.test_round import run as audit_run
from tests.edge_client.privacy.ledgers import CODE, LIMIT, data_of, opened, reserved
from tests.edge_client.privacy.ledgers import Steps as Free
from typer.testing import CliRunner

from offsite.edge_client import cli
from offsite.edge_client.attack.choice import AttackChoice, save_choice
from offsite.edge_client.commands import audit, close
from offsite.edge_client.data import read_data
from offsite.edge_client.privacy.campaign_budget import Asked, reserve
from offsite.edge_client.privacy.forecast import Intended, forecast, found_at
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit, PrivacyWish, read_limit, save_limit
from offsite.edge_client.privacy.what_if import WhatIf
from offsite.edge_client.state import EdgeState
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.accounting.view import (
    LEAST_DELTA,
    MOST_DELTA,
    MOST_EPSILON,
    check_delta,
    epsilon_of,
)
from offsite.secure.privacy.calibration import schedule
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.assurance import Assurance, assurance_of
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    AuditGuesses,
    AuditResult,
    Claimed,
    LimitSet,
    StartProof,
)
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.units import Unit

SPENDS = PoissonGaussian(1.0, Fraction(1, 20), 20, Unit.RECORD)

# The forecast.


def test_a_forecast_names_the_noise_that_will_be_used() -> None:
    intended, account = Intended(1000, 20, 110, 10_000), WhatIf.fresh(Unit.RECORD)
    found = forecast(PrivacyLimit(8.0), intended, account)
    assert found.noise is not None and found.step_signal is not None
    view = epsilon_of([schedule(found.noise, Fraction(20, 1000), 110, Unit.RECORD)], 1e-5)
    assert 7.9 < view.pld <= 8.0
    assert found.step_signal == pytest.approx(20 / (found.noise * 100))
    assert found.campaign_signal == pytest.approx(found.step_signal * 110**0.5)
    less = forecast(PrivacyLimit(1.0), intended, account)
    assert less.noise is not None and less.noise > found.noise
    # One campaign may spend no more than its own limit.
    alone = forecast(PrivacyLimit(8.0, campaign_epsilon=1.0), intended, account)
    assert alone.noise == less.noise and account.spent(PrivacyLimit(8.0)) == 0.0


def test_what_no_noise_can_keep_is_said() -> None:
    intended = Intended(10, 10, 10_000, None)
    found = forecast(PrivacyLimit(0.01), intended, WhatIf.fresh(Unit.RECORD))
    assert (found.noise, found.campaign_signal) == (None, None)


def test_the_best_guesser_is_that_of_the_theorem() -> None:
    """Against the table of docs/sharp-edges.md."""
    found = [found_at(epsilon, 1e-5, 0.01) for epsilon in (1.0, 3.0, 8.0)]
    assert found == pytest.approx([0.0198, 0.054, 0.2545], abs=5e-4)


def test_the_plan_is_shown_without_a_release(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(200)))
    arguments = ["plan", "--data", str(data), "--epsilon", "2", "--delta", "1e-4"]
    shown = CliRunner().invoke(cli.app, [*arguments, "--state", str(tmp_path / "no"), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert found["sampling"] == "16/200" and found["steps_with_spare"] == 99
    assert [row["epsilon"] for row in found["forecasts"]] == [1.0, 2.0, 3.0, 8.0]
    assert not (tmp_path / "no").exists()


def test_a_plan_holds_to_the_ledger_what_a_campaign_would(tmp_path: Path) -> None:
    """The noise of the table is the one that `reserve` finds, whatever was spent before."""
    rows = [f"row {i}" for i in range(400)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data, state = read_data(path), EdgeState(tmp_path / "edge", None)
    limit = PrivacyLimit(3.0, 1e-4, 2.0)
    with EdgeState.open(state.root) as opened_state:
        ledger = LedgerFolder.open(
            state.ledger, opened_state.identity_key(), "edge-a", "offsite", lambda: 1e9
        )
        ledger.settle_limit(limit)
        save_limit(state.root, limit)
        half = ledger.data_set(replace(data, rows=data.rows[:200]), Unit.RECORD)
        ledger.admit(reserved(half, 20, mechanism=SPENDS), AccountantsOfRecord())
        ledger.append(Claimed("c 1", 1, 1, 0, 20, bytes(32)))
    before = {item: item.stat().st_mtime_ns for item in state.root.rglob("*") if item.is_file()}
    shown = _plan(path, state.root, "--rounds", "1", "--steps", "20")
    assert before == {
        item: item.stat().st_mtime_ns for item in state.root.rglob("*") if item.is_file()
    }
    assert (shown["delta"], shown["campaign_epsilon"]) == (1e-4, 2.0) and shown["spent"] > 0.6
    settings = TuningSettings(local_steps=20, batch_examples=16)
    plan = RoundPlan(1, 1, 1, 1, "0" * 64, "0" * 64, settings, 1e9, 3)
    ledger = LedgerFolder.open(state.ledger, state.identity_key(), "edge-a", "x", lambda: 2e9)
    data_set = ledger.data_set(data, Unit.RECORD)
    asked = Asked(plan, IdentityKey.from_seed(bytes(32)).public, data_set, 400, CODE)
    chosen = reserve(ledger, limit, asked).reserved
    (row,) = (row for row in shown["forecasts"] if row["epsilon"] == 3.0)
    assert row["noise_multiplier"] == chosen.mechanism.noise_multiplier
    assert chosen.adaptivity is Adaptivity.FILTER
    # What cannot be kept beside what was spent is said to be too much.
    low = _plan(path, state.root, "--epsilon", "0.6", "--no-campaign-epsilon")
    assert low["forecasts"][0]["noise_multiplier"] is None


def test_rows_that_the_attack_holds_out_are_not_planned_with(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(400)))
    save_choice(EdgeState(tmp_path / "edge", None).attack, AttackChoice(planted_secrets=3))
    shown = _plan(path, tmp_path / "edge", "--steps", "1", "--rounds", "1")
    assert shown["sampling"] == "16/363"


def _plan(data: Path, state: Path, *more: str) -> dict[str, Any]:
    arguments = ["plan", "--data", str(data), "--state", str(state), "--json", *more]
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 0, shown.output
    found: dict[str, Any] = json.loads(shown.stdout[shown.stdout.index("{") :])
    return found


# The limit.


def test_a_limit_is_kept_until_it_is_changed(tmp_path: Path) -> None:
    assert read_limit(tmp_path) is None and PrivacyWish().settled(None) is None
    first = PrivacyWish(8.0, person_column="patient").settled(None)
    assert first == PrivacyLimit(8.0, 1e-5, None, "patient")
    assert first is not None
    save_limit(tmp_path, first)
    assert PrivacyWish().settled(read_limit(tmp_path)) == first
    lower = PrivacyWish(3.0, 1e-6, 1.0).settled(read_limit(tmp_path))
    assert lower == PrivacyLimit(3.0, 1e-6, 1.0, "patient")


def test_the_limit_of_a_campaign_can_be_taken_away_and_never_exceeds_the_other() -> None:
    before = PrivacyLimit(8.0, campaign_epsilon=5.0)
    with pytest.raises(ConfigError, match="give --campaign-epsilon 3 or less beside it"):
        PrivacyWish(3.0).settled(before)
    assert PrivacyWish(3.0, campaign_epsilon=2.0).settled(before) == PrivacyLimit(3.0, 1e-5, 2.0)
    free = PrivacyWish(3.0, is_campaign_unlimited=True)
    assert free.settled(before) == PrivacyLimit(3.0)
    assert not free.is_silent and PrivacyWish().is_silent
    with pytest.raises(ConfigError, match="found both"):
        PrivacyWish(3.0, campaign_epsilon=2.0, is_campaign_unlimited=True).settled(before)
    with pytest.raises(ConfigError, match="--campaign-epsilon: expected at most 3"):
        PrivacyWish(3.0, campaign_epsilon=5.0).settled(None)


def test_every_limit_is_one_that_the_accountants_can_confirm() -> None:
    """The bounds are the accountants'; beyond them every campaign would be refused later."""
    for epsilon, delta in ((MOST_EPSILON, LEAST_DELTA), (1e-3, MOST_DELTA)):
        limit = PrivacyLimit(epsilon, delta, epsilon)
        assert limit.stated == LimitSet(epsilon, delta, epsilon)
        check_delta(limit.delta)
        epsilon_of([schedule(64.0, Fraction(1, 1000), 1, Unit.RECORD)], limit.delta)
    for wrong in ((MOST_EPSILON * 1.01, 1e-5), (8.0, LEAST_DELTA / 2), (8.0, MOST_DELTA * 1.01)):
        with pytest.raises(ConfigError, match="expected"):
            PrivacyLimit(*wrong)


@pytest.mark.parametrize(
    "wish",
    [
        (None, 1e-5, None, None),
        (None, None, 1.0, None),
        (None, None, None, "patient"),
        (-1.0, None, None, None),
        (float("nan"), None, None, None),
        (float("inf"), None, None, None),
        (8.0, 0.0, None, None),
        (8.0, 1.0, None, None),
        (8.0, None, 0.0, None),
    ],
)
def test_what_is_no_limit_is_refused(
    wish: tuple[float | None, float | None, float | None, str | None],
) -> None:
    with pytest.raises(ConfigError, match="expected"):
        PrivacyWish(*wish).settled(None)


def test_the_unit_cannot_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says nothing about the other"):
        PrivacyWish(person_column="patient").settled(PrivacyLimit(8.0))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"epsilon": 8, "more": 1}',
        '{"epsilon": true}',
        '{"epsilon": "8"}',
        '{"epsilon": 8, "person_column": 5}',
    ],
)
def test_a_damaged_limit_is_never_taken_for_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "privacy.json").write_text(content)
    with pytest.raises(ConfigError, match="privacy limit"):
        read_limit(tmp_path)


# The audit.


class _State:
    """An enrolled edge, as far as the audit looks."""

    is_enrolled = True

    def membership(self) -> object:
        class Membership:
            client_id = "edge-a"

        return Membership()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def test_an_audit_commits_in_the_ledger_and_raises_the_assurance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ledger"
    folder = opened(root)
    folder.settle_limit(LIMIT)
    data_set = folder.data_set(data_of("a", "b"), Unit.RECORD)
    folder.admit(reserved(data_set, 6), AccountantsOfRecord())
    folder.append(StartProof("c 1", bytes(32), True))
    save_limit(tmp_path, LIMIT)
    monkeypatch.setattr(audit.EdgeState, "open", lambda path: _State())
    monkeypatch.setattr(audit, "open_ledger", lambda state, owner: opened(root))
    audit.audit_own_mechanism(tmp_path, None, 200, 200, Terminal(as_json=True))
    found: LedgerFolder = opened(root)
    assert assurance_of(found.budget, "c 1") is Assurance.AUDITED
    (evidence,) = (root / "audits").iterdir()
    arguments = ("recount", str(evidence), "--json", "--ledger", str(root))
    told = audit_run(*arguments)
    assert told.returncode == 0, told.stderr
    # The evidence of another audit is not what this ledger committed to.
    other = tmp_path / "other.json"
    claim = ("--noise", "2.0", "--sampling", "1/4", "--steps", "4")
    sizes = ("--canaries", "100", "--duels", "100", "--evidence", str(other))
    assert audit_run("empirical", *claim, *sizes).returncode == 0
    told = audit_run("recount", str(other), "--ledger", str(root))
    assert told.returncode == 4 and "its guesses before it" in told.stderr
    kinds = [type(r.entry.body) for r in _records(root)]
    assert kinds[-3:] == [AuditGuesses, AuditGuesses, AuditResult]
    with pytest.raises(ConfigError, match="--campaign: expected the beginning"):
        audit.audit_own_mechanism(tmp_path, "zzz", 200, 200, Terminal())


def test_a_campaign_that_will_not_go_on_is_closed_and_counts_as_it_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ledger"
    folder = opened(root)
    folder.settle_limit(LIMIT)
    folder.admit(reserved(folder.data_set(data_of("a", "b"), Unit.RECORD), 6), Free())
    folder.append(Claimed("c 1", 1, 1, 0, 2, bytes(32)))
    save_limit(tmp_path, LIMIT)
    monkeypatch.setattr(close.EdgeState, "open", lambda path: _State())
    monkeypatch.setattr(close, "open_ledger", lambda state, owner: opened(root))
    close.close_campaign(tmp_path, "c", Terminal(as_json=True))
    told = json.loads(capsys.readouterr().out)
    assert (told["campaign"], told["returned_steps"]) == ("c 1", 4)
    # Exact sums hold for what was planned: all six steps count, and it is said that four never ran.
    planned = epsilon_of([reserved(bytes(32), 6).mechanism], LIMIT.delta).pld
    assert (told["spent"], told["steps_that_never_ran"]) == (pytest.approx(planned), 4)
    assert not opened(root).budget.campaigns["c 1"].is_open
    with pytest.raises(ConfigError, match="closed already"):
        close.close_campaign(tmp_path, "c", Terminal())
    with pytest.raises(ConfigError, match="joined with --epsilon"):
        close.close_campaign(tmp_path / "nowhere", "c", Terminal())
    assert not (tmp_path / "nowhere").exists()


def _records(root: Path) -> tuple:  # type: ignore[type-arg]
    from offsite.audit.ledger import read_ledger

    return read_ledger(root).records
