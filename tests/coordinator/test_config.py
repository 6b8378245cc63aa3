"""Settings of the coordinator: every value that would fail later is refused at once."""

import pytest

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.workspace_campaign import settings_of
from offsite.emulator.settings import load_settings
from offsite.secure.errors import ConfigError


@pytest.mark.parametrize(
    "override",
    [
        "model.name=",
        "emulator.ratio=0",
        "emulator.bottom=-1",
        "emulator.calibration_tokens=0",
        "emulator.release_days=0",
        "emulator.release_days=99999",
        "adapter.rank=0",
        "adapter.rank=4097",
        "adapter.alpha=0",
        "campaign.name=",
        "campaign.min_clients=901",
        "campaign.min_replies=3",
        "campaign.rounds=0",
        "campaign.patience=-1",
        "campaign.deadline_s=inf",
        "campaign.deadline_s=nan",
        "campaign.deadline_s=0",
        "campaign.server_learning_rate=0",
        "campaign.server_learning_rate=inf",
        "campaign.seed=-1",
        "campaign.max_examples=0",
        "campaign.max_examples=1000000001",
        "gate.limit=-1",
        "gate.tolerance=nan",
        "gate.batch_tokens=0",
        "server.listen=7443",
        "server.listen=",
        "server.listen=host:65536",
        "server.advertise=host",
    ],
)
def test_a_value_that_would_fail_later_is_refused_by_name(override: str) -> None:
    section, _, key = override.partition("=")[0].partition(".")
    with pytest.raises(ConfigError, match=rf"\[{section}\] .*{key}"):
        load_settings(CoordinatorConfig, None, [override])


@pytest.mark.parametrize(
    "override",
    ["adapter.rank=4096", "server.listen=[::]:0", "server.listen=0.0.0.0:7443", "campaign.seed=0"],
)
def test_what_works_is_allowed(override: str) -> None:
    load_settings(CoordinatorConfig, None, [override])


def test_the_most_examples_that_a_client_may_claim_reach_the_campaign() -> None:
    config = load_settings(CoordinatorConfig, None, ["campaign.max_examples=123"])
    assert settings_of(config).max_examples == 123


def test_all_problems_of_all_sections_are_reported_together() -> None:
    wrong = ["campaign.rounds=0", "campaign.seed=-1", "gate.limit=-1", "gate.batch_tokens=0"]
    with pytest.raises(ConfigError) as caught:
        load_settings(CoordinatorConfig, None, wrong)
    for key in ("rounds", "seed", "limit", "batch_tokens"):
        assert f"{key}: expected" in str(caught.value)
