"""Structure that a schema and a layer map from the other side may not ask for."""

from collections.abc import Callable, Mapping

import pytest
import torch
from tests.emulator.forms import FORMS, Form, planned
from transformers import AutoModelForCausalLM, Lfm2Config, PreTrainedModel, StableLmConfig

from offsite.emulator.build import build_emulator
from offsite.emulator.instantiate import config_from_json, instantiate, skeleton
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.schema import TensorSpec, spec_of
from offsite.emulator.weights import named_weights
from offsite.secure.errors import PeerError

MakeModel = Callable[..., PreTrainedModel]
Schema = dict[str, TensorSpec]
Q = "model.layers.1.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"
MAP = "harmonisers.1"


def released(base: PreTrainedModel, form: Form) -> tuple[dict, Schema, tuple[int, ...]]:
    """Config, schema and kept blocks of a good emulator of that form."""
    with planned(form):
        emulator = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    schema = {name: spec_of(tensor) for name, tensor in named_weights(emulator.model).items()}
    return dict(emulator.model.config.to_dict()), schema, emulator.layer_map.kept


def f32(*shape: int) -> TensorSpec:
    return TensorSpec("F32", shape)


def refused(
    base: PreTrainedModel, form: Form, change: Mapping[str, TensorSpec | None], message: str
) -> None:
    config, schema, kept = released(base, form)
    assert instantiate(config, schema, torch.float32, kept)
    for name, spec in change.items():
        schema.pop(name, None)
        if spec is not None:
            schema[name] = spec
    with pytest.raises(PeerError, match=message):
        instantiate(config, schema, torch.float32, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q}.down.weight": f32(33, 32), f"{Q}.up.weight": f32(32, 33)}, "rank 33"),
        ({f"{Q}.down.weight": f32(0, 32), f"{Q}.up.weight": f32(32, 0)}, "rank 0"),
        ({f"{UP}.down.weight": f32(33, 32), f"{UP}.up.weight": f32(64, 33)}, "rank 33"),
        ({f"{UP}.down.weight": f32(2**39, 2**39), f"{UP}.up.weight": f32(9, 2**39)}, "rank"),
        ({f"{Q}.up.weight": f32(32, 6)}, rf"{Q}\.up\.weight: shape \[32, 6\]"),
        ({f"{Q}.up.weight": f32(48, 5)}, rf"{Q}\.up\.weight: shape \[48, 5\]"),
        ({f"{Q}.down.weight": f32(5, 48)}, rf"{Q}\.down\.weight: shape \[5, 48\]"),
        ({f"{UP}.down.weight": f32(5, 48)}, r"layers\.1: its MLP .*\(48, 64\)"),
        ({f"{UP}.up.weight": f32(48, 5)}, r"layers\.1: its MLP .*\(32, 48\)"),
        ({f"{Q}.up.weight": None}, f"{Q}"),
        ({f"{Q}.down.weight": None}, f"{Q}"),
        ({f"{Q}.down.weight": f32(5, 32, 1)}, f"{Q}"),
        ({f"{Q}.weight": f32(32, 32)}, rf"{Q}\.\w+\.weight: the schema has it"),  # twice
        ({f"{Q}.up.bias": f32(32)}, rf"{Q}\.up\.bias"),
        ({f"{Q}.bias": f32(32)}, rf"{Q}\.bias"),
        ({"lm_head.down.weight": f32(2, 32), "lm_head.up.weight": f32(96, 2)}, "lm_head"),
        (
            {
                "lm_head.weight": None,
                "lm_head.down.weight": f32(2, 32),
                "lm_head.up.weight": f32(96, 2),
            },
            "lm_head",
        ),
    ],
)
def test_factors_that_do_not_fit(
    change: Mapping[str, TensorSpec | None], message: str, make_model: MakeModel
) -> None:
    refused(make_model("llama"), FORMS["factored"], change, message)


@pytest.mark.parametrize("form", ["harmonised", "factored"])
def test_an_mlp_wider_than_the_config_says(form: str, make_model: MakeModel) -> None:
    """Consistent in itself: nothing but the config says how wide it may be."""
    mlp = "model.layers.1.mlp"
    wide: dict[str, TensorSpec | None]
    if form == "harmonised":  # its blocks are plain
        wide = {f"{mlp}.{name}.weight": f32(65, 32) for name in ("gate_proj", "up_proj")}
        wide[f"{mlp}.down_proj.weight"] = f32(32, 65)
    else:
        wide = {f"{mlp}.{name}.up.weight": f32(65, 5) for name in ("gate_proj", "up_proj")}
        wide[f"{mlp}.down_proj.down.weight"] = f32(5, 65)
    refused(make_model("llama"), FORMS[form], wide, r"layers\.1: its MLP .*\(32, 65\).*\(32, 64\)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harmonisers.3.down.weight": f32(3, 32), "harmonisers.3.up.weight": f32(32, 3)}, "3"),
        ({"harmonisers.01.down.weight": f32(3, 32)}, r"harmonisers\.01"),
        ({"harmonisers.-1.down.weight": f32(3, 32)}, r"harmonisers\.-1"),
        ({"harmonisers.99999999.down.weight": f32(3, 32)}, r"harmonisers\.99999999"),
        ({"harmonisers.0.down.weight": f32(3, 32)}, r"harmonisers\.0\.up\.weight"),
        ({"harmonisers.0.up.weight": f32(32, 3)}, r"harmonisers\.0\.down\.weight"),
        ({f"{MAP}.down.weight": f32(33, 33), f"{MAP}.up.weight": f32(33, 33)}, "rank 33"),
        ({f"{MAP}.down.weight": f32(0, 32)}, "rank 0"),
        ({f"{MAP}.down.weight": f32(3, 31)}, r"harmonisers\.1\.down\.weight: shape"),
        ({f"{MAP}.up.weight": f32(3, 32)}, r"harmonisers\.1\.up\.weight: shape"),
        ({f"{MAP}.up.weight": f32()}, "harmoniser"),
        ({f"{MAP}.down.bias": f32(3)}, r"harmonisers\.1\.down\.bias"),
        ({f"{MAP}.gate.weight": f32(3, 3)}, r"harmonisers\.1\.gate"),
        ({"harmonisers.weight": f32(3, 3)}, r"harmonisers\.weight"),
        ({"model.harmonisers.1.up.weight": f32(32, 3)}, r"model\.harmonisers"),
    ],
)
def test_maps_that_do_not_fit(
    change: Mapping[str, TensorSpec | None], message: str, make_model: MakeModel
) -> None:
    refused(make_model("llama"), FORMS["harmonised"], change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # the repeated block is stored once, under the name of the first
        ({"model.layers.2.mlp.up_proj.weight": f32(64, 32)}, r"layers\.2\.mlp\.up_proj\.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"layers\.1\.mlp\.up_proj\.weight"),
        ({"model.layers.1.self_attn.q_proj.weight": f32(16, 32)}, r"layers\.1\.self_attn\.q_proj"),
    ],
)
def test_repeats_that_do_not_fit(
    change: Mapping[str, TensorSpec | None], message: str, make_model: MakeModel
) -> None:
    refused(make_model("llama"), FORMS["shared"], change, message)


def test_a_repeat_of_another_kind_is_refused() -> None:
    """A family whose blocks differ by the config: convolution here, attention there."""
    config = Lfm2Config(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, block_auto_adjust_ff_dim=False,
        layer_types=["conv", "conv", "full_attention", "conv"], pad_token_id=0,
    )  # fmt: skip
    plain = dict(config.to_dict())
    model = _meta_model(plain)
    schema = {name: spec_of(tensor) for name, tensor in named_weights(model).items()}
    assert skeleton(config_from_json(plain), schema, torch.float32)
    for kept, gone, fits in (((0, 1, 2, 2), 3, False), ((0, 0, 2, 3), 1, True)):
        shared = {n: s for n, s in schema.items() if not n.startswith(f"model.layers.{gone}.")}
        if fits:
            assert instantiate(plain, shared, torch.float32, kept)
            continue
        with pytest.raises(PeerError, match="block 3 repeats block 2, but the config gives"):
            instantiate(plain, shared, torch.float32, kept)


def _meta_model(config: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_from_json(config), dtype=torch.float32)


def test_a_map_of_another_depth_is_refused(make_model: MakeModel) -> None:
    config, schema, kept = released(make_model("llama"), FORMS["shared"])
    for wrong in ((), kept[:-1], (*kept, 5), (0, 1, 2, 3, 4)):
        with pytest.raises(PeerError, match=r"in the layer map|tensor model\.layers"):
            instantiate(config, schema, torch.float32, wrong)
    deep = config | {"num_hidden_layers": 10**9}
    for wrong in ((), kept):
        with pytest.raises(PeerError, match="blocks, but"):
            instantiate(deep, schema, torch.float32, wrong)


def stablelm(**changes: object) -> tuple[dict[str, object], Schema]:
    """A family with one norm for every head, and the schema of the model that changes nothing."""
    config = StableLmConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, qk_layernorm=True, pad_token_id=0,
    )  # fmt: skip
    plain = dict(config.to_dict())
    model = _meta_model(plain)
    return plain | changes, {name: spec_of(t) for name, t in named_weights(model).items()}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every module that is registered anywhere."""
    made: list[object] = []
    add = torch.nn.Module.add_module

    def counted(self: torch.nn.Module, name: str, module: torch.nn.Module | None) -> None:
        made.append(name)
        add(self, name, module)

    monkeypatch.setattr(torch.nn.Module, "add_module", counted)
    return made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 1024, "num_key_value_heads": 1024}, "1024, but .* 96 wide"),
        ({"num_key_value_heads": 1024}, "num_key_value_heads 1024"),
        ({"hidden_size": 1 << 16}, "hidden_size 65536, which no tensor"),
    ],
)
def test_sizes_that_no_tensor_has_are_refused_before_a_module_is_made(
    changes: dict[str, object], message: str, built: list[object]
) -> None:
    config, schema = stablelm()
    assert instantiate(config, schema, torch.float32)
    built.clear()
    config |= changes
    with pytest.raises(PeerError, match=message):
        instantiate(config, schema, torch.float32)
    assert not built


def test_a_module_for_every_head_needs_tensors_for_them(built: list[object]) -> None:
    """One wide tensor lets the sizes pass; the modules are counted while they are made."""
    config, schema = stablelm(
        hidden_size=1 << 14, num_attention_heads=1 << 12, num_key_value_heads=1 << 12
    )
    schema["model.embed_tokens.weight"] = f32(96, 1 << 14)
    built.clear()
    with pytest.raises(PeerError, match=r"more than \d+ modules for 4 blocks and \d+ tensors"):
        instantiate(config, schema, torch.float32)
    assert len(built) < 4000
