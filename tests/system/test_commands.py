"""The smaller commands, and what a wrong word on the command line gets."""

import json
import stat
from pathlib import Path

from tests.system.programs import Owner, join, result, run, started


def test_a_token_can_be_written_to_a_file_that_only_its_owner_reads(
    owner: Owner, tmp_path: Path
) -> None:
    out = tmp_path / "a.token"
    invite = ("coordinator", "invite", "a", "--state", owner.state, "--address", owner.address)
    document = result(*invite, "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text().startswith("offsite1.")
    assert "token" not in document


def test_a_release_can_be_inspected_before_anything_trains(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    command = join(owner.token("a"), released / "a.jsonl", tmp_path / "a")
    with started(*owner.serve()) as coordinator:
        coordinator.read_until("serving release")
        document = result(*command, "--inspect-only")
        # A used token is refused to anybody else.
        stranger = run(
            "edge-client",
            "join",
            command[2],
            "--data",
            released / "b.jsonl",
            "--state",
            tmp_path / "stranger",
        )
        revoked = run("coordinator", "revoke", "a", "--reason", "left", "--state", owner.state)
        refused = run(*command, "--inspect-only")
    assert document["accepted"] is True
    assert list((tmp_path / "a" / "rounds").iterdir()) == []
    assert stranger.returncode == 4 and "used" in stranger.stderr
    assert revoked.returncode == 0, revoked.stderr
    assert refused.returncode == 4 and "revoked" in refused.stderr


def test_nothing_is_evaluated_or_exported_before_a_round(owner: Owner, tmp_path: Path) -> None:
    for verb in ("evaluate", "export"):
        done = run("coordinator", verb, "--state", owner.state)
        assert done.returncode == 3
        assert "coordinator serve" in done.stderr


def test_a_wrong_setting_is_named_with_those_that_exist(owner: Owner) -> None:
    done = run("coordinator", "serve", "--state", owner.state, "--set", "campaign.rouns=3")
    assert done.returncode == 3
    assert "campaign.rouns" in done.stderr and "rounds" in done.stderr


def test_a_wrong_flag_is_wrong_usage(owner: Owner) -> None:
    assert run("coordinator", "serve", "--stat", owner.state).returncode == 2


def test_a_malformed_row_is_reported_by_line_and_reason(
    owner: Owner, released: Path, tmp_path: Path
) -> None:
    rows = (released / "a.jsonl").read_text().splitlines()
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([rows[0], "{broken", json.dumps({"prompt": "x"}), *rows[1:]]))
    command = join(owner.token("a"), data, tmp_path / "a")
    with started(*owner.serve()) as coordinator:
        coordinator.read_until("serving release")
        done = run(*command, "--inspect-only")
    assert done.returncode == 0, done.stderr
    assert "2 unusable" in done.stderr
    assert "line 2:" in done.stderr and "line 3:" in done.stderr
