"""Releases that a right key signed and that are well formed, and hostile all the same: found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.emulator.bundle.conftest import CREATED_UNIX_S, tiny_contents
from transformers import PreTrainedTokenizerFast

from offsite.emulator.adapters.adapter import (
    AdapterKind,
    AdapterSpec,
    TrainedFactors,
    make_adapter,
)
from offsite.emulator.bundle import suspects
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.files import EMULATOR_WEIGHTS
from offsite.emulator.bundle.first_adapter import DRAWN, NEUTRAL, SCALING, adapter_checks
from offsite.emulator.bundle.hostile import vocabulary_checks
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.report import examine, inspect_bundle
from offsite.emulator.bundle.statistics import Sampling, measure
from offsite.emulator.bundle.suspicion import HostileCheck, Suspect, Verdict
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.secure.errors import PeerError
from offsite.secure.identity import IdentityKey

Checks = dict[Suspect, HostileCheck]
Publish = Callable[[Contents], Bundle]


@pytest.fixture
def publish(facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path) -> Publish:
    def write(contents: Contents) -> Bundle:
        write_bundle(tmp_path / "bundle", contents, facts, signer)
        return open_bundle(tmp_path / "bundle", signer.public, CREATED_UNIX_S)

    return write


def adapter_verdicts(bundle: Bundle) -> Checks:
    return {check.suspect: check for check in adapter_checks(bundle)}


def vocabulary_verdicts(bundle: Bundle) -> Checks:
    statistics = measure(bundle.folder / EMULATOR_WEIGHTS, bundle.schema, Sampling(0))
    return {check.suspect: check for check in vocabulary_checks(statistics, bundle)}


def changed(contents: Contents, factor: str, change: Callable[[torch.Tensor], None]) -> Contents:
    """With one tensor of the adapter changed."""
    adapter = {name: tensor.clone() for name, tensor in contents.adapter.items()}
    change(next(tensor for name, tensor in adapter.items() if factor in name))
    return replace(contents, adapter=adapter)


def test_an_honest_adapter_is_clear(
    contents: Contents, whole_block_contents: Contents, publish: Publish
) -> None:
    lora = adapter_verdicts(publish(contents))
    assert {check.verdict for check in lora.values()} == {Verdict.CLEAR}
    whole = adapter_verdicts(publish(whole_block_contents))
    assert whole[NEUTRAL].verdict is Verdict.CLEAR
    assert whole[DRAWN].verdict is whole[SCALING].verdict is Verdict.NOT_JUDGED


def test_a_warmed_up_lora_is_found(contents: Contents, publish: Publish) -> None:
    """PreCurious: the adapter was trained on other data before it was released."""
    warm = changed(contents, "lora_B", lambda tensor: tensor.add_(1e-3))
    checks = adapter_verdicts(publish(warm))
    assert checks[NEUTRAL].verdict is Verdict.FINDING and checks[NEUTRAL].places == 1
    assert "lora_B.weight is 0.001" in checks[NEUTRAL].warning


def test_a_lora_that_was_not_drawn_is_found(
    tokenizer: PreTrainedTokenizerFast, publish: Publish
) -> None:
    """Rows of A that single out a direction, while B is 0 as it should be."""
    contents = tiny_contents(tokenizer, AdapterKind.LORA, TrainedFactors.AB)
    assert adapter_verdicts(publish(contents))[DRAWN].verdict is Verdict.CLEAR
    crafted = changed(contents, "lora_A", lambda tensor: tensor.copy_(tensor[:1].expand_as(tensor)))
    checks = adapter_verdicts(publish(crafted))
    assert checks[NEUTRAL].verdict is Verdict.CLEAR
    assert checks[DRAWN].verdict is Verdict.FINDING
    other_seed = replace(contents, adapter_spec=replace(contents.adapter_spec, seed=4))
    assert adapter_verdicts(publish(other_seed))[DRAWN].places == len(contents.adapter) // 2


def test_a_that_does_not_train_cannot_be_crafted(contents: Contents, publish: Publish) -> None:
    """It is not in the release at all."""
    assert not any("lora_A" in name for name in publish(contents).adapter_schema)
    low = "bottom.0.mlp.up_proj.lora_A.weight"
    smuggled = replace(contents, adapter={**contents.adapter, low: torch.ones(2, 16)})
    bundle = publish(smuggled)
    adapter, model = make_adapter(smuggled.adapter_spec, smuggled.layer_map), smuggled.model
    adapter.attach(model)
    try:
        with pytest.raises(PeerError, match="lora_A"):
            adapter.load(model, bundle.load_adapter())
    finally:
        adapter.detach(model)


def test_an_absurd_scaling_is_found(contents: Contents, publish: Publish) -> None:
    spec = AdapterSpec(AdapterKind.LORA, rank=2, alpha=512, seed=3)
    checks = adapter_verdicts(publish(replace(contents, adapter_spec=spec)))
    assert checks[SCALING].verdict is Verdict.FINDING
    assert "alpha/rank is 256" in checks[SCALING].warning


def test_blocks_that_are_not_the_emulators_own_are_found(
    whole_block_contents: Contents, publish: Publish
) -> None:
    warm = changed(whole_block_contents, "up_proj", lambda tensor: tensor.mul_(1.01))
    check = adapter_verdicts(publish(warm))[NEUTRAL]
    assert check.verdict is Verdict.FINDING
    assert "bottom.0.mlp.up_proj.weight for one" in check.warning


def test_blocks_of_another_place_are_found(
    whole_block_contents: Contents, publish: Publish
) -> None:
    """A schema may say that a slot starts with the values of another block of the same shape."""
    bundle = publish(whole_block_contents)
    shared = dict(bundle.schema.shared)
    name = "bottom.0.mlp.up_proj.weight"
    shared[name] = shared[name].replace(".0.", ".1.")
    moved = replace(bundle, schema=replace(bundle.schema, shared=shared))
    assert adapter_verdicts(moved)[NEUTRAL].verdict is Verdict.FINDING


def test_an_honest_vocabulary_is_clear(contents: Contents, publish: Publish) -> None:
    checks = vocabulary_verdicts(publish(contents))
    assert {check.verdict for check in checks.values()} == {Verdict.CLEAR}


@pytest.mark.parametrize(
    ("attack", "suspect"),
    [
        (lambda rows: rows[17].mul_(50), suspects.VOCABULARY),
        (lambda rows: rows[100:200].copy_(rows[:1].expand(100, -1)), suspects.VOCABULARY_REPEATS),
    ],
)
def test_a_hostile_vocabulary_is_found(
    attack: Callable[[torch.Tensor], None],
    suspect: Suspect,
    tokenizer: PreTrainedTokenizerFast,
    publish: Publish,
) -> None:
    contents = tiny_contents(tokenizer, AdapterKind.LORA)
    attack(contents.model.get_parameter("model.embed_tokens.weight").detach())
    assert vocabulary_verdicts(publish(contents))[suspect].verdict is Verdict.FINDING


def test_tokens_without_an_embedding_are_found(contents: Contents, publish: Publish) -> None:
    bundle = publish(contents)
    small = replace(bundle, config={**bundle.config, "vocab_size": 250})
    check = vocabulary_verdicts(small)[suspects.TOKENS]
    assert check.verdict is Verdict.FINDING
    assert "tokens have no row among 250" in check.warning


def test_findings_are_warnings_of_an_accepted_release(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    warm = changed(contents, "lora_B", lambda tensor: tensor.add_(1e-3))
    write_bundle(tmp_path / "b", warm, facts, signer)
    inspection = inspect_bundle(tmp_path / "b", signer.public, CREATED_UNIX_S)
    assert inspection.bundle is not None
    document = examine(inspection.bundle, inspection.description, Sampling(0))
    assert document["accepted"] is True
    warnings = document["warnings"]
    assert isinstance(warnings, list)
    assert any(str(text).startswith("first adapter is neutral: the largest") for text in warnings)
