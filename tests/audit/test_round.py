"""`privacy-audit round`: a true round passes, whatever is changed in it does not, and each is named."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.audit.rounds import CLIENTS, ENROLMENT, LOST, VALUES, directory, write_round
from tests.coordinator.test_secure_sums import AUTHORITY as SCENE_AUTHORITY
from tests.coordinator.test_secure_sums import SUM_ID, Scene
from tests.secure.aggregation.fleets import COORDINATOR, identity_of, name_of
from typer.testing import CliRunner

from offsite.audit import cli
from offsite.audit.round import AUTHORITY, DIRECTORY, EVIDENCE, MASKED, RESULT, Beside, audit_round
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.secure_sums import secure_sum
from offsite.emulator.rounds.exchange import Action
from offsite.secure import envelope
from offsite.secure.aggregation.evidence import Evidence, words_sha256
from offsite.secure.aggregation.messages import Result, signed
from offsite.secure.errors import ConfigError, IntegrityError, OffsiteError, PeerError

KEY = ENROLMENT.public.short
SURVIVORS = [name_of(i) for i in range(CLIENTS) if name_of(i) != LOST]
USED = [EVIDENCE, RESULT, DIRECTORY, AUTHORITY, *(f"{name}{MASKED}" for name in SURVIVORS)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("round")
    return folder, write_round(folder)


@pytest.fixture
def folder(kept: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(kept[0], tmp_path / "round"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from offsite.audit.cli import run; run()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# What passes.


def test_a_true_round_passes(kept: tuple[Path, np.ndarray]) -> None:
    folder, total = kept
    steps: list[tuple[int, int]] = []
    found = audit_round(folder, KEY, report=lambda *step: steps.append(step))
    assert np.array_equal(found.verified.total, total)
    assert list(found.verified.survivors) == SURVIVORS and found.verified.dropped == (LOST,)
    assert steps == [(done, 4) for done in range(1, 5)]
    assert found.signatures == 4 + 3 * CLIENTS + 3 * len(SURVIVORS)
    assert found.total_weight == pytest.approx(4.0)
    assert found.unused == ()


@pytest.mark.parametrize(
    "key", [KEY, KEY.upper(), ENROLMENT.public.raw.hex(), ENROLMENT.public.fingerprint.hex()]
)
def test_the_key_may_be_given_in_every_form_that_people_have(folder: Path, key: str) -> None:
    assert audit_round(folder, key).authority == ENROLMENT.public
    if key == ENROLMENT.public.raw.hex():  # then no other file needs to have it
        (folder / AUTHORITY).unlink()
        assert audit_round(folder, key).authority == ENROLMENT.public


def test_the_directory_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / DIRECTORY).rename(tmp_path / "other")
    assert audit_round(folder, KEY, Beside(tmp_path / "other")).terms.directory_version == 1


def test_the_command_prints_a_table_or_one_document(kept: tuple[Path, np.ndarray]) -> None:
    folder, total = kept
    told = run("round", str(folder), "--key", KEY)
    assert told.returncode == 0, told.stderr
    shown = "".join(told.stdout.replace("│", "").split())
    assert words_sha256(total).hex() in shown and KEY in told.stdout
    assert LOST in told.stdout
    found = run("round", str(folder), "--key", KEY, "--json", "--threads", "2")
    document = json.loads(found.stdout)
    assert document["is_valid"] is True and document["sum_sha256"] == words_sha256(total).hex()
    assert (document["survivors"], document["dropped"]) == (SURVIVORS, [LOST])
    assert document["campaign_id"] == "7" and document["values"] == VALUES


def test_what_a_coordinator_keeps_can_be_audited(tmp_path: Path) -> None:
    """The folder is that of the coordinator's own code, its names included."""
    kept = (secure_sum.EVIDENCE, secure_sum.RESULT, secure_sum.DIRECTORY, secure_sum.AUTHORITY)
    assert kept == (EVIDENCE, RESULT, DIRECTORY, AUTHORITY)
    scene = Scene(tmp_path, 5, {3: Action.MASK})
    made = scene.run(LocalGrid(scene.apps)).mean()
    found = audit_round(tmp_path / "evidence" / SUM_ID, SCENE_AUTHORITY.public.short)
    assert found.verified.survivors == made.survivors
    assert found.total_weight == made.mean.total_weight


# What does not.


@pytest.mark.parametrize("name", USED)
def test_a_changed_bit_of_any_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    places = random.Random(name).sample(range(8 * len(data)), min(60, 8 * len(data)))
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(PeerError, match="expected"):
            audit_round(folder, KEY)


@pytest.mark.parametrize("name", USED)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    told = run("round", str(folder), "--key", KEY)
    assert told.returncode == 3 and name in told.stderr and "found no" in told.stderr


@pytest.mark.parametrize("name", [EVIDENCE, RESULT, DIRECTORY, AUTHORITY])
def test_a_wrong_file_is_refused(folder: Path, name: str) -> None:
    for wrong in (b"", b"not this", (folder / "edge-000.masked").read_bytes()):
        (folder / name).write_bytes(wrong)
        with pytest.raises(IntegrityError, match="expected"):
            audit_round(folder, KEY)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        audit_round(folder, KEY)


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4)])
def test_a_vector_of_another_length_is_refused(
    folder: Path, change: Callable[[bytes], bytes]
) -> None:
    path = folder / f"{SURVIVORS[1]}{MASKED}"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError, match=f"{SURVIVORS[1]}.*expected 36 bytes, 9 words"):
        audit_round(folder, KEY)


def test_two_vectors_exchanged_are_noticed(folder: Path) -> None:
    first, second = (folder / f"{name}{MASKED}" for name in SURVIVORS[:2])
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    told = run("round", str(folder), "--key", KEY)
    assert told.returncode == 4
    assert "edge-000: expected the masked vector that it signed" in told.stderr


def test_another_authority_is_refused(folder: Path) -> None:
    other = identity_of("edge-000").public
    told = run("round", str(folder), "--key", other.short)
    assert told.returncode == 4 and KEY in told.stderr and other.short in told.stderr
    (folder / AUTHORITY).write_text(other.raw.hex())  # nor does the folder decide who it is
    with pytest.raises(PeerError, match="signed by"):
        audit_round(folder, other.short)


@pytest.mark.parametrize("key", ["", "abcd", "zz" * 32])
def test_what_cannot_be_a_key_is_wrong_usage_of_it(folder: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="--key: expected 64 hex digits"):
        audit_round(folder, key)


def test_another_directory_of_the_same_authority_is_refused(folder: Path) -> None:
    (folder / DIRECTORY).write_bytes(directory(version=2))
    with pytest.raises(PeerError, match="the directory that the terms name, version 1"):
        audit_round(folder, KEY)


def test_a_lying_result_is_refused(folder: Path) -> None:
    """Signed by the coordinator itself, over the true transcript, with another sum."""
    stated = Result.from_bytes(envelope.from_bytes((folder / RESULT).read_bytes()).payload)
    lie = replace(stated, sum_sha256=bytes(32))
    (folder / RESULT).write_bytes(signed(lie, COORDINATOR))
    told = run("round", str(folder), "--key", KEY)
    assert told.returncode == 4 and "expected the published sum" in told.stderr


def test_evidence_of_an_unfinished_round_is_said_to_be_that(folder: Path) -> None:
    """Too few reveals, under a result that names this very transcript."""
    found = Evidence.from_bytes((folder / EVIDENCE).read_bytes())
    less = replace(found, reveals=found.reveals[:3])
    stated = Result.from_bytes(envelope.from_bytes((folder / RESULT).read_bytes()).payload)
    lie = replace(stated, transcript_root=less.transcript_root)
    (folder / EVIDENCE).write_bytes(less.to_bytes())
    (folder / RESULT).write_bytes(signed(lie, COORDINATOR))
    with pytest.raises(IntegrityError, match="not that of a finished round"):
        audit_round(folder, KEY)


def test_evidence_that_is_not_the_transcript_is_refused(folder: Path) -> None:
    """The same sum, the same signatures, one of them twice."""
    found = Evidence.from_bytes((folder / EVIDENCE).read_bytes())
    twice = replace(found, reveals=(*found.reveals, found.reveals[0]))
    (folder / EVIDENCE).write_bytes(twice.to_bytes())
    with pytest.raises(IntegrityError, match="the transcript that the result names"):
        audit_round(folder, KEY)


def test_a_late_vector_is_mentioned_and_not_used(folder: Path) -> None:
    (folder / f"{LOST}{MASKED}").write_bytes(bytes(36))
    assert audit_round(folder, KEY).unused == (LOST,)


def test_a_folder_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    told = run("round", str(tmp_path / "nowhere"), "--key", KEY)
    assert told.returncode == 3 and "evidence" in told.stderr


# The command.


def test_help_explains_itself_and_imports_nothing_heavy() -> None:
    shown = CliRunner().invoke(cli.app, ["round", "--help"])
    assert shown.exit_code == 0 and "Exit codes" in shown.output and "--key" in shown.output
    heavy = ("torch", "transformers", "triton", "flwr", "peft", "grpc", "numpy")
    code = (
        "import sys, offsite.audit.cli as cli\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_audit_never_needs_a_framework(kept: tuple[Path, np.ndarray]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom offsite.audit.round import audit_round\n"
        f"audit_round(Path({str(kept[0])!r}), {KEY!r})\n"
        "print([name for name in ('torch', 'transformers', 'flwr', 'grpc') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_refusal_is_an_error_of_ours(folder: Path) -> None:
    """Whatever bytes lie where the evidence should: no traceback."""
    data = (folder / EVIDENCE).read_bytes()
    for cut in range(0, len(data), len(data) // 30):
        (folder / EVIDENCE).write_bytes(data[:cut])
        with pytest.raises(OffsiteError):
            audit_round(folder, KEY)
