"""`coordinator emulate`: from the full model to a signed release.

(1) load the model and take its fingerprint
(2) compress the middle
(3) put the adapter into its slots
(4) write, sign, verify and publish the bundle
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.emulator.adapters.adapter import Adapter, AdapterSpec, make_adapter
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.report import describe, render
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.calibration import calibration_batches
from offsite.emulator.fidelity import measure_fidelity
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError

DAY_S = 24 * 3600
REPLACED = "replaced by a new release"


def emulate_release(root: Path, overrides: Sequence[str], terminal: Terminal) -> None:
    """Builds the release that the next campaign uses."""
    with open_workspace(root, overrides, exclusive=True) as workspace:
        _end_campaign_of_old_release(workspace, terminal)
        config = workspace.config
        # (1) The model, frozen; its fingerprint is that of the stored weights.
        model = load_base_model(config.model.path)
        tokenizer = load_tokenizer(config.model.path)
        base_fingerprint = fingerprint(model)
        # (2) The middle.
        emulator = _compress(config, model, terminal)
        # (3) The slots.
        spec = AdapterSpec(
            config.adapter.kind, config.adapter.rank, config.adapter.alpha, config.campaign.seed
        )
        adapter = make_adapter(spec, emulator.layer_map)
        tensors = untouched(adapter, emulator.model)
        # (4) The bundle.
        facts = _facts(workspace, base_fingerprint, measure_fidelity(model, emulator.model))
        contents = Contents(
            emulator.model, emulator.model.config, emulator.layer_map, spec, tensors, tokenizer
        )
        with terminal.progress("writing the release") as report:
            write_bundle(
                workspace.state.bundle, contents, facts, workspace.keys.coordinator, report
            )
        signer = workspace.keys.coordinator.public
        bundle = open_bundle(workspace.state.bundle, signer, time.time())
        document = describe(bundle, time.time(), signer)
        terminal.result(render(document), document)


def untouched(adapter: Adapter, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's first values, which leave the model as it is."""
    adapter.attach(model)
    try:
        return adapter.extract(model)
    finally:
        adapter.detach(model)


def _end_campaign_of_old_release(workspace: Workspace, terminal: Terminal) -> None:
    """A campaign that has a closed round is worth keeping; one without is given up."""
    campaigns = workspace.store.campaigns
    row = campaigns.current()
    if row is None or row.state in (CampaignState.ENDED, CampaignState.FAILED):
        return
    if campaigns.last_closed(row.campaign_id) is not None:
        raise ConfigError(
            f"campaign {row.campaign_id} is under way with the present release; let "
            "`coordinator serve` end it, or use another state folder"
        )
    campaigns.set_state(row.campaign_id, CampaignState.FAILED, time.time(), REPLACED)
    terminal.note(f"campaign {row.campaign_id} had no round yet and is given up: {REPLACED}")


def _compress(config: CoordinatorConfig, model: PreTrainedModel, terminal: Terminal) -> Emulator:
    section = config.emulator
    calibration: Sequence[torch.Tensor] = ()
    if section.method is MethodName.WIDTH_PRUNE and section.ratio < 1:
        if section.calibration is None:
            raise ConfigError(
                "emulator.calibration: width_prune looks at activations; name a file of public "
                "text (.txt or .jsonl)"
            )
        calibration = calibration_batches(
            [section.calibration],
            load_tokenizer(config.model.path),
            total_tokens=section.calibration_tokens,
        )
    placement = Placement(section.bottom, section.top)
    with terminal.progress("compressing the middle") as report:
        return build_emulator(model, placement, section.method, section.ratio, calibration, report)


def _facts(
    workspace: Workspace, base_fingerprint: str, fidelity: dict[str, int | float]
) -> ReleaseFacts:
    config = workspace.config
    now = int(time.time())
    return ReleaseFacts(
        project=config.campaign.name,
        release_version=_next_version(workspace),
        created_unix_s=now,
        expires_unix_s=now + config.emulator.release_days * DAY_S,
        base_model=config.model.name,
        base_fingerprint=base_fingerprint,
        method=config.emulator.method.value,
        ratio=config.emulator.ratio,
        provenance={"fidelity": {**fidelity}},
    )


def _next_version(workspace: Workspace) -> int:
    """One more than the release before; edges refuse to go back."""
    if not workspace.state.bundle.exists():
        return 1
    from offsite.emulator.bundle.manifest import MANIFEST_NAME, Manifest
    from offsite.secure.envelope import from_bytes

    envelope = from_bytes((workspace.state.bundle / MANIFEST_NAME).read_bytes())
    return Manifest.from_bytes(envelope.payload).facts.release_version + 1


def release_of(workspace: Workspace) -> Bundle:
    """The present release, verified as an edge would.

    Raises:
        ConfigError: there is none.
    """
    if not workspace.state.bundle.exists():
        raise ConfigError(f"no release in {workspace.state.root}; run `coordinator emulate` first")
    return open_bundle(workspace.state.bundle, workspace.keys.coordinator.public, time.time())
