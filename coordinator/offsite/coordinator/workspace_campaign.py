"""The campaign of an opened workspace, as its settings, release and rows have it."""

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign_parts import CampaignSettings, Release
from offsite.coordinator.campaign_record import CampaignRecord, CampaignResult
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.stored_tensors import first_adapter
from offsite.coordinator.strategies.fit import refuse_hidden_updates
from offsite.coordinator.workspace import Workspace
from offsite.emulator.bundle.bundle import Bundle
from offsite.secure.errors import ConfigError


def record_of(workspace: Workspace, bundle: Bundle) -> CampaignRecord:
    """What is written down of the campaign with this release."""
    return CampaignRecord(
        settings=settings_of(workspace.config),
        release=Release(bundle.digest, bundle.adapter_schema, first_adapter(bundle)),
        store=workspace.store.campaigns,
        files=AdapterFiles(workspace.state.root),
    )


def settings_of(config: CoordinatorConfig) -> CampaignSettings:
    """The campaign's part of the settings.

    Raises:
        ConfigError: they ask for what only a simulation can do.
    """
    refuse_hidden_updates(config.strategy)
    section = config.campaign
    return CampaignSettings(
        tuning=config.tuning,
        strategy=config.strategy,
        min_clients=section.min_clients,
        min_replies=section.min_replies,
        rounds=section.rounds,
        patience=section.patience,
        tolerance=config.gate.tolerance,
        deadline_s=section.deadline_s,
        sums=SumSettings(
            cohorts=section.cohorts,
            coordinate_bound=section.coordinate_bound,
            clip_norm=section.clip_norm,
            full_weight=section.full_weight,
            generator=section.keystream.generator,
            phase_s=section.phase_s,
        ),
        seed=section.seed,
        policy=config.policy.settings,
        leave_s=config.leases.leave_s,
    )


def result_of(workspace: Workspace, bundle: Bundle) -> CampaignResult:
    """The best adapter so far.

    Raises:
        ConfigError: no round of this release is closed yet.
    """
    row = workspace.store.campaigns.current()
    record = record_of(workspace, bundle)
    if row is None or row.release_sha256 != bundle.digest or not record.closed(row):
        raise ConfigError(
            "no round of this release is closed yet; run `coordinator serve` and let edges join"
        )
    return record.result(row)
