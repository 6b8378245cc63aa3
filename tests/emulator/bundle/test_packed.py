"""A packed release: what was measured is what an edge loads, and what is stored is checked."""

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.emulator.bundle.test_reader import open_now, tensors_of
from tests.emulator.forms import FORMS, Form, planned
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.bundle import weights as weights_module
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.middle import packed_axes, roundtrip
from offsite.emulator.packing.packing import Packing
from offsite.emulator.schema import TensorFile, read_header, tensors_to_bytes
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError, IntegrityError, PeerError
from offsite.secure.identity import IdentityKey

MakeModel = Callable[..., PreTrainedModel]
Forge = Callable[..., Path]
PACKINGS = [Packing.INT8, Packing.NF4]
LORA = AdapterSpec(AdapterKind.LORA, rank=2, alpha=4)
WHOLE = AdapterSpec(AdapterKind.WHOLE_BLOCK)


def packed_contents(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    packing: Packing,
    form: Form | None = None,
    spec: AdapterSpec = LORA,
) -> Contents:
    with planned(form or Form()):
        emulator = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    roundtrip(emulator.model, emulator.layer_map, packing)
    adapter = make_adapter(spec, emulator.layer_map)
    adapter.attach(emulator.model)
    tensors = adapter.extract(emulator.model)
    adapter.detach(emulator.model)
    config = emulator.model.config
    return Contents(emulator.model, config, emulator.layer_map, spec, tensors, tokenizer, packing)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "form", "spec"),
    [
        ("llama", "narrow", LORA),
        ("llama-tied", "all", WHOLE),
        ("gpt2", "factored", LORA),
        ("phi3", "harmonised", WHOLE),
        ("bloom", "shared", LORA),
    ],
)
def test_what_was_measured_is_what_an_edge_loads(
    family: str,
    form: str,
    spec: AdapterSpec,
    dtype: torch.dtype,
    packing: Packing,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    base = make_model(family).to(dtype)
    contents = packed_contents(base, tokenizer, packing, FORMS[form], spec)
    manifest = write_bundle(tmp_path / "b", contents, facts, signer)
    assert manifest.packing is packing
    bundle = open_bundle(tmp_path / "b", signer.public, facts.created_unix_s)
    measured, loaded = (
        named_weights(model) for model in (contents.model, bundle.load_emulator(dtype))
    )
    assert loaded.keys() == measured.keys()
    for name, tensor in measured.items():
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8)), name
    adapter = bundle.load_adapter()
    assert all(torch.equal(adapter[name], contents.adapter[name]) for name in adapter)


@pytest.fixture
def packed_folder(
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: ReleaseFacts,
    signer: IdentityKey,
    bundle_folder: Path,
) -> Iterator[Path]:
    """The folder that `forge` changes, with an int8 release in it."""
    contents = packed_contents(make_model("llama"), tokenizer, Packing.INT8)
    write_bundle(bundle_folder, contents, facts, signer)
    yield bundle_folder


def test_equal_input_gives_equal_packed_bytes(
    packed_folder: Path,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    contents = packed_contents(make_model("llama"), tokenizer, Packing.INT8)
    write_bundle(tmp_path / "again", contents, facts, signer)
    for path in packed_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_file_holds_integers_and_scales(packed_folder: Path) -> None:
    header = read_header(packed_folder / "emulator.safetensors")
    schema = json.loads((packed_folder / "schema.json").read_bytes())
    assert schema["packed"] and set(schema["packed"].values()) == {1}
    for name in schema["packed"]:
        assert name not in header and schema["emulator"][name]["dtype"] == "F32"
        assert header[f"{name}.int8"].dtype == "I8"
        assert header[f"{name}.int8"].shape == tuple(schema["emulator"][name]["shape"])
        assert header[f"{name}.scale"].dtype == "F32"
    assert len(header) == len(schema["emulator"]) + len(schema["packed"])


def test_what_was_not_measured_is_not_published(
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    contents = packed_contents(make_model("llama"), tokenizer, Packing.NONE)
    with pytest.raises(ConfigError, match="call roundtrip on the emulator first"):
        write_bundle(tmp_path / "b", replace(contents, packing=Packing.NF4), facts, signer)
    roundtrip(contents.model, contents.layer_map, Packing.INT8)
    name = min(packed_axes(contents.model, contents.layer_map))
    contents.model.get_parameter(name)[1, 1] += 1e-3
    with pytest.raises(ConfigError, match=f"tensor {name}: expected the values"):
        write_bundle(tmp_path / "b", replace(contents, packing=Packing.INT8), facts, signer)
    assert not list(tmp_path.iterdir())


def test_one_tensor_at_a_time_is_unpacked(
    packed_folder: Path, facts: ReleaseFacts, signer: IdentityKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two tensors of the file are held, but for the two parts of a packed one."""
    alive: list[int] = []
    largest = 0
    real = TensorFile.read

    def read(self: TensorFile, name: str) -> torch.Tensor:
        nonlocal largest
        tensor = real(self, name)
        alive.append(tensor.nbytes)
        weakref.finalize(tensor, alive.remove, tensor.nbytes)
        largest = max(largest, len(alive))
        return tensor

    monkeypatch.setattr(weights_module.TensorFile, "read", read)
    open_bundle(packed_folder, signer.public, facts.created_unix_s).load_emulator(torch.float32)
    assert largest == 2


# What even a valid signature must not get past the reader


def changed_schema(folder: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    schema = json.loads((folder / "schema.json").read_bytes())
    change(schema)
    return json.dumps(schema).encode()


PACKED = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["packed"].update({PACKED: 2}), "an axis of"),
        (lambda s: s["packed"].update({PACKED: -1}), "an axis of"),
        (lambda s: s["packed"].update({PACKED: True}), "the number of an axis"),
        (lambda s: s["packed"].update({PACKED: "1"}), "the number of an axis"),
        (lambda s: s["packed"].update({"nowhere": 1}), "floats of two axes or more"),
        (lambda s: s["packed"].update({"model.norm.weight": 0}), "floats of two axes or more"),
        (
            lambda s: s["emulator"].update({f"{PACKED}.int8": {"dtype": "I8", "shape": [1]}}),
            "names of their own",
        ),
        (lambda s: s["packed"].pop(PACKED), f"tensor {PACKED}"),
        (lambda s: s["packed"].update({PACKED: 0}), r"tensor .*scale: expected F32\[1, 32\]"),
        (lambda s: s.pop("packed"), "packed"),
        (lambda s: s.update(packed=[]), "packed"),
    ],
)
def test_a_schema_that_packs_wrongly_is_refused(
    change: Callable[[dict[str, dict[str, object]]], object],
    message: str,
    packed_folder: Path,
    forge: Forge,
    signer: IdentityKey,
) -> None:
    data = changed_schema(packed_folder, change)
    with pytest.raises(PeerError, match=message):
        open_now(forge({"schema.json": data}), signer)


def test_a_shared_tensor_is_never_packed(
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: ReleaseFacts,
    signer: IdentityKey,
    bundle_folder: Path,
    forge: Forge,
) -> None:
    contents = packed_contents(make_model("llama"), tokenizer, Packing.INT8, spec=WHOLE)
    write_bundle(bundle_folder, contents, facts, signer)
    slot = "model.layers.0.mlp.up_proj.weight"
    data = changed_schema(bundle_folder, lambda schema: schema["packed"].update({slot: 1}))
    with pytest.raises(PeerError, match=f"{slot}: expected it shared or packed, found both"):
        open_now(forge({"schema.json": data}), signer)


@pytest.mark.parametrize("packing", ["none", "nf4", "int4", "", 8])
def test_another_packing_than_that_of_the_file_is_refused(
    packing: object, packed_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    with pytest.raises(PeerError):
        open_now(forge(packing=packing), signer)


def test_a_scale_that_is_not_finite_is_refused(
    packed_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    tensors = tensors_of(packed_folder, "emulator.safetensors")
    tensors[f"{PACKED}.scale"][0] = float("inf")
    with pytest.raises(IntegrityError, match=f"{PACKED}.scale: expected finite values"):
        open_now(forge({"emulator.safetensors": tensors_to_bytes(tensors)}), signer)


@pytest.mark.parametrize("scale", [-1.0, 3e38])
def test_a_scale_that_makes_no_weights_is_refused_before_use(
    scale: float, packed_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    tensors = tensors_of(packed_folder, "emulator.safetensors")
    tensors[f"{PACKED}.scale"][0] = scale
    with pytest.raises(IntegrityError, match=f"tensor {PACKED}: expected scales"):
        open_now(forge({"emulator.safetensors": tensors_to_bytes(tensors)}), signer)


def test_a_scale_too_large_for_the_dtype_of_the_model_is_refused(
    packed_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    tensors = tensors_of(packed_folder, "emulator.safetensors")
    tensors[f"{PACKED}.scale"][0] = 1e30
    bundle = open_now(forge({"emulator.safetensors": tensors_to_bytes(tensors)}), signer)
    with pytest.raises(IntegrityError, match=f"tensor {PACKED}: expected finite values"):
        bundle.load_emulator(torch.float16)
