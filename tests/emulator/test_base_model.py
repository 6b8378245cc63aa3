"""Loading a full model from a folder, and telling it from any other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_emulator_of_a_loaded_model_computes_as_it(
    family: str, dtype: torch.dtype, make_model: MakeModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """`from_pretrained` and our own instantiation set up the same buffers and attention."""
    make_model(family, dtype).save_pretrained(tmp_path)
    base = load_base_model(tmp_path)
    assert base.dtype == dtype
    assert not base.training and not any(p.requires_grad for p in base.parameters())
    emulator = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 1.0).model
    with torch.inference_mode():
        assert torch.equal(emulator(tokens).logits, base(tokens).logits)


def test_fingerprint_is_that_of_the_weights(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("llama-tied")
    model.save_pretrained(tmp_path)
    found = fingerprint(model)
    assert len(found) == 64
    assert fingerprint(tmp_path) == fingerprint(load_base_model(tmp_path)) == found
    assert fingerprint(load_base_model(tmp_path, torch.bfloat16)) != found
    weight = model.model.layers[3].mlp.up_proj.weight
    original = weight[0, 0].clone()
    weight[0, 0] += 1e-3
    assert fingerprint(model) != found
    weight[0, 0] = original
    assert fingerprint(model) == found


def test_fingerprint_depends_on_names(make_model: MakeModel) -> None:
    model = make_model("llama")
    found = fingerprint(model)
    mlp = model.model.layers[0].mlp
    mlp.up_projection = mlp.up_proj  # the same place in the order of names
    del mlp.up_proj
    assert fingerprint(model) != found


def test_pickled_weights_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no \\*\\.safetensors"):
        load_base_model(tmp_path)


def test_remote_code_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="auto_map"):
        load_base_model(tmp_path)


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"model_type": "nope"}'])
def test_folder_that_is_no_model_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError):
        load_base_model(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_damaged_weights_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_base_model(tmp_path)
