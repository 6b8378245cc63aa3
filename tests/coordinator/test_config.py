"""Settings of the coordinator: every value that would fail later is refused at once."""

import math
from pathlib import Path

import pytest

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.workspace import absolute_paths
from offsite.coordinator.workspace_campaign import settings_of
from offsite.emulator.settings import load_settings, render_toml
from offsite.secure.aggregation.keystream import Generator
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
        "emulator.spread=-1",
        "emulator.gradient_lambda=-1",
        "emulator.gradient_lambda=nan",
        "emulator.harmoniser_rank=0",
        "emulator.distil_steps=-1",
        "emulator.distil_tokens_per_step=31",
        "leak.text_tokens=0",
        "leak.questions=-1",
        "leak.tune_steps=0",
        "leak.heal_steps=-1",
        "leak.heal_tokens_per_step=31",
        "leak.heal_rank=0",
        "leak.heal_learning_rate=0",
        "leak.heal_learning_rate=2",
        "leak.max_zero_shot=-0.1",
        "leak.max_verbatim=nan",
        "leak.max_tuned=0.5",
        "leak.max_kept=0.5",
        "search.methods=",
        "search.ratios=0.5,1.5",
        "search.packings=int8,int8",
        "search.placements=[]",
        "search.max_bundle_bytes=-1",
        "search.compute_s=0",
        "adapter.rank=0",
        "adapter.rank=4097",
        "adapter.alpha=0",
        "campaign.name=",
        "campaign.min_clients=901",
        "campaign.min_replies=6",
        "campaign.min_replies=1",
        "campaign.cohorts=0",
        "campaign.cohorts=2",
        "campaign.phase_s=0",
        "campaign.phase_s=nan",
        "campaign.full_weight=0",
        "campaign.clip_norm=-1",
        "campaign.clip_norm=inf",
        "campaign.coordinate_bound=0",
        "campaign.coordinate_bound=10001",
        "campaign.rounds=0",
        "campaign.patience=-1",
        "campaign.deadline_s=inf",
        "campaign.deadline_s=nan",
        "campaign.deadline_s=0",
        "campaign.seed=-1",
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
    [
        "adapter.rank=4096",
        "leak.max_zero_shot=0",
        "leak.max_healed=",
        "server.listen=[::]:0",
        "server.listen=0.0.0.0:7443",
        "campaign.seed=0",
    ],
)
def test_what_works_is_allowed(override: str) -> None:
    load_settings(CoordinatorConfig, None, [override])


def test_how_sums_are_made_reaches_the_campaign() -> None:
    given = {"clip_norm": "0.5", "full_weight": "12", "keystream": "aes256_ctr", "phase_s": "9"}
    overrides = [f"campaign.{key}={value}" for key, value in given.items()]
    sums = settings_of(load_settings(CoordinatorConfig, None, overrides)).sums
    assert (sums.norm_bound, sums.full_weight, sums.phase_s) == (0.5, 12, 9.0)
    assert sums.generator is Generator.AES256_CTR
    assert settings_of(CoordinatorConfig()).sums == SumSettings()
    assert SumSettings().norm_bound == math.inf


def test_cohorts_of_at_least_min_replies_are_allowed() -> None:
    given = ["campaign.cohorts=3", "campaign.min_clients=15"]
    assert settings_of(load_settings(CoordinatorConfig, None, given)).sums.cohorts == 3


def test_all_problems_of_all_sections_are_reported_together() -> None:
    wrong = ["campaign.rounds=0", "campaign.seed=-1", "gate.limit=-1", "gate.batch_tokens=0"]
    with pytest.raises(ConfigError) as caught:
        load_settings(CoordinatorConfig, None, wrong)
    for key in ("rounds", "seed", "limit", "batch_tokens"):
        assert f"{key}: expected" in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ('[{name = "main", method = "gradient", ratio = 0.3}]', "not main"),
        ('[{name = "A b", method = "gradient", ratio = 0.3}]', "table 1.* name"),
        ('[{name = "a", method = "gradient", ratio = 0.0}]', "ratio: expected a share"),
        ('[{name = "a", method = "magic", ratio = 0.3}]', "table 1.method: expected one of"),
        ('[{name = "a", method = "gradient"}]', "ratio"),
        (
            "[" + ", ".join(2 * ['{name = "a", method = "gradient", ratio = 0.3}']) + "]",
            "every name once",
        ),
    ],
)
def test_a_variant_that_no_release_could_have_is_refused(tables: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(CoordinatorConfig, None, [f"emulator.variants={tables}"])


def test_lora_on_compressed_blocks_needs_a_lora() -> None:
    middle = "emulator.middle_lora=true"
    with pytest.raises(ConfigError, match=r"set adapter\.kind to lora"):
        load_settings(CoordinatorConfig, None, [middle])
    assert load_settings(
        CoordinatorConfig, None, [middle, "adapter.kind=lora"]
    ).emulator.middle_lora


def test_what_init_writes_reads_back_with_variants_and_placements(tmp_path: Path) -> None:
    tables = '[{name = "small", method = "gradient", ratio = 0.3, packing = "nf4"}]'
    config = load_settings(CoordinatorConfig, None, [f"emulator.variants={tables}"])
    path = tmp_path / "coordinator.toml"
    config = absolute_paths(config)
    path.write_text(render_toml(config))
    assert load_settings(CoordinatorConfig, path) == config
    assert (
        "[[emulator.variants]]" in path.read_text() and "[[search.placements]]" in path.read_text()
    )
