"""The present release of a coordinator, read back from its own state folder.

Notable: a release expires for the edges, not for its owner. What is fetched from now on must be
current (`current_release`); what was tuned with it may be evaluated and exported for ever
(`stored_release`). Either way everything else is verified as an edge would.
"""

import time
from collections.abc import Mapping

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.search.candidates import settings_of
from offsite.coordinator.workspace import Workspace
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import Manifest
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.durable import undo_half_exchange
from offsite.emulator.layer_map import BOTTOM, MIDDLE, SPREAD, TOP
from offsite.emulator.strict_json import JsonObject
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
    section, adapter = config.emulator, config.adapter
    unlike = [
        name
        for name, wanted, made in (
            ("adapter.kind", adapter.kind, manifest.adapter.kind),
            ("adapter.rank", adapter.rank, manifest.adapter.rank),
            ("adapter.alpha", adapter.alpha, manifest.adapter.alpha),
            ("adapter.trains", adapter.trains, manifest.adapter.trains),
        )
        if wanted != made
    ]
    built = _built(manifest)
    wanted = settings_of(section)
    unlike += [f"emulator.{key}" for key in wanted if key in built and built[key] != wanted[key]]
    if variants_json(section) != built.get("variants", []):
        unlike.append("emulator.variants")
    return unlike


def built_json(section: EmulatorSection, seed: int) -> JsonObject:
    """How an emulator was built, as its provenance has it; that of the main one names variants."""
    variants = {"variants": variants_json(section)} if section.variants else {}
    return {**settings_of(section), **variants, "seed": seed}


def variants_json(section: EmulatorSection) -> list[JsonObject]:
    """What makes the variants what they are, in order."""
    return [
        {
            "name": variant.name,
            "method": variant.method.value,
            "ratio": variant.ratio,
            "packing": variant.packing.value,
        }
        for variant in section.variants
    ]


def _built(manifest: Manifest) -> Mapping[str, object]:
    """What the release says of how it was built; slots and packing as they are in it.

    The manifest's own ratio is what came of it, so the one that was asked for is the stated one.
    """
    kinds = [slot.name.partition(".")[0] for slot in manifest.layer_map.slots]
    stated = manifest.facts.provenance.get("built")
    return {
        "ratio": manifest.facts.ratio,
        **(stated if isinstance(stated, Mapping) else {}),
        "method": manifest.facts.method,
        "bottom": kinds.count(BOTTOM),
        "top": kinds.count(TOP),
        "spread": kinds.count(SPREAD),
        "middle_lora": MIDDLE in kinds,
        "packing": manifest.packing.value,
    }


def _open(workspace: Workspace, now_unix_s: float) -> Bundle:
    """Under the lock of the state folder, so nobody else is in the middle of an exchange."""
    folder = workspace.state.bundle
    undo_half_exchange(folder)
    if not folder.exists():
        raise ConfigError(f"no release in {workspace.state.root}; run `coordinator emulate` first")
    return open_bundle(folder, workspace.keys.coordinator.public, now_unix_s)
