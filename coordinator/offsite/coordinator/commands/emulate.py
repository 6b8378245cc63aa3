"""`coordinator emulate`: from the full model to a signed release.

(1) check what can be checked at once: settings, and the campaign of the present release
(2) load the model and take its fingerprint
(3) compress the middle
(4) put the adapter into its slots
(5) write, sign, verify and publish the bundle
(6) give up the campaign of the release before

Rule: the earlier release and its campaign stay as they are until the new release is published.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.coordinator.campaign_record import closed_of, standing_of
from offsite.coordinator.config import CoordinatorConfig, EmulatorSection
from offsite.coordinator.tables.campaigns import CampaignRow, CampaignState
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.emulator.adapters.adapter import Adapter, AdapterSpec, make_adapter
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.report import describe, render
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.calibration import calibration_batches
from offsite.emulator.durable import undo_half_exchange
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.schema import TensorSpec
from offsite.emulator.shipped import measure_shipped
from offsite.emulator.terminal import Terminal
from offsite.secure import limits
from offsite.secure.errors import ConfigError

DAY_S = 24 * 3600
REPLACED = "replaced by a new release"
ADAPTER_BYTES = limits.ROUND_MESSAGE_BYTES - 16 * limits.MIB
"""What an adapter may take in an instruction or a reply, with room for what stands beside it."""
WIRE_BYTES = 4
"""Adapters travel in fp32."""


def emulate_release(
    root: Path, overrides: Sequence[str], replace: bool, terminal: Terminal
) -> None:
    """Builds the release that the next campaign uses.

    Raises:
        ConfigError: a setting is wrong; or, without `replace`, a campaign would be lost.
    """
    with open_workspace(root, overrides, exclusive=True) as workspace:
        # (1) What costs nothing to check.
        config = workspace.config
        undo_half_exchange(workspace.state.bundle)
        version = _next_version(workspace)
        if not replace:
            _check_nothing_is_lost(workspace)
        _check_calibration(config.emulator)
        # (2) The model, frozen; its fingerprint is that of the stored weights.
        model = load_base_model(config.model.path)
        tokenizer = load_tokenizer(config.model.path)
        base_fingerprint = fingerprint(model)
        # (3) The middle.
        emulator = _compress(config, model, tokenizer, terminal)
        # (4) The slots.
        contents = _fill_slots(config, emulator, tokenizer)
        # (5) The bundle.
        shipped = measure_shipped(model, emulator.model)
        facts = _facts(config, version, base_fingerprint, shipped)
        _publish(workspace, contents, facts, terminal)
        # (6) The campaign before.
        _give_up_campaign(workspace, terminal)
        _show(workspace, terminal)


def untouched(adapter: Adapter, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's first values, which leave the model as it is."""
    adapter.attach(model)
    try:
        return adapter.extract(model)
    finally:
        adapter.detach(model)


def check_travels(specs: Mapping[str, TensorSpec]) -> None:
    """That an adapter fits into one message of a round.

    Raises:
        ConfigError: it does not; says what makes it smaller.
    """
    needed = sum(WIRE_BYTES * math.prod(spec.shape) for spec in specs.values())
    if needed > ADAPTER_BYTES:
        raise ConfigError(
            f"expected an adapter of at most {ADAPTER_BYTES / 2**30:.2f} GiB, found "
            f"{needed / 2**30:.2f} GiB: set emulator.bottom and emulator.top to fewer slots, or "
            "adapter.kind to lora"
        )


def _check_nothing_is_lost(workspace: Workspace) -> None:
    """A result that could be exported, or closed rounds to go on from, need `--replace`."""
    row = workspace.store.campaigns.current()
    if row is None or row.release_sha256 != _stated_digest(workspace):
        return
    rounds = workspace.store.campaigns.rounds(row.campaign_id)
    if row.state is CampaignState.ENDED:
        if standing_of(rounds).may_release(workspace.config.gate.tolerance):
            raise ConfigError(
                f"campaign {row.campaign_id} has ended with a result that a new release makes "
                "unreachable: run `coordinator export` first, then this command with --replace"
            )
    elif closed_of(rounds):
        raise ConfigError(
            f"campaign {row.campaign_id} is under way with the present release; let `coordinator "
            "serve` end it, or give it up with --replace"
        )


def _check_calibration(section: EmulatorSection) -> None:
    """Before the model is loaded, which may take minutes."""
    if not _needs_calibration(section):
        return
    if section.calibration is None:
        raise ConfigError(
            "emulator.calibration: width_prune looks at activations; name a file of public "
            "text (.txt or .jsonl)"
        )
    if not section.calibration.is_file():
        raise ConfigError(
            f"emulator.calibration: expected a file, found none at {section.calibration}"
        )


def _needs_calibration(section: EmulatorSection) -> bool:
    return section.method is MethodName.WIDTH_PRUNE and section.ratio < 1


def _compress(
    config: CoordinatorConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terminal: Terminal,
) -> Emulator:
    section = config.emulator
    calibration: Sequence[torch.Tensor] = ()
    if _needs_calibration(section):
        assert section.calibration is not None  # `_check_calibration`
        calibration = calibration_batches(
            [section.calibration], tokenizer, total_tokens=section.calibration_tokens
        )
    placement = Placement(section.bottom, section.top)
    with terminal.progress("compressing the middle") as report:
        return build_emulator(model, placement, section.method, section.ratio, calibration, report)


def _fill_slots(
    config: CoordinatorConfig, emulator: Emulator, tokenizer: PreTrainedTokenizerBase
) -> Contents:
    section = config.adapter
    spec = AdapterSpec(section.kind, section.rank, section.alpha, config.campaign.seed)
    adapter = make_adapter(spec, emulator.layer_map)
    check_travels(adapter.specs(emulator.model))
    tensors = untouched(adapter, emulator.model)
    return Contents(
        emulator.model, emulator.model.config, emulator.layer_map, spec, tensors, tokenizer
    )


def _facts(
    config: CoordinatorConfig,
    version: int,
    base_fingerprint: str,
    shipped: Mapping[str, int | float],
) -> ReleaseFacts:
    now = int(time.time())
    return ReleaseFacts(
        project=config.campaign.name,
        release_version=version,
        created_unix_s=now,
        expires_unix_s=now + config.emulator.release_days * DAY_S,
        base_model=config.model.name,
        base_fingerprint=base_fingerprint,
        method=config.emulator.method.value,
        ratio=config.emulator.ratio,
        provenance={"shipped": {**shipped}},
    )


def _publish(
    workspace: Workspace, contents: Contents, facts: ReleaseFacts, terminal: Terminal
) -> None:
    with terminal.progress("writing the release") as report:
        write_bundle(workspace.state.bundle, contents, facts, workspace.keys.coordinator, report)


def _give_up_campaign(workspace: Workspace, terminal: Terminal) -> None:
    """Nobody can work on it any more: no edge gets its release, and its messages are withdrawn."""
    store = workspace.store
    row = store.campaigns.current()
    if row is None:
        return
    with store.transaction():
        store.messages.delete_run(row.campaign_id)
        if _is_under_way(row):
            store.campaigns.set_state(row.campaign_id, CampaignState.FAILED, time.time(), REPLACED)
    if _is_under_way(row):
        terminal.note(f"campaign {row.campaign_id} is given up: {REPLACED}")


def _is_under_way(row: CampaignRow) -> bool:
    return row.state in (CampaignState.WAITING, CampaignState.RUNNING)


def _show(workspace: Workspace, terminal: Terminal) -> None:
    signer = workspace.keys.coordinator.public
    bundle = open_bundle(workspace.state.bundle, signer, time.time())
    document = describe(bundle, time.time(), signer)
    terminal.result(render(document), document)


def _next_version(workspace: Workspace) -> int:
    """One more than the release before; edges refuse to go back."""
    stated = stated_manifest(workspace.state.bundle)
    return 1 if stated is None else stated.facts.release_version + 1


def _stated_digest(workspace: Workspace) -> bytes | None:
    """Of the present release, as campaigns name it."""
    stated = stated_manifest(workspace.state.bundle)
    return None if stated is None else hashlib.sha256(stated.to_bytes()).digest()
