"""`coordinator receipts`: an auditor gets what was kept, and a shortened ledger does not fit it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.coordinator.owner import readme_command, run, write_inputs
from tests.edge_client.privacy.ledgers import KEY, LIMIT, data_of, opened

from offsite.audit.ledger import audit_ledger
from offsite.coordinator.receipts import Receipts
from offsite.coordinator.tables.clients import CertificateRef
from offsite.coordinator.workspace import open_workspace
from offsite.edge_client.privacy.ledger_folder import ENTRIES
from offsite.secure.errors import ConfigError, IntegrityError
from offsite.secure.privacy.units import Unit


@dataclass(frozen=True)
class Owner:
    """A coordinator's state, and the ledger of one of its clients."""

    state: Path
    ledger: Path


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    """`edge-a` has had three entries counter-signed; `edge-b` tunes without a limit."""
    root = tmp_path_factory.mktemp("owner")
    state, ledger = root / "state", root / "ledger"
    write_inputs(root)
    assert run(*readme_command("init", root, state)).exit_code == 0
    folder = opened(ledger)
    folder.settle_limit(LIMIT)
    folder.data_set(data_of("a", "b"), Unit.RECORD)
    with open_workspace(state, exclusive=False) as workspace:
        for number, (name, key) in enumerate((("edge-a", KEY.public.raw), ("edge-b", bytes(32)))):
            certificate = CertificateRef(bytes([number]) * 32, time.time() + 60)
            workspace.store.clients.add(name, key, certificate, time.time())
        receipts = Receipts(workspace.store, workspace.keys.coordinator, time.time)
        receipts.countersign("edge-a", folder.ledger.checkpoint(KEY), ())
    return Owner(state, ledger)


def test_an_auditor_gets_the_last_receipt(owner: Owner, tmp_path: Path) -> None:
    """With the keys that an audit asks for; a ledger that was cut does not fit it."""
    out = tmp_path / "receipt"
    shown = run("receipts", "edge-a", "--out", str(out), "--state", str(owner.state), "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout[shown.stdout.index("{") :])
    assert told["owner_key"] == KEY.public.raw.hex() and told["entries"] == 3
    keys = (told["owner_key"], told["coordinator_key"])
    found = audit_ledger(owner.ledger, *keys, receipts=(out,))
    assert not found.findings.faults and found.countersigned == 3
    lines = (owner.ledger / ENTRIES).read_bytes().splitlines(keepends=True)
    (tmp_path / ENTRIES).write_bytes(b"".join(lines[:2]))
    with pytest.raises(IntegrityError, match="truncated"):
        audit_ledger(tmp_path / ENTRIES, *keys, receipts=(out,)).check()


@pytest.mark.parametrize(
    ("name", "out", "match"),
    [
        ("edge-b", "receipt", "had no ledger counter-signed"),
        ("edge-c", "receipt", "expected the name of a client"),
        ("edge-a", "nowhere/receipt", "a folder that exists"),
    ],
)
def test_where_there_is_no_receipt_it_is_said_why(
    owner: Owner, tmp_path: Path, name: str, out: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        run("receipts", name, "--out", str(tmp_path / out), "--state", str(owner.state))
    assert not list(tmp_path.rglob("receipt"))
