"""Publishing a release: what goes into the bundle, and the end of the campaign before.

Rule: the earlier release stays in use until the new one is whole, verified and renamed; the earlier
campaign is given up after that.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from offsite.coordinator.building import placement_of
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.measuring import Measured, budget_of, spec_of
from offsite.coordinator.owners_model import OwnersModel
from offsite.coordinator.release import built_json
from offsite.coordinator.shipped import middle_share
from offsite.coordinator.tables.campaigns import CampaignRow, CampaignState
from offsite.coordinator.workspace import Workspace
from offsite.emulator.adapters.adapter import make_adapter
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import Emulator
from offsite.emulator.bundle.manifest import MAIN, ReleaseFacts
from offsite.emulator.bundle.writer import Contents, Variant, write_bundle
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.rounds.plan import ComputeDtype
from offsite.emulator.schema import TensorSpec
from offsite.emulator.terminal import Terminal
from offsite.emulator.tuning_memory import TuningLoad
from offsite.secure import limits
from offsite.secure.errors import ConfigError

DAY_S = 24 * 3600
REPLACED = "replaced by a new release"
ADAPTER_BYTES = limits.ROUND_MESSAGE_BYTES - 16 * limits.MIB
"""What an adapter may take in an instruction or a reply, with room for what stands beside it."""
WIRE_BYTES = 4
"""Adapters travel in fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """An emulator, how it was built, and what was measured of it."""

    section: EmulatorSection
    emulator: Emulator
    measured: Measured

    @property
    def middle_share(self) -> float:
        """Share of the middle's parameters that ships, whatever ratio was asked for."""
        return middle_share(self.emulator, self.measured.fidelity.verbatim.middle_of)


def publish(
    workspace: Workspace,
    owner: OwnersModel,
    version: int,
    made: Mapping[str, Made],
    terminal: Terminal,
) -> None:
    """Write, sign, verify and publish what was measured and judged."""
    config, now = workspace.config, int(time.time())

    def facts(one: Made) -> ReleaseFacts:
        return ReleaseFacts(
            project=config.campaign.name,
            release_version=version,
            created_unix_s=now,
            expires_unix_s=now + config.emulator.release_days * DAY_S,
            base_model=config.model.name,
            base_fingerprint=owner.fingerprint,
            method=one.section.method.value,
            ratio=one.middle_share,
            provenance={
                "built": built_json(one.section, config.campaign.seed),
                "leak_budget": budget_of(config.leak).to_json(),
                **one.measured.to_json(),
            },
        )

    variants = (
        Variant(name, _contents(config, owner, one), facts(one))
        for name, one in made.items()
        if name != MAIN
    )
    with terminal.progress("writing the release") as report:
        write_bundle(
            workspace.state.bundle,
            _contents(config, owner, made[MAIN]),
            facts(made[MAIN]),
            workspace.keys.coordinator,
            report,
            variants=variants,
        )


def _contents(config: CoordinatorConfig, owner: OwnersModel, one: Made) -> Contents:
    emulator, spec, tuning = one.emulator, spec_of(config), config.tuning
    adapter = make_adapter(spec, emulator.layer_map)
    return Contents(
        emulator.model,
        emulator.model.config,
        emulator.layer_map,
        spec,
        untouched(adapter, emulator.model),
        owner.tokenizer,
        one.section.packing,
        TuningLoad(
            micro_batch_tokens=tuning.micro_batch_tokens,
            value_bytes=2 if tuning.dtype is ComputeDtype.BFLOAT16 else 4,
            gradient_checkpointing=tuning.gradient_checkpointing,
        ),
    )


def give_up_campaign(workspace: Workspace, terminal: Terminal) -> None:
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


def check_section_travels(
    config: CoordinatorConfig, section: EmulatorSection, base_model: PreTrainedModel
) -> None:
    """That the adapter of an emulator fits into a message, before the emulator is built.

    Raises:
        ConfigError: it does not, or this model has no such slots.
    """
    count = len(find_blocks(base_model).modules)
    placement = placement_of(section)
    layer_map = LayerMap.of(placement, count, placement.middle(count))
    check_travels(make_adapter(spec_of(config), layer_map).specs(base_model))


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
