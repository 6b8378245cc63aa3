"""`privacy-audit attack`: the verdict again, from the evidence alone, with exit codes for scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.audit.attack.adapters import ENTROPY, SETTINGS, overfitted, scene
from typer.testing import CliRunner

from offsite.audit.attack.analysis import analyse
from offsite.audit.attack.attack import attack_adapter
from offsite.audit.attack.audit import audit_attack
from offsite.audit.attack.evidence import sha256, to_bytes
from offsite.audit.cli import app
from offsite.secure.errors import ConfigError, IntegrityError, PeerError, PolicyError

HEAVY = ("torch", "transformers", "scipy", "dp_accounting", "opacus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence of an overfitted and of an untouched adapter, and of the latter with few rows."""
    root, here = tmp_path_factory.mktemp("evidence"), scene()
    for name, after in (("overfitted", overfitted()), ("untouched", here.before)):
        attack = attack_adapter(here.target(after), here.rows, SETTINGS, ENTROPY)
        (root / name).write_bytes(to_bytes(attack))
    whole = attack.measured
    few = type(whole)(
        *(pair.take(pair.before.nats.argsort()[:40]) for pair in (whole.members, whole.held_out)),
        (),
        whole.before_sha256,
        whole.after_sha256,
    )
    random_gain = few.members.after.nats + 0.1 * few.members.before.nats[::-1]
    few.members.after.nats[:] = random_gain
    few.held_out.after.nats[:] += 0.1 * few.held_out.before.nats[::-1]
    (root / "few").write_bytes(to_bytes(analyse(few, SETTINGS, ENTROPY)))
    return root


def run(*args: object) -> tuple[int, str, str]:
    """The command as a shell runs it."""
    code = "from offsite.audit.cli import run; run()"
    command = [sys.executable, "-c", code, "attack", *map(str, args)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


def test_evidence_of_an_overfitted_adapter_ends_with_6(folder: Path) -> None:
    code, shown, said = run(folder / "overfitted")
    assert code == 6 and "tells more about its rows than is allowed" in shown
    for row in ("advantage", "ROC curve", "1 % false positives", "exposure of planted secrets"):
        assert row in shown
    assert "exceeded: membership advantage 0.9" in said
    code, shown, _ = run(folder / "overfitted", "--json")
    document = json.loads(shown)
    assert code == 6 and document["judgement"]["verdict"] == "exceeded"
    assert document["evidence_sha256"] == sha256((folder / "overfitted").read_bytes())
    assert document["membership"]["low_rate"]["true_positive_rate"]["low"] > 0.5


def test_evidence_of_an_untouched_adapter_ends_with_0(folder: Path) -> None:
    code, shown, said = run(folder / "untouched")
    assert (code, said) == (0, "") and "within" in shown


def test_undecided_is_a_warning(folder: Path) -> None:
    code, shown, said = run(folder / "few")
    assert code == 0 and "undecided" in shown and "cannot be excluded with so few rows" in said


def test_changed_evidence_ends_with_4_and_none_with_3(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "overfitted").read_bytes())
    document["result"]["judgement"]["verdict"] = "within"
    changed = tmp_path / "changed"
    changed.write_text(json.dumps(document))
    code, shown, said = run(changed)
    assert (code, shown) == (4, "") and "expected the result that follows" in said
    for text in ("", "{}", "[1, 2]"):
        changed.write_text(text)
        with pytest.raises(PeerError):
            audit_attack(changed)
    with pytest.raises(ConfigError, match="attack/evidence"):
        audit_attack(tmp_path / "none")


def test_another_allowance_is_judged_by_and_the_rest_is_as_it_was(folder: Path) -> None:
    path = folder / "overfitted"
    stated, found = audit_attack(path), audit_attack(path, 1.0)
    assert found.attack.membership.to_json() == stated.attack.membership.to_json()
    assert found.attack.settings.allowed_advantage == 1.0 and found.evidence_sha256 == sha256(
        path.read_bytes()
    )
    with pytest.raises(PolicyError, match="mean exposure"):  # of the secrets, still
        found.require_not_exceeded()
    audit_attack(folder / "untouched", 0.2).require_not_exceeded()
    with pytest.raises(ConfigError, match="allowed_advantage"):
        audit_attack(path, 1.5)


def test_an_allowance_does_not_hide_a_change(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "overfitted").read_bytes())
    document["members"]["after_nats"] = document["members"]["before_nats"]
    (tmp_path / "changed").write_text(json.dumps(document))
    with pytest.raises(IntegrityError):
        audit_attack(tmp_path / "changed", 1.0)


def test_its_help_imports_nothing_heavy() -> None:
    shown = CliRunner().invoke(app, ["attack", "--help"])
    assert shown.exit_code == 0 and "--allowed-advantage" in shown.output
    code = f"import sys, offsite.audit.cli; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
