"""`coordinator init`: a state folder with keys and commented settings."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.keys import create_keys
from offsite.coordinator.state import StateFolder
from offsite.coordinator.workspace import absolute_paths
from offsite.emulator.durable import write_atomic
from offsite.emulator.settings import load_settings, render_toml
from offsite.emulator.terminal import Terminal

HEADER = """# Settings of this coordinator. Paths are relative to this file. Any of them can be overridden
# for one command with `--set SECTION.KEY=VALUE`. An unknown key is an error.

"""


def init_state(root: Path, overrides: Sequence[str], terminal: Terminal) -> None:
    """Makes the folder, or nothing when a setting is wrong."""
    config = absolute_paths(load_settings(CoordinatorConfig, None, overrides))
    existed = root.exists()
    try:
        with StateFolder.create(root) as state:
            keys = create_keys(state, time.time())
            write_atomic(state.config, (HEADER + render_toml(config)).encode())
    except OSError:
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise
    text = (
        f"{root}: keys and {state.config.name} written\n"
        f"directory key {keys.authority.public.short}, "
        f"coordinator key {keys.coordinator.public.short}\n"
        f"next: look at {state.config}, then `coordinator emulate --state {root}`"
    )
    terminal.result(
        text,
        {
            "state": str(root),
            "directory_key": keys.authority.public.fingerprint.hex(),
            "coordinator_key": keys.coordinator.public.fingerprint.hex(),
        },
    )
