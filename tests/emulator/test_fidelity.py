"""The fidelity report: what is the same shows as the same, and what is not does not."""

import json
from pathlib import Path

import pytest
import torch
from tests.emulator.exams import Setting, make_setting

from offsite.emulator import fidelity
from offsite.emulator.build import Emulator
from offsite.emulator.fidelity import BaseFacts, Fidelity, measure_base, measure_fidelity
from offsite.emulator.hidden_states import read_states
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

TOKENS = 512


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder: Path = tmp_path_factory.mktemp("setting")
    return make_setting(folder)


@pytest.fixture(scope="module")
def facts(setting: Setting) -> BaseFacts:
    return measure_base(setting.base, setting.text, setting.questions, setting.tokenizer, TOKENS)


def measured(setting: Setting, facts: BaseFacts, emulator: Emulator) -> Fidelity:
    text, questions, tokenizer = setting.text, setting.questions, setting.tokenizer
    return measure_fidelity(facts, emulator, text, questions, tokenizer, TOKENS)


def test_an_emulator_that_keeps_everything_is_the_full_model(
    setting: Setting, facts: BaseFacts
) -> None:
    found = measured(setting, facts, setting.emulator(1.0))
    assert found.emulator == found.base
    assert found.verbatim.share == 1.0
    assert found.verbatim.middle == found.verbatim.middle_of
    assert [depth.block for depth in found.hidden_error] == list(range(7))
    assert all(depth.error == 0 for depth in found.hidden_error)
    assert found.perplexity == found.base_perplexity
    assert found.scores == facts.scores


def test_a_compressed_one_is_not(setting: Setting, facts: BaseFacts) -> None:
    found = measured(setting, facts, setting.emulator(0.5))
    errors = {depth.block: depth.error for depth in found.hidden_error}
    assert errors[0] == errors[1] == 0  # embedding and bottom slot are the full model's
    assert 0 < errors[2] < errors[5]
    assert found.emulator.parameters < found.base.parameters
    assert found.perplexity is not None and found.base_perplexity is not None
    assert found.perplexity.nats > found.base_perplexity.nats
    document = found.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    share = found.emulator.parameters / found.base.parameters
    assert document["share_of_parameters"] == round(share, 4)
    assert document["shipped_bytes"] == found.emulator.bytes


def test_depths_of_dropped_blocks_are_left_out(setting: Setting, facts: BaseFacts) -> None:
    emulator = setting.emulator(0.5, MethodName.UNIFORM_DROP)
    found = measured(setting, facts, emulator)
    assert [depth.block for depth in found.hidden_error] == [*emulator.layer_map.kept, 6]


def test_an_error_is_seen_at_its_depth_and_behind_it(setting: Setting, facts: BaseFacts) -> None:
    emulator = setting.emulator(1.0)
    emulator.model.model.layers[3].mlp.down_proj.weight.mul_(2)
    errors = [depth.error for depth in measured(setting, facts, emulator).hidden_error]
    assert errors[:4] == [0, 0, 0, 0]
    assert all(error > 0 for error in errors[4:])


def test_pruned_channels_are_verbatim_and_rounded_ones_are_not(
    setting: Setting, facts: BaseFacts
) -> None:
    emulator = setting.emulator(0.5)
    middle = [emulator.model.model.layers[i] for i in emulator.layer_map.middle]
    shipped = sum(p.numel() for block in middle for p in block.parameters())
    found = measured(setting, facts, emulator).verbatim
    assert found.middle == shipped  # whole rows and columns: every number is the full model's
    assert found.middle_of == sum(facts.block_parameters[1:5])
    assert found.slots == facts.block_parameters[0] + facts.block_parameters[5]
    for block in middle:
        for parameter in block.mlp.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    rounded = measured(setting, facts, emulator).verbatim
    assert rounded.slots == found.slots
    attention = [block.self_attn for block in middle]
    norms = [block.input_layernorm for block in middle]
    norms += [block.post_attention_layernorm for block in middle]
    kept = sum(p.numel() for m in (*attention, *norms) for p in m.parameters())
    assert rounded.middle == kept


def test_what_was_not_measured_is_null(setting: Setting) -> None:
    facts = measure_base(setting.base, (), (), setting.tokenizer, TOKENS)
    found = measure_fidelity(facts, setting.emulator(0.5), (), (), setting.tokenizer, TOKENS)
    document = found.to_json()
    assert document["hidden_error"] == []
    for name in ("base_perplexity", "emulator_perplexity", "base_accuracy", "emulator_accuracy"):
        assert document[name] is None


def test_other_questions_than_the_full_models_are_refused(
    setting: Setting, facts: BaseFacts
) -> None:
    with pytest.raises(ConfigError, match="on which the full model was measured"):
        measure_fidelity(
            facts,
            setting.emulator(0.5),
            setting.text,
            setting.questions[1:],
            setting.tokenizer,
            TOKENS,
        )


def test_hidden_states_are_compared_on_as_many_tokens_as_announced(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are as small as calibration wants them; one would be too few tokens."""
    monkeypatch.setattr(fidelity, "HIDDEN_TOKENS", 6 * 24)
    text = (*setting.text, torch.zeros(2, 12, dtype=torch.int64))  # the last of another width
    for batches, rows in ((text, 6), (text[1:], 4), (text[:1], 4)):
        facts = measure_base(setting.base, batches, (), setting.tokenizer, TOKENS)
        assert {states.shape[:2] for states in facts.hidden} == {(rows, 24)}
    facts = measure_base(setting.base, text, (), setting.tokenizer, TOKENS)
    whole = torch.cat(setting.text)[:6]
    assert torch.equal(facts.hidden[3], read_states(setting.base, whole)[3])
    emulator = setting.emulator(1.0)
    found = measure_fidelity(facts, emulator, text, (), setting.tokenizer, TOKENS)
    assert all(depth.error == 0 for depth in found.hidden_error)


def test_the_models_are_left_as_they_were(setting: Setting, facts: BaseFacts) -> None:
    emulator = setting.emulator(0.5)
    before = {name: value.clone() for name, value in emulator.model.state_dict().items()}
    measured(setting, facts, emulator)
    assert all(torch.equal(before[n], v) for n, v in emulator.model.state_dict().items())
    assert not emulator.model.model.layers[0]._forward_pre_hooks


def test_the_states_are_those_that_the_model_tells_itself(setting: Setting) -> None:
    ids = setting.text[0]
    found = read_states(setting.base, ids)
    with torch.no_grad():
        told = setting.base(input_ids=ids, output_hidden_states=True).hidden_states
        last = setting.base.model.norm(found[-1])
    assert len(found) == len(told)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[:-1], told, strict=False))
    torch.testing.assert_close(last, told[-1])
