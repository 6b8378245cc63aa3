"""A tiny release: a random Llama of five blocks, of which one middle block was dropped."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from offsite.emulator.adapters.adapter import (
    AdapterKind,
    AdapterSpec,
    TrainedFactors,
    make_adapter,
)
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.manifest import (
    CHUNKS_SUFFIX,
    MANIFEST_NAME,
    MANIFEST_TYPE,
    ReleaseFacts,
)
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.secure.envelope import from_bytes, sign, to_bytes
from offsite.secure.identity import IdentityKey

CREATED_UNIX_S = 1_790_000_000
EXPIRES_UNIX_S = CREATED_UNIX_S + 30 * 86_400

Release = Callable[..., Path]


@pytest.fixture(scope="session")
def signer() -> IdentityKey:
    return IdentityKey.from_seed(bytes(range(32)))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<user>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(["the plants take in carbon dioxide"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=["<user>"],
        chat_template="{% for m in messages %}\n<user>{{ m.content }}{% endfor %}",
    )


def tiny_contents(
    tokenizer: PreTrainedTokenizerFast,
    kind: AdapterKind,
    trains: TrainedFactors = TrainedFactors.B,
) -> Contents:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    layer_map = LayerMap.of(Placement(1, 1), 5, (1, 3))
    spec = AdapterSpec(kind, rank=2, alpha=4, seed=3, trains=trains)
    adapter = make_adapter(spec, layer_map)
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    return Contents(model, config, layer_map, spec, tensors, tokenizer)


@pytest.fixture(scope="session")
def contents(tokenizer: PreTrainedTokenizerFast) -> Contents:
    return tiny_contents(tokenizer, AdapterKind.LORA)


@pytest.fixture(scope="session")
def whole_block_contents(tokenizer: PreTrainedTokenizerFast) -> Contents:
    return tiny_contents(tokenizer, AdapterKind.WHOLE_BLOCK)


@pytest.fixture(scope="session")
def facts() -> ReleaseFacts:
    return ReleaseFacts(
        project="plants",
        release_version=7,
        created_unix_s=CREATED_UNIX_S,
        expires_unix_s=EXPIRES_UNIX_S,
        base_model="tiny-llama",
        base_fingerprint="ab" * 32,
        method="uniform_drop",
        ratio=0.67,
        provenance={"fidelity": {"loss": 2.5}, "steps": 0},
    )


@pytest.fixture(scope="session")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
) -> Path:
    """A written bundle that no test changes."""
    folder = tmp_path_factory.mktemp("release") / "bundle"
    write_bundle(folder, contents, facts, signer)
    return folder


@pytest.fixture
def bundle_folder(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to tamper with."""
    folder = tmp_path / "bundle"
    shutil.copytree(pristine, folder)
    yield folder


@pytest.fixture
def release(
    tmp_path: Path, contents: Contents, facts: ReleaseFacts, signer: IdentityKey
) -> Release:
    """Writes a release with some facts changed."""

    def write(name: str = "other", **changes: object) -> Path:
        folder = tmp_path / name
        write_bundle(folder, contents, replace(facts, **changes), signer)  # type: ignore[arg-type]
        return folder

    return write


Forge = Callable[..., Path]


@pytest.fixture
def forge(bundle_folder: Path, signer: IdentityKey) -> Forge:
    """Replaces files and manifest fields, and signs the result with the right key.

    What even a valid signature must not get past the reader.
    """

    def change(replaced: dict[str, bytes | None] | None = None, /, **fields: object) -> Path:
        envelope_path = bundle_folder / MANIFEST_NAME
        payload = json.loads(from_bytes(envelope_path.read_bytes()).payload)
        entries = {entry["path"]: entry for entry in payload["files"]}
        for name, data in (replaced or {}).items():
            if entries.pop(name, None):
                (bundle_folder / name).unlink()
                (bundle_folder / f"{name}{CHUNKS_SUFFIX}").unlink()
            if data is not None:
                with ChunkedFile(bundle_folder, name) as file:
                    file.write(data)
                    entries[name] = file.finish().to_json()
        payload |= {"files": list(entries.values())} | fields
        payload = {key: value for key, value in payload.items() if value is not ...}
        envelope = sign(MANIFEST_TYPE, json.dumps(payload).encode(), signer)
        envelope_path.write_bytes(to_bytes(envelope))
        return bundle_folder

    return change
