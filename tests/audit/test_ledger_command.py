"""`privacy-audit ledger`, `budget` and `report`: figures, what-ifs, and faults that are located."""

import json
from pathlib import Path

import pytest
from tests.audit.test_round import run
from tests.edge_client.privacy.ledgers import KEY, LIMIT, data_of, opened, reserved

from offsite.audit.ledger import audit_ledger
from offsite.edge_client.privacy.ledger_folder import ENTRIES
from offsite.secure.errors import ConfigError, IntegrityError, PolicyError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.bodies import Claimed, Committed
from offsite.secure.privacy.ledger.checkpoint import countersign
from offsite.secure.privacy.units import Unit

COORDINATOR = IdentityKey.from_seed(bytes(range(32)))
ANOTHER = IdentityKey.from_seed(bytes(range(1, 33)))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps reserved, 8 of them spent, 3 of those in a block that a crash hid; counter-signed."""
    root = tmp_path_factory.mktemp("state") / "ledger"
    folder = opened(root)
    folder.settle_limit(LIMIT)
    data_set = folder.data_set(data_of("a", "b"), Unit.RECORD)
    folder.admit(reserved(data_set), AccountantsOfRecord())
    claim = folder.append(Claimed("c 1", 1, 1, 0, 5, bytes(32)))
    folder.append(Committed(claim.entry.seq, 5, bytes(32)))
    note = folder.ledger.checkpoint(KEY)
    receipt = countersign(note, KEY.public, None, (), COORDINATOR, 1_000_000_000)
    folder.keep_receipt(receipt, folder.ledger.size)
    folder.append(Claimed("c 1", 1, 1, 5, 3, bytes(32)))
    opened(root)
    return root


def test_a_whole_ledger_is_shown_with_every_epsilon_computed_again(ledger: Path) -> None:
    told = run("ledger", str(ledger), "--json", "--coordinator", COORDINATOR.public.raw.hex())
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    (account,), (campaign,) = found["data_sets"], found["campaigns"]
    expected = epsilon_of([reserved(bytes(32)).mechanism.repeated(8)], 1e-5)
    assert found["is_valid"] is True and found["entries"] == 8 and found["countersigned"] == 6
    assert account["spent"] == pytest.approx(expected.pld)
    assert (account["prv"], account["rdp"]) == pytest.approx((expected.prv, expected.rdp))
    assert account["spent_and_reserved"] > account["spent"]
    assert (campaign["reserved"], campaign["spent"]) == (20, 8)
    assert campaign["charged_after_crashes"] == 3 and campaign["assurance"] == "declared"
    shown = run("ledger", str(ledger / ENTRIES), "--key", KEY.public.raw.hex())
    assert shown.returncode == 0 and "The ledger is whole" in shown.stdout
    assert "own word" not in shown.stdout and "declared" in shown.stdout
    assert "not checked: give" in shown.stdout and "as the data owner set" in shown.stdout
    assert [(item["entry"], item["epsilon"]) for item in found["limits"]] == [(1, 8.0)]


def forged(ledger: Path, root: Path) -> Path:
    """The same story, told and signed by somebody else."""
    folder = opened(root, ANOTHER)
    folder.settle_limit(LIMIT)
    folder.data_set(data_of("a", "b"), Unit.RECORD)
    assert folder.ledger.ledger_id != opened(ledger).ledger.ledger_id
    return root


def test_a_ledger_of_any_key_is_never_taken_for_the_owners(ledger: Path, tmp_path: Path) -> None:
    """It is consistent: only a key from elsewhere tells it from the owner's."""
    root = str(forged(ledger, tmp_path / "ledger"))
    shown = run("ledger", root, "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["owner_key_is_stated"] is False
    assert json.loads(shown.stdout)["countersigned"] is None
    told = run("budget", root, "--json")
    assert told.returncode == 0 and "anybody could have made" in told.stderr
    assert json.loads(told.stdout)["owner_key_is_stated"] is False
    report = run("report", root, "--out", str(tmp_path / "out"), "--json")
    assert json.loads(report.stdout)["conclusion"] == "open point"
    assert "anybody could have made" in (tmp_path / "out" / "privacy-report.html").read_text()
    owner = ("--key", KEY.public.raw.hex())
    assert run("budget", root, *owner).returncode == 4
    assert "anybody" not in run("budget", str(ledger), *owner).stderr


def test_what_is_wrong_is_located_and_ends_with_4(ledger: Path, tmp_path: Path) -> None:
    lines = (ledger / ENTRIES).read_bytes().splitlines(keepends=True)
    for changed, kind in (
        ([*lines[:3], *lines[4:]], "removed"),
        ([*lines[:5], lines[6], lines[5], *lines[7:]], "swapped"),
        ([*lines, lines[-1]], "duplicated"),
        ([*lines[:3], lines[3].replace(b'"steps":20', b'"steps":30'), *lines[4:]], "changed"),
    ):
        (tmp_path / ENTRIES).write_bytes(b"".join(changed))
        told = run("ledger", str(tmp_path / ENTRIES), "--json")
        assert told.returncode == 4 and kind in told.stderr
        faults = json.loads(told.stdout)["faults"]
        assert kind in {fault["kind"] for fault in faults}


def test_a_ledger_that_forgot_does_not_fit_its_receipt(ledger: Path, tmp_path: Path) -> None:
    lines = (ledger / ENTRIES).read_bytes().splitlines(keepends=True)
    (tmp_path / ENTRIES).write_bytes(b"".join(lines[:4]))
    receipt = ledger / "receipts" / "6"
    told = run("ledger", str(tmp_path / ENTRIES), "--receipt", str(receipt))
    assert told.returncode == 4 and "truncated" in told.stderr


def test_another_owners_key_opens_nothing(ledger: Path) -> None:
    told = run("ledger", str(ledger), "--key", ANOTHER.public.raw.hex())
    assert told.returncode == 4 and "changed" in told.stderr


class Quarrelling:
    """Accountants that do not agree."""

    def epsilon(self, mechanisms: object, terms: object) -> float:
        raise PolicyError("accountants disagree")

    def fits(self, mechanisms: object, terms: object) -> bool:
        return True


def test_where_accountants_disagree_there_is_no_figure_and_all_else_is_shown(ledger: Path) -> None:
    found = audit_ledger(ledger, accounting=Quarrelling())
    (account,) = found.accounts
    assert (account.spent, account.exposed, account.cross_checks) == (None, None, {})
    assert found.campaigns and json.dumps(found.document(), allow_nan=False)


@pytest.mark.parametrize("key", ["", "12", "zz" * 32])
def test_what_is_no_key_is_wrong_usage(ledger: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="--key: expected 64 hex digits"):
        audit_ledger(ledger, key)


@pytest.mark.parametrize("content", [b"", b"nothing\n", b"{}\n" * 3])
def test_what_is_no_ledger_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ENTRIES).write_bytes(content)
    with pytest.raises(IntegrityError, match="begins with its opening"):
        audit_ledger(tmp_path)
    told = run("ledger", str(tmp_path / "nowhere"))
    assert told.returncode == 3 and "found no such file" in told.stderr


def test_a_budget_says_what_is_left_and_answers_what_ifs(ledger: Path) -> None:
    question = ("--steps", "10", "--sampling", "1/10", "--noise", "1.5")
    told = run("budget", str(ledger), "--json", *question)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    (account,), (spent,), (answer,) = found["data_sets"], found["spent"], found["what_if"]
    assert account["left"] == pytest.approx(8.0 - account["spent_and_reserved"])
    assert (spent["campaign"], spent["year"], spent["steps"]) == ("c 1", 2001, 8)
    assert answer["fits"] is True and answer["epsilon_after"] > account["spent_and_reserved"]
    many = run("budget", str(ledger), "--json", *question[2:], "--steps", "1000000")
    (answer,) = json.loads(many.stdout)["what_if"]
    assert answer["fits"] is False and 10 < answer["steps_that_fit"] < 1_000_000
    shown = run("budget", str(ledger), *question)
    assert "What if: 10 steps" in shown.stdout and "Left of each" in shown.stdout


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--steps", "3"), "together"),
        (("--steps", "3", "--sampling", "2", "--noise", "1"), "--sampling: expected a rate"),
        (("--steps", "3", "--sampling", "1/0", "--noise", "1"), "--sampling: expected a rate"),
        (("--steps", "3", "--sampling", "1/2", "--noise", "0"), "noise_multiplier"),
    ],
)
def test_half_a_question_is_wrong_usage(ledger: Path, flags: tuple[str, ...], match: str) -> None:
    told = run("budget", str(ledger), *flags)
    assert told.returncode == 3 and match in told.stderr


def test_a_report_is_a_page_and_a_document(ledger: Path, tmp_path: Path) -> None:
    told = run("report", str(ledger), "--out", str(tmp_path / "out"), "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    page = Path(found["page"]).read_text()
    assert found["conclusion"] == "open point"  # no proof, no audit, no attack
    assert "<html" in page and "https:" not in page and "http:" not in page
    assert json.loads(Path(found["document"]).read_text())
    unknown = run("report", str(ledger), "--out", str(tmp_path), "--data-set", "xyz")
    assert unknown.returncode == 3 and "expected the first digits" in unknown.stderr


def test_the_installed_mechanism_is_audited_and_its_guesses_counted_again(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence.json"
    claim = ("--noise", "2.0", "--sampling", "1/4", "--steps", "8")
    sizes = ("--canaries", "200", "--duels", "200", "--evidence", str(evidence))
    told = run("empirical", *claim, *sizes, "--json")
    assert told.returncode == 0, told.stderr
    first = json.loads(told.stdout)
    assert first["is_refuted"] is False and "committed to" in told.stderr
    again = json.loads(run("recount", str(evidence), "--json").stdout)
    assert again["epsilon_lower_bound"] == first["epsilon_lower_bound"]
    data = bytearray(evidence.read_bytes())
    place = data.index(b'"guesses"') + 40
    data[place : place + 1] = b"9" if data[place : place + 1] != b"9" else b"8"
    evidence.write_bytes(data)
    assert run("recount", str(evidence)).returncode == 4
