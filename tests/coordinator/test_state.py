"""The coordinator's state folder: one owner at a time, and files that are whole or absent."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from offsite.coordinator.keys import create_keys, load_keys
from offsite.coordinator.state import StateFolder
from offsite.secure.errors import ConfigError, MachineError, StateLockedError

HOLD_LOCK = """
import sys
from pathlib import Path
from offsite.coordinator.state import StateFolder
with StateFolder.open(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_coordinator_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        StateFolder.create(tmp_path / "state") as first,
        pytest.raises(StateLockedError, match="another process uses"),
    ):
        StateFolder.open(first.root)
    StateFolder.open(first.root).close()


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    StateFolder.create(tmp_path / "state").close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StateLockedError):
            StateFolder.open(tmp_path / "state")
        StateFolder.open(tmp_path / "state", exclusive=False).close()
        holder.kill()
    StateFolder.open(tmp_path / "state").close()


def test_a_folder_is_initialised_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="coordinator init"):
        StateFolder.open(tmp_path)
    StateFolder.create(tmp_path / "state").close()
    with pytest.raises(ConfigError, match="already holds a coordinator"):
        StateFolder.create(tmp_path / "state")


def test_keys_come_back_as_they_were_made(tmp_path: Path) -> None:
    with StateFolder.create(tmp_path / "state") as state:
        made = create_keys(state, 1_800_000_000.0)
        assert load_keys(state) == made
        secrets = (made.ca.key_pem, made.authority.seed, made.bootstrap_seed)
        assert not any(repr(secret)[2:20] in repr(made) for secret in secrets)
        (state.keys / "authority.key").unlink()
        with pytest.raises(ConfigError, match=r"authority\.key is missing"):
            load_keys(state)


def test_a_folder_that_cannot_be_written_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot write"):
        StateFolder.create(tmp_path / "file" / "state")


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "state"
    StateFolder.create(root).close()
    for folder in (root, root / "keys"):
        folder.chmod(0o775)
        with pytest.raises(ConfigError, match=r"nobody else can write, found mode 775.*chmod 700"):
            StateFolder.open(root)
        folder.chmod(0o755)
        StateFolder.open(root).close()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_was_there_becomes_the_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    with StateFolder.create(tmp_path / "there") as state:
        assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else can write"):
        StateFolder.create(tmp_path / "open")
