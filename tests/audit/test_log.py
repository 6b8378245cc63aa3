"""The log of results in an audit: the result stands in it, and it only grew since a head was kept."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.audit.rounds import ENROLMENT, write_round
from tests.audit.test_round import run
from tests.secure.aggregation.fleets import COORDINATOR, identity_of

from offsite.audit.log import HEAD, LOG, find_in_log
from offsite.audit.round import RESULT, Beside, audit_round
from offsite.secure.aggregation.result_log import head_of, log_bytes, read_log, sign_head
from offsite.secure.errors import ConfigError, IntegrityError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey

KEY = ENROLMENT.public.short
RESULTS = [b"first", b"second", b"third"]


def write_log(folder: Path, results: Sequence[bytes], key: IdentityKey = COORDINATOR) -> Path:
    (folder / LOG).write_bytes(log_bytes(results))
    (folder / HEAD).write_bytes(sign_head(head_of(results), key))
    return folder / LOG


def kept_head(folder: Path, results: Sequence[bytes]) -> Path:
    path = folder / "kept"
    path.write_bytes(sign_head(head_of(results), COORDINATOR))
    return path


def test_a_round_of_the_log_is_found_and_the_log_continues_the_kept_head(tmp_path: Path) -> None:
    folder = tmp_path / "7.1.1.0"
    folder.mkdir()
    write_round(folder)
    assert audit_round(folder, KEY).log is None
    result = (folder / RESULT).read_bytes()
    write_log(tmp_path, [*RESULTS, result])
    place = audit_round(folder, KEY).log  # the one in the folder above
    assert place is not None and (place.position, place.head.size, place.continues) == (3, 4, None)
    head = kept_head(tmp_path, RESULTS[:2])
    arguments = ("round", str(folder), "--key", KEY, "--log", str(tmp_path / LOG))
    told = json.loads(run(*arguments, "--head", str(head), "--json").stdout)["log"]
    assert (told["position"], told["size"], told["continues_size"]) == (3, 4, 2)
    shown = " ".join(run(*arguments, "--head", str(head)).stdout.replace("│", "").split())
    assert "result 4 of 4" in shown and "continues the head of 2" in shown


@pytest.mark.parametrize(
    "rewritten",
    [
        [b"other", *RESULTS[1:]],
        [RESULTS[1], RESULTS[0], RESULTS[2]],
        [*RESULTS[1:]],
        [*RESULTS[:2], b"new", RESULTS[2]],
    ],
)
def test_a_rewritten_log_is_refused(tmp_path: Path, rewritten: list[bytes]) -> None:
    """Signed anew by the coordinator itself."""
    log, head = write_log(tmp_path, rewritten), kept_head(tmp_path, RESULTS)
    find_in_log(log, RESULTS[2], COORDINATOR.public, None)  # alone it looks right
    with pytest.raises(IntegrityError, match="rewrote its log"):
        find_in_log(log, RESULTS[2], COORDINATOR.public, head)


def test_a_log_that_is_not_that_of_its_head_is_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path, RESULTS)
    log.write_bytes(log_bytes(RESULTS[:2]))
    with pytest.raises(IntegrityError, match="leads to the signed head"):
        find_in_log(log, RESULTS[0], COORDINATOR.public, None)
    write_log(tmp_path, RESULTS, identity_of("edge-000"))
    with pytest.raises(SignatureError):
        find_in_log(log, RESULTS[0], COORDINATOR.public, None)


def test_a_result_that_was_left_out_is_noticed(tmp_path: Path) -> None:
    log = write_log(tmp_path, RESULTS)
    with pytest.raises(IntegrityError, match="found it nowhere"):
        find_in_log(log, b"fourth", COORDINATOR.public, None)


def test_a_missing_log_or_head_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="coordinator's evidence"):
        find_in_log(tmp_path / LOG, b"", COORDINATOR.public, None)
    log = write_log(tmp_path, RESULTS)
    with pytest.raises(ConfigError, match="kept earlier"):
        find_in_log(log, RESULTS[0], COORDINATOR.public, tmp_path / "nowhere")


def test_no_changed_byte_of_log_or_head_passes(tmp_path: Path) -> None:
    log = write_log(tmp_path, RESULTS)
    for path in (log, log.with_name(HEAD)):
        data = path.read_bytes()
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(PeerError):
                find_in_log(log, RESULTS[1], COORDINATOR.public, None)
        path.write_bytes(data)
    assert read_log(log.read_bytes()) == RESULTS


def test_a_log_file_may_lie_elsewhere(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "round", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    write_round(folder)
    log = write_log(elsewhere, [(folder / RESULT).read_bytes()])
    assert audit_round(folder, KEY, Beside(log=log)).log is not None
