"""A strategy that cannot do what it promises with the sums at hand is refused when settings are read."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.strategies.fit import (
    ROBUST,
    chosen_of,
    fewest_cohorts,
    fewest_to_trim,
    refuse_hidden_updates,
)
from offsite.coordinator.workspace_campaign import settings_of
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.settings import load_settings, render_toml
from offsite.secure.errors import ConfigError


def read(*overrides: str) -> CoordinatorConfig:
    return load_settings(CoordinatorConfig, None, overrides)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("fedmedian", (), 3),
        ("fedtrimmedavg", (), 5),
        ("fedtrimmedavg", ("strategy.trim_share=0.3",), 4),
        ("krum", (), 5),
        ("krum", ("strategy.hostile_cohorts=3",), 9),
        ("multikrum", (), 5),
        ("multikrum", ("strategy.chosen_cohorts=4",), 7),
        ("bulyan", (), 7),
        ("bulyan", ("strategy.hostile_cohorts=2",), 11),
    ],
)
def test_the_number_of_cohorts_that_is_needed_is_said(
    name: str, options: tuple[str, ...], needed: int
) -> None:
    few = (f"strategy.name={name}", *options, f"campaign.cohorts={needed - 1}")
    cohorts = rf"campaign.cohorts: expected at least {needed} for strategy.name {name}\b.*"
    clients = rf"campaign.min_clients of at least {5 * needed}; found {needed - 1}: "
    with pytest.raises(ConfigError, match=cohorts + clients):
        read(*few, "campaign.min_clients=900")
    enough = (*few[:-1], f"campaign.cohorts={needed}")
    config = read(*enough, f"campaign.min_clients={5 * needed}")
    assert settings_of(config).strategy == config.strategy
    assert fewest_cohorts(config.strategy) == needed


def test_every_robust_strategy_needs_more_than_one_cohort() -> None:
    for name in StrategyName:
        if name in ROBUST:
            with pytest.raises(ConfigError, match="one mean per cohort"):
                read(f"strategy.name={name.value}")
        else:
            assert read(f"strategy.name={name.value}").campaign.cohorts == 1


@given(st.floats(1e-3, 0.5, exclude_max=True))
def test_the_fewest_to_trim_are_the_fewest(share: float) -> None:
    fewest = fewest_to_trim(share)
    assert int(share * fewest) == 1 and int(share * (fewest - 1)) == 0
    assert fewest > 2 * math.floor(share * fewest)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30))
def test_multikrum_never_averages_more_than_it_can_vouch_for(
    hostile: int, chosen: int, more: int
) -> None:
    section = StrategySection(
        StrategyName.MULTIKRUM, hostile_cohorts=hostile, chosen_cohorts=chosen
    )
    cohorts = fewest_cohorts(section) + more
    assert 1 <= chosen_of(section, cohorts) <= cohorts - hostile - 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("strategy", "strategy.name"),
        ("server_learning_rate", "strategy.server_learning_rate"),
    ],
)
def test_the_keys_of_old_name_the_new_ones(old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "coordinator.toml"
    value = '"fedadam"' if old == "strategy" else "0.001"
    file.write_text(f"[campaign]\n{old} = {value}\n")
    with pytest.raises(ConfigError, match=re.escape(f"campaign.{old} is called {new} now")):
        load_settings(CoordinatorConfig, file)


@pytest.mark.parametrize("kind", [k for k in LoraAggregation if k is not LoraAggregation.AVERAGE])
def test_what_needs_single_updates_is_refused_for_real_edges(kind: LoraAggregation) -> None:
    config = read(f"strategy.lora_aggregation={kind.value}")
    with pytest.raises(ConfigError, match=f"{kind.value} needs both factors of every single"):
        settings_of(config)
    refuse_hidden_updates(StrategySection())


@pytest.mark.parametrize(
    "override",
    [
        "name=fedsgd",
        "server_learning_rate=0",
        "server_learning_rate=inf",
        "server_momentum=1",
        "beta_1=-0.1",
        "beta_2=1",
        "tau=0",
        "proximal_mu=0",
        "proximal_mu=nan",
        "trim_share=0.5",
        "trim_share=0",
        "hostile_cohorts=-1",
        "lora_aggregation=sum",
    ],
)
def test_a_wrong_setting_is_named(override: str) -> None:
    adam = "strategy.name=fedadam"
    overrides = (
        [adam, f"strategy.{override}"] if "name" not in override else [f"strategy.{override}"]
    )
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        read(*overrides)


def test_a_rate_that_a_strategy_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="fedavg has none"):
        read("strategy.server_learning_rate=0.1")
    assert read("strategy.name=fedavgm").strategy.server_rate == 1.0
    assert read("strategy.name=fedyogi").strategy.server_rate == 1e-3
    given_rate = read("strategy.name=fedadam", "strategy.server_learning_rate=0.01")
    assert given_rate.strategy.server_rate == 0.01


def test_the_written_settings_are_read_back(tmp_path: Path) -> None:
    config = read(
        "strategy.name=bulyan", "campaign.cohorts=7", "campaign.min_clients=35", "adapter.trains=ab"
    )
    file = tmp_path / "coordinator.toml"
    file.write_text(render_toml(config))
    found = load_settings(CoordinatorConfig, file)
    assert (found.strategy, found.adapter) == (config.strategy, config.adapter)
