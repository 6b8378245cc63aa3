"""The present release of a coordinator, read back from its own state folder.

Notable: a release expires for the edges, not for its owner. What is fetched from now on must be
current (`current_release`); what was tuned with it may be evaluated and exported for ever
(`stored_release`). Either way everything else is verified as an edge would.
"""

import time

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.workspace import Workspace
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import Manifest
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.durable import undo_half_exchange
from offsite.secure.errors import ConfigError, ExpiredError


def current_release(workspace: Workspace) -> Bundle:
    """The release, if edges would take it now.

    Raises:
        ConfigError: there is none, or it has expired.
    """
    try:
        return _open(workspace, time.time())
    except ExpiredError as error:
        raise ConfigError(f"the release has expired; run `coordinator emulate` ({error})") from None


def stored_release(workspace: Workspace) -> Bundle:
    """The release, also after its expiry: verified as of the moment it was made.

    Raises:
        ConfigError: there is none.
    """
    undo_half_exchange(workspace.state.bundle)
    stated = stated_manifest(workspace.state.bundle)
    return _open(workspace, 0.0 if stated is None else stated.facts.created_unix_s)


def settings_unlike(config: CoordinatorConfig, manifest: Manifest) -> list[str]:
    """The settings that shape a release and differ from those it was made with."""
    slots = [slot.name.partition(".")[0] for slot in manifest.layer_map.slots]
    pairs = {
        "adapter.kind": (config.adapter.kind, manifest.adapter.kind),
        "adapter.rank": (config.adapter.rank, manifest.adapter.rank),
        "adapter.alpha": (config.adapter.alpha, manifest.adapter.alpha),
        "emulator.method": (config.emulator.method.value, manifest.facts.method),
        "emulator.ratio": (config.emulator.ratio, manifest.facts.ratio),
        "emulator.bottom": (config.emulator.bottom, slots.count("bottom")),
        "emulator.top": (config.emulator.top, slots.count("top")),
    }
    return [name for name, (wanted, made) in pairs.items() if wanted != made]


def _open(workspace: Workspace, now_unix_s: float) -> Bundle:
    """Under the lock of the state folder, so nobody else is in the middle of an exchange."""
    folder = workspace.state.bundle
    undo_half_exchange(folder)
    if not folder.exists():
        raise ConfigError(f"no release in {workspace.state.root}; run `coordinator emulate` first")
    return open_bundle(folder, workspace.keys.coordinator.public, now_unix_s)
