"""Shared, factored, narrow and harmonised blocks: built, stored, rebuilt, tuned and refused."""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from tests.emulator.forms import FORMS, Form, Planned, planned
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.blocks import find_blocks, in_attention
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.factored import FactoredLinear
from offsite.emulator.instantiate import instantiate
from offsite.emulator.layer_map import LayerMap, Placement, first_positions
from offsite.emulator.linear import features, linear_layers, weight_out_in
from offsite.emulator.methods.method import MethodName
from offsite.emulator.schema import spec_of
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SOME_FAMILIES = pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2", "opt"])
"""For what holds by the forms and not by the family; every family passes the other tests."""
SANDWICH = Placement(1, 1)
EVERYWHERE = Placement(1, 1, spread=1)
MIDDLE_LORA = Placement(1, 1, middle_lora=True)
WHOLE = AdapterSpec(AdapterKind.WHOLE_BLOCK)
LORA = AdapterSpec(AdapterKind.LORA, rank=4, alpha=8, seed=5)


def built(base: PreTrainedModel, form: Form, placement: Placement = SANDWICH) -> Emulator:
    with planned(form):
        return build_emulator(base, placement, MethodName.UNIFORM_DROP, 0.5)


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens).logits


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named_weights(model).items()}


def changed(before: Mapping[str, torch.Tensor], model: nn.Module) -> set[str]:
    after = named_weights(model)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def rebuilt(emulator: Emulator) -> PreTrainedModel:
    """As an edge makes it: from config, schema, layer map and tensors by name."""
    weights = named_weights(emulator.model)
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    dtype = next(emulator.model.parameters()).dtype
    model = instantiate(emulator.model.config.to_dict(), schema, dtype, emulator.layer_map.kept)
    targets = named_weights(model)
    assert targets.keys() == weights.keys()
    for name, target in targets.items():
        target.copy_(weights[name])
    return model


def tuned(adapter: Adapter, model: PreTrainedModel, tokens: torch.Tensor) -> dict:
    """What one large step of training leaves in the adapter."""
    adapter.attach(model)
    if adapter.spec.kind is AdapterKind.LORA:  # with B at 0, A has no gradient
        moved = {n: t + 0.05 * ("lora_B" in n) for n, t in adapter.extract(model).items()}
        adapter.load(model, moved)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in adapter.trainable(model).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        parameter.data.sub_(0.1 * parameter.grad)
        parameter.grad = None
    return adapter.extract(model)


# Building and rebuilding.


@pytest.mark.parametrize(
    ("placement", "dtype"),
    [(SANDWICH, torch.float32), (EVERYWHERE, torch.bfloat16)],
    ids=["sandwich", "spread"],
)
@EVERY_FORM
def test_rebuilt_from_config_schema_and_map(
    family: str,
    form: Form,
    placement: Placement,
    dtype: torch.dtype,
    make_model: MakeModel,
    tokens: torch.Tensor,
) -> None:
    emulator = built(make_model(family, dtype), form, placement)
    assert torch.equal(logits(rebuilt(emulator), tokens), logits(emulator.model, tokens))
    assert {p.dtype for p in emulator.model.parameters()} == {dtype}


def test_factored_layers_compute_their_product(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """The reference is the full model with the products in the place of its weights."""
    base = make_model(family)
    emulator = built(base, FORMS["factored"]).model
    for full, small in list(
        zip(find_blocks(base).modules, find_blocks(emulator).modules, strict=True)
    )[1:-1]:
        layers = dict(linear_layers(small))
        assert layers.keys() == dict(linear_layers(full)).keys()
        for name, layer in linear_layers(full):
            assert isinstance(layers[name], FactoredLinear)
            assert features(layers[name]) == features(layer)
            weight_out_in(layer).copy_(weight_out_in(layers[name]))
    torch.testing.assert_close(logits(emulator, tokens), logits(base, tokens))


def test_shared_blocks_are_stored_once_and_compute_each_time(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = built(base, FORMS["shared"])
    assert emulator.layer_map.kept == (0, 1, 1, 3, 4)
    blocks = find_blocks(emulator.model)
    names = [name for name in named_weights(emulator.model) if name.startswith(blocks.path)]
    assert {name.removeprefix(blocks.path).split(".")[1] for name in names} == {"0", "1", "3", "4"}
    assert blocks.modules[1] is not blocks.modules[2]
    reference = make_model("", config=emulator.model.config)
    weights = named_weights(base)
    for name, target in named_weights(reference).items():
        path = name.replace(f"{blocks.path}.2.", f"{blocks.path}.1.")
        target.copy_(weights[path])
    torch.testing.assert_close(logits(emulator.model, tokens), logits(reference, tokens))


def test_harmonisers_map_what_their_blocks_receive(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    form = FORMS["harmonised"]
    emulator = built(base, form)
    plain = built(base, Form(pick=form.pick)).model
    assert emulator.layer_map.kept == (0, 2, 4)
    maps = Planned(form, (1, 2, 3), 32).harmonisers
    for position, index in ((1, 2), (2, 4)):

        def before(_: nn.Module, args: tuple, kwargs: dict, at: int = index) -> object:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            mapped = hidden + (hidden @ maps[at].down.T) @ maps[at].up.T
            return (mapped, *args[1:]), kwargs

        find_blocks(plain).modules[position].register_forward_pre_hook(before, with_kwargs=True)
    torch.testing.assert_close(logits(emulator.model, tokens), logits(plain, tokens))
    names = set(named_weights(emulator.model)) - set(named_weights(plain))
    assert names == {
        f"harmonisers.{p}.{factor}.weight" for p in (1, 2) for factor in ("down", "up")
    }


@EVERY_FORM
def test_decoding_with_a_cache_computes_the_same(
    family: str, form: Form, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Shared blocks keep caches of their own, and maps are applied to every new token."""
    model = built(make_model(family), form).model
    with torch.inference_mode():
        first = model(tokens[:, :9], use_cache=True)
        second = model(tokens[:, 9:], past_key_values=first.past_key_values, use_cache=True)
    together = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(together, logits(model, tokens), atol=1e-4, rtol=1e-4)


@SOME_FAMILIES
@EVERY_FORM
def test_gradient_checkpointing_computes_the_same_gradients(
    family: str, form: Form, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    emulator = built(make_model(family), form)
    adapter = make_adapter(WHOLE, emulator.layer_map)
    found = []
    for checkpointing in (False, True):
        model = rebuilt(emulator)
        adapter.attach(model)
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
            for module in model.modules():
                for name, value in list(vars(module).items()):
                    if isinstance(value, float) and ("drop" in name or name == "p"):
                        setattr(module, name, 0.0)
        model(tokens, labels=tokens).loss.backward()
        found.append({n: p.grad for n, p in adapter.trainable(model).items()})
    torch.testing.assert_close(*found)


@EVERY_FORM
def test_a_copy_of_an_emulator_is_a_model_of_its_own(
    form: Form, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = built(make_model("llama"), form).model
    before = logits(model, tokens)
    other = copy.deepcopy(model)
    assert named_weights(other).keys() == named_weights(model).keys()
    for tensor in named_weights(model).values():
        tensor.zero_()
    assert torch.equal(logits(other, tokens), before)


@SOME_FAMILIES
@EVERY_FORM
def test_the_full_model_is_left_alone(
    family: str, form: Form, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    before, output = copies(base), logits(base, tokens)
    emulator = built(base, form, EVERYWHERE).model
    for parameter in find_blocks(emulator).modules.parameters():
        parameter.fill_(9.0)
    assert not changed(before, base)
    assert torch.equal(logits(base, tokens), output)


@SOME_FAMILIES
@EVERY_FORM
def test_a_consumed_model_gives_the_same_emulator(
    family: str, form: Form, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    expected = built(make_model(family), form, EVERYWHERE)
    base, done = make_model(family), []
    with planned(form):
        emulator = build_emulator(
            base, EVERYWHERE, MethodName.UNIFORM_DROP, 0.5, report=lambda *p: done.append(p),
            consume=True,
        )  # fmt: skip
    assert emulator.layer_map == expected.layer_map
    assert not changed(copies(expected.model), emulator.model)
    assert torch.equal(logits(emulator.model, tokens), logits(expected.model, tokens))
    assert all(p.is_meta for p in find_blocks(base).modules.parameters())
    total = len(emulator.layer_map.kept)
    assert done == [(i, total) for i in range(1, total + 1)]


def test_progress_counts_calibration_and_blocks_as_one(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    done = []
    build_emulator(
        make_model("llama"), SANDWICH, MethodName.WIDTH_PRUNE, 0.7, [tokens[:1], tokens[1:]],
        lambda *p: done.append(p),
    )  # fmt: skip
    assert done == [(1, 4), (2, 4), (2, 4), (2, 4), (3, 4), (3, 4), (4, 4)]


# Slots: which model a map speaks of, spread slots, middle slots.


def test_slots_are_found_where_shared_blocks_moved_them(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """The emulator is as deep as the full model, yet a slot stands elsewhere in it."""
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=7, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    base = make_model("", config=config)
    form = Form(pick=lambda middle: (middle[0],) * 3 + (middle[-1],))
    emulator = built(base, form, EVERYWHERE)
    assert emulator.layer_map.kept == (0, 1, 1, 1, 3, 5, 6)
    for spec in (WHOLE, LORA):
        adapter = make_adapter(spec, emulator.layer_map)
        own, full = adapter.base_names(emulator.model), adapter.base_names(base)
        assert {n.split(".")[2] for k, n in own.items() if k.startswith("spread.0.")} == {"4"}
        assert {n.split(".")[2] for k, n in full.items() if k.startswith("spread.0.")} == {"3"}
        tensors = tuned(adapter, emulator.model, tokens)
        adapter.detach(emulator.model)
        before = copies(base)
        adapter.plug_in(base, tensors)
        assert {name.split(".")[2] for name in changed(before, base)} == {"0", "3", "6"}


@pytest.mark.parametrize("spec", [WHOLE, LORA], ids=["whole", "lora"])
@SOME_FAMILIES
@EVERY_FORM
def test_an_untouched_adapter_is_the_identity(
    family: str, form: Form, spec: AdapterSpec, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    before, output = copies(base), logits(base, tokens)
    emulator = built(base, form, EVERYWHERE)
    assert [slot.name for slot in emulator.layer_map.slots] == ["bottom.0", "spread.0", "top.0"]
    adapter = make_adapter(spec, emulator.layer_map)
    original = logits(emulator.model, tokens)
    adapter.attach(emulator.model)
    assert torch.equal(logits(emulator.model, tokens), original)
    tensors = adapter.extract(emulator.model)
    adapter.detach(emulator.model)
    assert torch.equal(logits(emulator.model, tokens), original)
    adapter.plug_in(base, tensors)
    assert not changed(before, base)
    assert torch.equal(logits(base, tokens), output)


@pytest.mark.parametrize("name", ["factored", "narrow", "narrow-factored"])
def test_lora_on_the_compressed_middle_comes_back_in_the_full_models_shapes(
    family: str, name: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = built(base, FORMS[name], MIDDLE_LORA)
    slots = [slot.name for slot in emulator.layer_map.slots]
    assert slots == ["bottom.0", "middle.1", "middle.2", "middle.3", "top.0"]
    assert emulator.layer_map.middle == (1, 2, 3)
    adapter = make_adapter(LORA, emulator.layer_map)
    assert adapter.specs(emulator.model) == adapter.specs(base)
    untouched, output = copies(base), logits(base, tokens)
    adapter.attach(emulator.model)
    adapter.plug_in(base, adapter.extract(emulator.model))
    assert not changed(untouched, base)
    tensors = tuned(adapter, emulator.model, tokens)
    adapter.attach(base)
    adapter.load(base, tensors)
    beside = logits(base, tokens)
    adapter.plug_in(base, tensors)
    torch.testing.assert_close(logits(base, tokens), beside, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(beside, output, atol=1e-3)
    blocks = find_blocks(base)
    expected = {
        f"{blocks.name_of(i)}.{path}.weight"
        for i, block in enumerate(blocks.modules)
        for path, _ in linear_layers(block)
        if i in (0, 4) or in_attention(block, path)
    }
    assert changed(untouched, base) == expected
    adapter.detach(emulator.model)
    assert any(isinstance(m, FactoredLinear) for m in emulator.model.modules()) == (
        name != "narrow"
    )


# Refusals, by name.


@pytest.mark.parametrize("name", ["shared", "harmonised", "all"])
def test_middle_lora_needs_every_block_once(name: str, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"uniform_drop: .*middle_lora .*drops or shares"):
        built(make_model("llama"), FORMS[name], MIDDLE_LORA)
    with pytest.raises(ConfigError, match=r"uniform_drop: .*middle_lora .*drops or shares"):
        build_emulator(make_model("llama"), MIDDLE_LORA, MethodName.UNIFORM_DROP, 0.5)


def test_whole_blocks_cannot_train_in_middle_slots(make_model: MakeModel) -> None:
    layer_map = LayerMap.of(MIDDLE_LORA, 5, (1, 2, 3))
    with pytest.raises(ConfigError, match="whole_block adapters cannot train middle slots"):
        make_adapter(WHOLE, layer_map)


@pytest.mark.parametrize("maps", [(3,), (1, 2), (7,)])
def test_a_map_needs_a_block_kept_once(maps: tuple[int, ...], make_model: MakeModel) -> None:
    form = Form(pick=lambda middle: (middle[0], *middle[:2]), maps=lambda _: maps)
    with pytest.raises(ConfigError, match=r"harmoniser before block \d: expected a block kept"):
        built(make_model("llama"), form)


def test_a_rank_that_saves_nothing_is_refused(make_model: MakeModel) -> None:
    def too_high(_: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del weights["self_attn.k_proj.weight"]  # (16, 32)
        down, up = torch.zeros(17, 32), torch.zeros(16, 17)
        return weights | {
            "self_attn.k_proj.down.weight": down, "self_attn.k_proj.up.weight": up,
        }  # fmt: skip

    with pytest.raises(ConfigError, match=r"k_proj.*rank 17, expected 1 to 16"):
        built(make_model("llama"), Form(change=too_high))


def test_a_block_that_is_no_part_of_the_middle_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="not all of"):
        built(make_model("llama"), Form(pick=lambda _: (0, 1)))


def test_first_positions() -> None:
    assert first_positions((0, 2, 2, 3, 3, 3, 5)) == (0, 1, 1, 3, 3, 3, 6)
    assert first_positions(()) == ()
