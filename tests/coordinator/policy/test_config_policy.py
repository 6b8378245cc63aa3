"""`[policy]`: what would fail later is refused at once, and what is set reaches the campaign."""

import pytest

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.policy.eligibility import Eligibility
from offsite.coordinator.policy.sampling import Sample
from offsite.coordinator.policy.schedule import Schedule, Window
from offsite.coordinator.policy.settings import PolicySettings
from offsite.coordinator.workspace_campaign import settings_of
from offsite.emulator.settings import load_settings, render_toml
from offsite.secure.errors import ConfigError


@pytest.mark.parametrize(
    "override",
    [
        "policy.sample_share=0",
        "policy.sample_share=1.1",
        "policy.sample_share=nan",
        "policy.sample_clients=-1",
        "policy.min_cohort=256",
        "policy.least_examples=-1",
        "policy.least_memory_mib=-1",
        "policy.least_version=new",
        "policy.interval_s=-1",
        "policy.interval_s=nan",
        "policy.windows=22:00",
        "policy.windows=22:00-05:00,24:00-05:00",
        "policy.least_gain=-0.1",
    ],
)
def test_a_value_that_would_fail_later_is_refused_by_name(override: str) -> None:
    key = override.partition("=")[0].partition(".")[2]
    with pytest.raises(ConfigError, match=rf"\[policy\] .*{key}"):
        load_settings(CoordinatorConfig, None, [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.min_cohort=6"], r"min_cohort: expected at most .* = 5, found 6"),
        (["policy.sample_clients=4"], r"sample_clients: .* at least 5 for each of 1 sums, found 4"),
        (
            ["campaign.min_clients=10", "campaign.cohorts=2", "policy.sample_clients=9"],
            r"sample_clients: .* at least 5 for each of 2 sums, found 9",
        ),
        (
            ["campaign.min_clients=20", "policy.min_cohort=8", "policy.sample_clients=7"],
            r"sample_clients: .* at least 8",
        ),
    ],
)
def test_a_policy_that_the_campaign_cannot_keep_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(CoordinatorConfig, None, overrides)


def test_what_is_set_reaches_the_campaign_and_the_file(tmp_path) -> None:
    overrides = [
        "policy.sample_share=0.5",
        "policy.sample_clients=7",
        "policy.min_cohort=5",
        "policy.least_examples=100",
        "policy.least_memory_mib=2048",
        "policy.least_version=0.1",
        "policy.interval_s=3600",
        "policy.windows=22:00-05:00",
        "policy.least_gain=0.01",
    ]
    config = load_settings(CoordinatorConfig, None, overrides)
    path = tmp_path / "coordinator.toml"
    path.write_text(render_toml(config))
    assert 'windows = ["22:00-05:00"]' in path.read_text()
    assert settings_of(load_settings(CoordinatorConfig, path)).policy == PolicySettings(
        Sample(0.5, 7),
        5,
        Eligibility(100, 2048, "0.1"),
        Schedule(3600.0, (Window(22 * 3600, 29 * 3600),)),
        0.01,
    )


def test_by_default_everybody_is_asked_at_once() -> None:
    assert settings_of(CoordinatorConfig()).policy == PolicySettings()
