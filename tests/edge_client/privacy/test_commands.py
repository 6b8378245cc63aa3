"""`edge-client plan` and `edge-client audit`: before anything is spent, and after."""

import json
from pathlib import Path
from typing import Self

import pytest
from tests.audit.test_round import run as audit_run
from tests.edge_client.privacy.ledgers import LIMIT, data_of, opened, reserved
from tests.edge_client.privacy.ledgers import Steps as Free
from typer.testing import CliRunner

from offsite.edge_client import cli
from offsite.edge_client.commands import audit, close
from offsite.edge_client.privacy.forecast import Intended, forecast, found_at
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit, read_limit, save_limit, settled
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.calibration import schedule
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.assurance import Assurance, assurance_of
from offsite.secure.privacy.ledger.bodies import AuditGuesses, AuditResult, Claimed, StartProof
from offsite.secure.privacy.units import Unit

# The forecast.


def test_a_forecast_names_the_noise_that_will_be_used() -> None:
    intended = Intended(1000, 20, 110, 10_000, Unit.RECORD, 1e-5)
    found = forecast(8.0, intended)
    assert found.noise is not None and found.step_signal is not None
    from fractions import Fraction

    view = epsilon_of([schedule(found.noise, Fraction(20, 1000), 110, Unit.RECORD)], 1e-5)
    assert 7.9 < view.pld <= 8.0
    assert found.step_signal == pytest.approx(20 / (found.noise * 100))
    assert found.campaign_signal == pytest.approx(found.step_signal * 110**0.5)
    less = forecast(1.0, intended)
    assert less.noise is not None and less.noise > found.noise


def test_what_no_noise_can_keep_is_said() -> None:
    found = forecast(0.01, Intended(10, 10, 10_000, None, Unit.RECORD, 1e-5))
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


# The limit.


def test_a_limit_is_kept_until_it_is_changed(tmp_path: Path) -> None:
    assert read_limit(tmp_path) is None and settled(None, None, None, None, None) is None
    first = settled(None, 8.0, None, None, "patient")
    assert first == PrivacyLimit(8.0, 1e-5, None, "patient")
    assert first is not None
    save_limit(tmp_path, first)
    assert settled(read_limit(tmp_path), None, None, None, None) == first
    lower = settled(read_limit(tmp_path), 3.0, 1e-6, 1.0, None)
    assert lower == PrivacyLimit(3.0, 1e-6, 1.0, "patient")


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
        settled(None, *wish)


def test_the_unit_cannot_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says nothing about the other"):
        settled(PrivacyLimit(8.0), None, None, None, "patient")


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


def test_a_campaign_that_will_not_go_on_gives_back_what_nobody_claimed(
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
    assert (told["campaign"], told["returned_steps"]) == ("c 1", 4) and told["spent"] > 0
    assert not opened(root).budget.campaigns["c 1"].is_open
    with pytest.raises(ConfigError, match="closed already"):
        close.close_campaign(tmp_path, "c", Terminal())
    with pytest.raises(ConfigError, match="joined with --epsilon"):
        close.close_campaign(tmp_path / "nowhere", "c", Terminal())
    assert not (tmp_path / "nowhere").exists()


def _records(root: Path) -> tuple:  # type: ignore[type-arg]
    from offsite.audit.ledger import read_ledger

    return read_ledger(root).records
