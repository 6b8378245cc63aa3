"""`coordinator init`: a state folder with keys and commented settings."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from offsite.coordinator.addresses import check_reachable
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.keys import Keys, create_keys
from offsite.coordinator.state import StateFolder
from offsite.coordinator.workspace import absolute_paths
from offsite.emulator.durable import write_atomic
from offsite.emulator.settings import load_settings, render_toml
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError

HEADER = """# Settings of this coordinator. Paths are relative to this file. Any of them can be overridden
# for one command with `--set SECTION.KEY=VALUE`. An unknown key is an error.

"""


def init_state(root: Path, overrides: Sequence[str], terminal: Terminal) -> None:
    """Makes the folder, or nothing when a setting is wrong or something fails on the way."""
    config = absolute_paths(load_settings(CoordinatorConfig, None, overrides))
    _check_inputs(config)
    with _undone_on_failure(root), StateFolder.create(root) as state:
        keys = create_keys(state, time.time())
        write_atomic(state.config, (HEADER + render_toml(config)).encode())
    _hint_at_address(config, terminal)
    text = (
        f"{root}: keys and {state.config.name} written\n"
        f"directory key {keys.authority.public.short}, "
        f"coordinator key {keys.coordinator.public.short}\n"
        f"next: look at {state.config}, then `coordinator emulate --state {root}`"
    )
    terminal.result(text, _document(root, keys))


def _check_inputs(config: CoordinatorConfig) -> None:
    """That what the settings name is there; whether it can be used is found when it is read.

    Raises:
        ConfigError: naming everything that is missing.
    """
    problems = []
    if not (config.model.path / "config.json").is_file():
        problems.append(
            f"model.path: expected a Hugging Face model folder, found no {config.model.path}"
            "/config.json; name it with --model"
        )
    for key, path in (
        ("gate.questions", config.gate.questions),
        ("emulator.calibration", config.emulator.calibration),
        ("leak.text", config.leak.text),
        ("leak.task", config.leak.task),
    ):
        if path is not None and not path.is_file():
            problems.append(f"{key}: expected a file, found no {path}")
    if problems:
        raise ConfigError("; ".join(problems))


def _hint_at_address(config: CoordinatorConfig, terminal: Terminal) -> None:
    """Said now, because it stops `invite` later."""
    try:
        check_reachable(config.server.advertise or config.server.listen)
    except ConfigError as error:
        terminal.note(f"before you invite: {error}")


def _document(root: Path, keys: Keys) -> dict[str, object]:
    return {
        "state": str(root),
        "directory_key": keys.authority.public.fingerprint.hex(),
        "coordinator_key": keys.coordinator.public.fingerprint.hex(),
    }


@contextmanager
def _undone_on_failure(root: Path) -> Iterator[None]:
    """Whatever fails inside leaves the folder as it was, so that `init` can be run again."""
    existed, had_keys = root.exists(), (root / "keys").exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        elif not had_keys:
            shutil.rmtree(root / "keys", ignore_errors=True)
        raise
