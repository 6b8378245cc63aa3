"""The vectors of `tests/vectors/ledger`: good ledgers come out, each bad one is found out."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vectors.ledger import generate

from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.chain import root_of
from offsite.secure.privacy.ledger.verification import Findings, verify_ledger

FOLDER = Path(generate.__file__).parent
FILES = sorted(FOLDER.glob("*.json"))


def verified(vector: dict[str, Any]) -> Findings:
    return verify_ledger(
        vector["ledger"].encode(),
        IdentityPublicKey(bytes.fromhex(vector["owner_key"])),
        [note.encode() for note in vector["checkpoints"]],
        IdentityPublicKey(bytes.fromhex(vector["coordinator_key"])),
        AccountantsOfRecord() if vector.get("accountants") else None,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_vectors(path: Path) -> None:
    vector = json.loads(path.read_text())
    findings = verified(vector)
    found = [[item.kind.value, item.first, item.last] for item in findings.faults]
    assert found == [fault[:3] for fault in vector["faults"]], findings.faults
    for fault, (*_, says) in zip(findings.faults, vector["faults"], strict=True):
        assert says in fault.problem
    if not vector["faults"]:
        digests = [record.digest for record in findings.records]
        assert (len(digests), root_of(digests, len(digests)).hex()) == (
            vector["size"],
            vector["root"],
        )
        spent = {name: item.spent for name, item in findings.budget.campaigns.items()}
        assert spent == vector["spent_steps"]


def test_bad_files_fail_and_good_ones_do_not() -> None:
    assert len(FILES) >= 50
    for path in FILES:
        faults = json.loads(path.read_text())["faults"]
        assert len(faults) == (1 if path.stem.startswith("bad_") else 0)


def test_receipts_of_a_good_ledger_are_countersigned() -> None:
    findings = verified(json.loads((FOLDER / "good_campaign.json").read_text()))
    assert findings.countersigned == 11
    assert [witness.countersigned_unix_s for witness in findings.witnesses] == [generate.NOW] * 3


def test_the_files_are_as_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out
