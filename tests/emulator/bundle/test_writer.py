"""A release is written once, whole, reproducibly, and says what went in."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from offsite.emulator.adapters.adapter import make_adapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.manifest import Manifest, ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.schema import spec_of
from offsite.secure.errors import ConfigError, DiskFullError, IntegrityError, MachineError
from offsite.secure.identity import IdentityKey

Release = Callable[..., Path]


def opened(folder: Path, facts: ReleaseFacts, signer: IdentityKey) -> Bundle:
    return open_bundle(folder, signer.public, facts.created_unix_s)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_input_gives_equal_bytes(pristine: Path, release: Release) -> None:
    assert files_of(release()) == files_of(pristine)
    later = files_of(release("later", created_unix_s=1_790_000_001))
    changed = {name for name, data in files_of(pristine).items() if later[name] != data}
    assert changed == {"manifest.envelope"}


def test_use_of_the_tokenizer_does_not_change_the_bytes(
    pristine: Path, release: Release, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer(["a b c", "d"], padding=True, truncation=True, max_length=2)
    assert files_of(release()) == files_of(pristine)


def test_the_manifest_round_trips(
    pristine: Path, contents: Contents, facts: ReleaseFacts, signer: IdentityKey
) -> None:
    manifest = opened(pristine, facts, signer).manifest
    assert manifest.facts == facts
    assert manifest.layer_map == contents.layer_map
    assert manifest.adapter == contents.adapter_spec
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    on_disk = sum(len(data) for name, data in files_of(pristine).items() if "manifest" not in name)
    assert manifest.bundle_bytes == on_disk


@pytest.mark.parametrize("kind", ["contents", "whole_block_contents"])
def test_what_comes_out_is_what_went_in(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    facts: ReleaseFacts,
    signer: IdentityKey,
) -> None:
    contents: Contents = request.getfixturevalue(kind)
    write_bundle(tmp_path / "b", contents, facts, signer)
    bundle = opened(tmp_path / "b", facts, signer)
    model = bundle.load_emulator(torch.bfloat16)
    expected = contents.model.state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert bundle.load_emulator(torch.float32).state_dict()["lm_head.weight"].dtype == torch.float32

    adapter = bundle.load_adapter()
    for name, tensor in adapter.items():  # one by one, the same
        assert torch.equal(bundle.read_adapter_tensor(name), tensor)
    assert list(adapter) == list(bundle.adapter_schema)
    assert adapter.keys() == contents.adapter.keys()
    assert all(torch.equal(adapter[name], contents.adapter[name]) for name in adapter)
    assert all(spec_of(adapter[name]) == spec for name, spec in bundle.adapter_schema.items())
    assert make_adapter(contents.adapter_spec, contents.layer_map).specs(model) == dict(
        bundle.adapter_schema
    )


def test_a_whole_block_adapter_is_not_sent_twice(
    whole_block_contents: Contents, tmp_path: Path, facts: ReleaseFacts, signer: IdentityKey
) -> None:
    manifest = write_bundle(tmp_path / "b", whole_block_contents, facts, signer)
    assert "adapter.safetensors" not in {entry.path for entry in manifest.files}

    adapter = {name: tensor.clone() for name, tensor in whole_block_contents.adapter.items()}
    adapter["top.0.mlp.up_proj.weight"] += 1e-5  # no longer what the emulator holds
    trained = replace(whole_block_contents, adapter=adapter)
    write_bundle(tmp_path / "b", trained, facts, signer)
    assert list(load_file(tmp_path / "b" / "adapter.safetensors")) == ["top.0.mlp.up_proj.weight"]
    found = opened(tmp_path / "b", facts, signer).load_adapter()
    assert all(torch.equal(found[name], adapter[name]) for name in adapter)


def test_tied_weights_are_sent_once(pristine: Path) -> None:
    weights = load_file(pristine / "emulator.safetensors")
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights


def test_gpt2_with_its_transposed_layers_round_trips(
    contents: Contents, tmp_path: Path, facts: ReleaseFacts, signer: IdentityKey
) -> None:
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=4, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).eval()
    adapter = make_adapter(contents.adapter_spec, contents.layer_map)
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    gpt2 = replace(contents, model=model, config=config, adapter=tensors)
    write_bundle(tmp_path / "b", gpt2, facts, signer)
    loaded = opened(tmp_path / "b", facts, signer).load_emulator(torch.float32)
    tokens = torch.arange(10)[None]
    assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-5)


def test_the_tokenizer_is_the_same_and_generic(
    pristine: Path, tokenizer: PreTrainedTokenizerFast, facts: ReleaseFacts, signer: IdentityKey
) -> None:
    loaded = opened(pristine, facts, signer).tokenizer()
    assert type(loaded) is PreTrainedTokenizerFast
    for text in ("the plants </s> ünïcode 漢", "<user>\n carbon"):
        assert loaded(text) == tokenizer(text)
    messages = [{"role": "user", "content": "Which gas?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert loaded.apply_chat_template(messages, tokenize=False) == expected
    assert "Which gas?" in str(expected)
    assert loaded.pad_token == "</s>"
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


def test_progress_counts_the_bytes_of_the_tensors(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    calls: list[tuple[int, int]] = []
    write_bundle(
        tmp_path / "b", contents, facts, signer, lambda done, total: calls.append((done, total))
    )
    assert len({total for _, total in calls}) == 1
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]
    read: list[tuple[int, int]] = []
    open_bundle(
        tmp_path / "b",
        signer.public,
        facts.created_unix_s,
        report=lambda done, total: read.append((done, total)),
    )
    assert read[-1][0] == read[-1][1]


# Failures


@pytest.mark.parametrize("call", [1, 2, 7, 13])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_earlier_release(
    call: int, code: int, release: Release, monkeypatch: pytest.MonkeyPatch, pristine: Path
) -> None:
    folder = release()
    calls = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(code, "full")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError):
        release(release_version=8)
    assert files_of(folder) == files_of(pristine)
    assert [path.name for path in folder.parent.iterdir() if "other" in path.name] == ["other"]


def test_a_write_that_fails_is_a_full_disk_too(
    release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(self: ChunkedFile, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ChunkedFile, "write", write)
    with pytest.raises(DiskFullError):
        release()
    assert not list(tmp_path.glob("other*"))


def test_a_new_release_takes_the_place_of_the_old(
    release: Release, facts: ReleaseFacts, signer: IdentityKey
) -> None:
    release()
    folder = release(release_version=8)
    assert opened(folder, facts, signer).manifest.facts.release_version == 8
    assert [path.name for path in folder.parent.iterdir() if "other" in path.name] == ["other"]


def test_a_kill_between_the_two_renames_loses_nothing(
    release: Release, monkeypatch: pytest.MonkeyPatch, pristine: Path
) -> None:
    folder = release()
    folder.rename(folder.with_name("other.previous"))  # what a kill there leaves
    folder.with_name("other.partial").mkdir()

    def write(self: ChunkedFile, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkedFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        release(release_version=8)
    assert files_of(folder) == files_of(pristine)
    assert not folder.with_name("other.partial").exists()


def test_what_the_system_refuses_is_an_error_of_ours(
    release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(self: ChunkedFile, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ChunkedFile, "write", write)
    with pytest.raises(MachineError, match="Input/output error"):
        release()
    assert not list(tmp_path.glob("other*"))


def test_what_a_release_says_of_itself(pristine: Path, facts: ReleaseFacts, tmp_path: Path) -> None:
    manifest = stated_manifest(pristine)
    assert manifest is not None and manifest.facts == facts
    assert stated_manifest(tmp_path) is None
    (tmp_path / "manifest.envelope").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="the release there is damaged"):
        stated_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"project": "a\x1bb"}, "printable"),
        ({"expires_unix_s": 5}, "expiry"),
        ({"release_version": 0}, "release_version"),
        ({"base_fingerprint": "short"}, "base_fingerprint"),
    ],
)
def test_what_an_edge_would_refuse_is_not_published(
    changes: dict[str, object], message: str, release: Release, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"an edge would refuse.*{message}"):
        release(**changes)
    assert not list(tmp_path.glob("other*"))


def test_a_nan_is_not_published(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    adapter = {name: tensor.clone() for name, tensor in contents.adapter.items()}
    next(iter(adapter.values())).view(-1)[0] = float("nan")
    with pytest.raises(ConfigError, match=r"cannot be released: .*NaN"):
        write_bundle(tmp_path / "b", replace(contents, adapter=adapter), facts, signer)
    assert not list(tmp_path.iterdir())
