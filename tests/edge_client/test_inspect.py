"""`edge-client inspect` as a data owner runs it: on a release of the coordinator it joined."""

import json
import time
from pathlib import Path

import pytest
from tests.edge_client.test_state import MEMBERSHIP, PINNED
from tests.emulator.bundle.conftest import tiny_contents
from tests.tiny import save_tokenizer
from typer.testing import CliRunner

from offsite.edge_client.cli import app
from offsite.edge_client.state import EdgeState
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.writer import write_bundle
from offsite.secure import directory
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status
from offsite.secure.errors import PeerError, SignatureError
from offsite.secure.identity import IdentityKey

COORDINATOR = IdentityKey.from_seed(b"c" * 32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    return write(folder, folder / "bundle", 1, "ab" * 32)


def write(work: Path, folder: Path, version: int, base: str) -> Path:
    """A tiny release of the coordinator."""
    tokenizer = save_tokenizer(work / "tokenizer", 300)
    tokenizer.chat_template = None
    now = int(time.time())
    facts = ReleaseFacts("p", version, now - 60, now + 86_400, "tiny", base, "none", 0.6, {})
    write_bundle(folder, tiny_contents(tokenizer, AdapterKind.LORA), facts, COORDINATOR)
    return folder


def joined(root: Path, coordinator: IdentityKey) -> Path:
    """The state of an edge that knows this coordinator."""
    entry = DirectoryEntry(
        "coordinator", coordinator.public, Role.COORDINATOR, Status.ACTIVE, 1_700_000_000.0
    )
    with EdgeState.open(root) as state:
        state.identity_key()
        signed = directory.sign_directory(Directory(1, (entry,)), PINNED)
        state.save_enrolment(MEMBERSHIP, b"tls", b"ca", signed)
    return root


def test_the_document_has_the_figures_and_the_checks(bundle: Path, tmp_path: Path) -> None:
    root = joined(tmp_path / "edge", COORDINATOR)
    command = ["inspect", str(bundle), "--state", str(root), "--json"]
    first, again, other = (
        CliRunner().invoke(app, [*command, *more])
        for more in (["--seed", "3"], ["--seed", "3", "--every-row"], [])
    )
    assert first.exit_code == again.exit_code == other.exit_code == 0
    document = json.loads(first.stdout)
    assert document["accepted"] is True
    assert document["statistics"]["rows_drawn_from_seed"] == 3
    assert document == json.loads(again.stdout)  # a small release is read whole anyway
    assert {check["outcome"] for check in document["hostile_checks"]} <= {"clear", "not judged"}
    drawn = json.loads(other.stdout)["statistics"]["rows_drawn_from_seed"]
    assert drawn != 3


def test_a_person_sees_tables(bundle: Path, tmp_path: Path) -> None:
    root = joined(tmp_path / "edge", COORDINATOR)
    shown = CliRunner().invoke(app, ["inspect", str(bundle), "--state", str(root)])
    assert shown.exit_code == 0
    assert "checks against a hostile release" in shown.stdout
    assert "blocks, against the median of each kind" in shown.stdout


@pytest.mark.parametrize(
    ("version", "base", "says", "failed"),
    [
        (2, "ab" * 32, "expected release 2 or later, found 1", "no rollback"),
        (1, "cd" * 32, "expected a release of the base model cdcd", "base model"),
        (1, "ab" * 32, "", ""),
    ],
)
def test_it_is_compared_with_the_release_that_this_edge_accepted(
    version: int, base: str, says: str, failed: str, bundle: Path, tmp_path: Path
) -> None:
    root = joined(tmp_path / "edge", COORDINATOR)
    write(tmp_path, root / "bundle", version, base)
    shown = CliRunner().invoke(app, ["inspect", str(bundle), "--state", str(root), "--json"])
    document = json.loads(shown.stdout)
    assert document["accepted"] is not bool(says)
    assert says in document.get("refusal", "")
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    expected = {"no rollback": "passed", "base model": "passed"} | {failed: "failed"}
    assert {
        name: outcomes[name] for name in expected if name in outcomes
    }.items() <= expected.items()
    assert isinstance(shown.exception, PeerError) is bool(says)


def test_a_refused_release_is_shown_and_not_measured(bundle: Path, tmp_path: Path) -> None:
    root = joined(tmp_path / "edge", IdentityKey.from_seed(b"x" * 32))
    shown = CliRunner().invoke(app, ["inspect", str(bundle), "--state", str(root), "--json"])
    assert isinstance(shown.exception, SignatureError)
    document = json.loads(shown.stdout)
    assert document["accepted"] is False
    assert "statistics" not in document and "hostile_checks" not in document
