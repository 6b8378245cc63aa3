"""What the reader refuses although the owner's key signed it, and in which order it looks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.checks import Check, Outcome
from offsite.emulator.bundle.manifest import MANIFEST_NAME, MANIFEST_TYPE, Manifest
from offsite.emulator.bundle.reader import open_bundle, open_manifest
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.schema import load_checked, read_header, tensors_to_bytes
from offsite.secure import limits
from offsite.secure.envelope import from_bytes, sign, to_bytes
from offsite.secure.errors import (
    ConfigError,
    ExpiredError,
    IntegrityError,
    PeerError,
    SignatureError,
)
from offsite.secure.identity import IdentityKey

CREATED_UNIX_S = 1_790_000_000
EXPIRES_UNIX_S = CREATED_UNIX_S + 30 * 86_400
NOW_UNIX_S = CREATED_UNIX_S + 100

Forge = Callable[..., Path]


def open_now(folder: Path, signer: IdentityKey, **options: object) -> Bundle:
    return open_bundle(folder, signer.public, NOW_UNIX_S, **options)  # type: ignore[arg-type]


# Trust


def test_another_signer_is_refused(pristine: Path) -> None:
    other = IdentityKey.from_seed(b"x" * 32)
    with pytest.raises(SignatureError):
        open_now(pristine, other)


def test_a_manifest_signed_as_something_else_is_refused(
    bundle_folder: Path, signer: IdentityKey
) -> None:
    payload = from_bytes((bundle_folder / MANIFEST_NAME).read_bytes()).payload
    envelope = sign("application/vnd.offsite.round-plan+json", payload, signer)
    (bundle_folder / MANIFEST_NAME).write_bytes(to_bytes(envelope))
    with pytest.raises(SignatureError):
        open_now(bundle_folder, signer)


def test_a_huge_manifest_is_refused_before_it_is_parsed(signer: IdentityKey) -> None:
    with pytest.raises(PeerError, match="at most"):
        open_manifest(b"\0" * (limits.MANIFEST_BYTES + 2000), signer.public, NOW_UNIX_S)


@pytest.mark.parametrize(
    ("now_unix_s", "message"),
    [
        (CREATED_UNIX_S - limits.CLOCK_SKEW_S - 1, "valid in"),
        (EXPIRES_UNIX_S + limits.CLOCK_SKEW_S + 1, "expired"),
    ],
)
def test_a_release_out_of_its_time_is_refused(
    now_unix_s: int, message: str, pristine: Path, signer: IdentityKey
) -> None:
    with pytest.raises(ExpiredError, match=message):
        open_bundle(pristine, signer.public, now_unix_s)


@pytest.mark.parametrize(
    "now_unix_s", [CREATED_UNIX_S - limits.CLOCK_SKEW_S, EXPIRES_UNIX_S + limits.CLOCK_SKEW_S]
)
def test_a_clock_may_be_off_by_the_skew(
    now_unix_s: int, pristine: Path, signer: IdentityKey
) -> None:
    open_bundle(pristine, signer.public, now_unix_s)


def test_an_older_release_is_refused(pristine: Path, signer: IdentityKey) -> None:
    open_now(pristine, signer, minimum_version=7)
    with pytest.raises(PeerError, match="expected release 8 or later, found 7"):
        open_now(pristine, signer, minimum_version=8)


def test_another_base_model_is_refused(pristine: Path, signer: IdentityKey) -> None:
    open_now(pristine, signer, expected_base="ab" * 32)
    with pytest.raises(PeerError, match=r"base model cdcd.*found abab"):
        open_now(pristine, signer, expected_base="cd" * 32)


def test_no_bundle_is_the_callers_error(tmp_path: Path, signer: IdentityKey) -> None:
    with pytest.raises(ConfigError, match="none"):
        open_now(tmp_path / "nowhere", signer)


def test_checks_run_in_order_and_stop_at_the_first_failure(
    pristine: Path, bundle_folder: Path, signer: IdentityKey
) -> None:
    checks: list[Check] = []
    open_now(pristine, signer, observe=checks.append)
    names = [check.name for check in checks]
    assert [check.name for check in checks if check.outcome is Outcome.SKIPPED] == [
        "no rollback",
        "base model",
    ]
    (bundle_folder / "emulator.safetensors").write_bytes(b"x")
    refused: list[Check] = []
    with pytest.raises(IntegrityError):
        open_now(bundle_folder, signer, observe=refused.append)
    assert [check.name for check in refused] == names[: names.index("file sizes") + 1]
    assert refused[-1].outcome is Outcome.FAILED


def test_the_reader_needs_no_torch(pristine: Path, signer: IdentityKey) -> None:
    program = (
        "import sys, pathlib\n"
        "from offsite.emulator.bundle.reader import open_bundle\n"
        "from offsite.secure.identity import IdentityPublicKey\n"
        f"key = IdentityPublicKey(bytes.fromhex('{signer.public.raw.hex()}'))\n"
        f"open_bundle(pathlib.Path({str(pristine)!r}), key, {NOW_UNIX_S})\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Manifest


@pytest.mark.parametrize(
    "fields",
    [
        {"surprise": 1},
        {"project": ...},
        {"project": 3},
        {"project": ""},
        {"project": "a\x1b[31m"},
        {"project": "x" * 300},
        {"release_version": 0},
        {"release_version": True},
        {"release_version": 1.0},
        {"release_version": 1 << 60},
        {"format_version": 4},
        {"format_version": "1"},
        {"created_unix_s": -1},
        {"expires_unix_s": CREATED_UNIX_S},
        {"base_fingerprint": "AB" * 32},
        {"base_fingerprint": "ab" * 31},
        {"ratio": 1.5},
        {"ratio": "1"},
        {"provenance": []},
        {"provenance": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}},
        {"provenance": {"note": "\ud800"}},
        {"layer_map": {}},
        {"adapter": {"kind": "remote_code", "rank": 1, "alpha": 1, "seed": 0}},
        {"files": "config.json"},
        {"files": [{}] * (limits.BUNDLE_FILES + 1)},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
def test_a_malformed_manifest_is_refused(
    fields: dict[str, object], forge: Forge, signer: IdentityKey
) -> None:
    with pytest.raises(PeerError):
        open_now(forge(**fields), signer)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"a":1,"a":1}', b"\xff", b"[" * 50_000])
def test_a_manifest_that_is_no_strict_json_is_refused(
    payload: bytes, bundle_folder: Path, signer: IdentityKey
) -> None:
    envelope = sign(MANIFEST_TYPE, payload, signer)
    (bundle_folder / MANIFEST_NAME).write_bytes(to_bytes(envelope))
    with pytest.raises(PeerError):
        open_now(bundle_folder, signer)


@pytest.mark.parametrize(
    "path",
    [
        "../config.json",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        "a..b",
        ".hidden",
        "Config.json",
        "con fig",
        "config.json.chunks",
        "manifest.envelope",
        "a\x00b",
        "é.json",
        "x" * 65,
        "",
    ],
)
def test_a_file_name_that_is_not_plain_is_refused(path: str, signer: IdentityKey) -> None:
    digest = "0" * 64
    entry = {"path": path, "size": 1, "sha256": digest, "chunks_sha256": digest}
    with pytest.raises(PeerError):
        manifest_with([entry])


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 1 << 41}, {"sha256": "0"}, {"chunks_sha256": None}, {"mode": 7}],
    ids=str,
)
def test_a_malformed_file_entry_is_refused(change: dict[str, object]) -> None:
    entry = {"path": "a", "size": 1, "sha256": "0" * 64, "chunks_sha256": "0" * 64}
    manifest_with([entry])
    with pytest.raises(PeerError):
        manifest_with([entry | change])


def test_a_repeated_file_is_refused() -> None:
    entry = {"path": "a", "size": 1, "sha256": "0" * 64, "chunks_sha256": "0" * 64}
    with pytest.raises(PeerError, match="repeated"):
        manifest_with([entry, entry])


def manifest_with(files: list[dict[str, object]]) -> Manifest:
    layer_map = LayerMap.of(Placement(1, 1), 5, (1, 3))
    payload = {
        "format_version": 3,
        "project": "p",
        "release_version": 1,
        "created_unix_s": 1,
        "expires_unix_s": 2,
        "base_model": "m",
        "base_fingerprint": "ab" * 32,
        "method": "m",
        "ratio": 0.5,
        "provenance": {},
        "layer_map": layer_map.to_json(),
        "adapter": AdapterSpec(AdapterKind.LORA).to_json(),
        "files": files,
        "packing": "none",
        "adapter_sha256": "0" * 64,
        "tuning_bytes": 0,
        "variants": [],
    }
    return Manifest.from_bytes(json.dumps(payload).encode())


# Files under a valid signature


def test_an_unexpected_file_is_refused_though_signed(forge: Forge, signer: IdentityKey) -> None:
    with pytest.raises(PeerError, match="expected the files"):
        open_now(forge({"modeling.py": b"print()"}), signer)


@pytest.mark.parametrize("name", ["config.json", "schema.json", "emulator.safetensors"])
def test_a_release_without_a_needed_file_is_refused(
    name: str, forge: Forge, signer: IdentityKey
) -> None:
    with pytest.raises(PeerError, match="expected the files"):
        open_now(forge({name: None}), signer)


def test_a_huge_configuration_is_refused_unread(forge: Forge, signer: IdentityKey) -> None:
    checks: list[Check] = []
    folder = forge({"config.json": b" " * ((1 << 20) + 1)})
    with pytest.raises(PeerError, match=r"config\.json: expected at most"):
        open_now(folder, signer, observe=checks.append)
    assert checks[-1].name == "manifest format"


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        ("a0", 1, "expected the files .*found"),
        ("config.json", 1 << 40, r"config\.json: expected at most"),
    ],
)
def test_files_that_no_release_holds_are_refused_before_they_are_fetched(
    path: str, size: int, message: str, signer: IdentityKey
) -> None:
    digest = "0" * 64
    entry = {"path": path, "size": size, "sha256": digest, "chunks_sha256": digest}
    payload = manifest_with([entry]).to_bytes()
    with pytest.raises(PeerError, match=message):
        open_manifest(to_bytes(sign(MANIFEST_TYPE, payload, signer)), signer.public, 1)


def tensors_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = folder / name
    return load_checked(path, read_header(path))


def test_a_nan_under_a_valid_signature_is_refused(
    bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    for name in ("emulator.safetensors", "adapter.safetensors"):
        tensors = tensors_of(bundle_folder, name)
        good = tensors_to_bytes(tensors)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        with pytest.raises(IntegrityError, match="NaN"):
            open_now(forge({name: tensors_to_bytes(tensors)}), signer)
        open_now(forge({name: good}), signer)


@pytest.mark.parametrize("name", ["emulator.safetensors", "adapter.safetensors"])
def test_tensors_that_differ_from_the_schema_are_refused(
    name: str, bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    tensors = tensors_of(bundle_folder, name)
    first = min(tensors)
    others = {key: tensor for key, tensor in tensors.items() if key != first}
    for changed in (
        others,
        {**tensors, "extra": torch.zeros(1)},
        {**others, first: tensors[first].reshape(-1)},
        {**others, first: tensors[first].to(torch.float16)},
    ):
        with pytest.raises(PeerError, match=f"tensor (extra|{first})"):
            open_now(forge({name: tensors_to_bytes(changed)}), signer)


def schema_change(folder: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    schema = json.loads((folder / "schema.json").read_bytes())
    change(schema)
    return json.dumps(schema).encode()


SHARED = {"bottom.0.mlp.up_proj.lora_B.weight": "model.norm.weight"}


@pytest.mark.parametrize(
    "change",
    [
        lambda schema: schema.update(more={}),
        lambda schema: schema.pop("shared"),
        lambda schema: schema["adapter"].clear(),
        lambda schema: schema["adapter"].update({"middle.0.x": {"dtype": "F32", "shape": [1]}}),
        lambda schema: schema["adapter"].update({"bottom.0.x": {"dtype": "BF16", "shape": [1]}}),
        lambda schema: schema["adapter"].update({"bottom.0.x": {"dtype": "F32", "shape": [0]}}),
        lambda schema: schema["shared"].update(SHARED),
        lambda schema: schema["shared"].update({"bottom.0.x": "model.norm.weight"}),
        lambda schema: schema["shared"].update({next(iter(SHARED)): "nowhere"}),
        lambda schema: schema["shared"].update({next(iter(SHARED)): 1}),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(
    change: Callable[[dict[str, dict[str, object]]], object],
    bundle_folder: Path,
    forge: Forge,
    signer: IdentityKey,
) -> None:
    data = schema_change(bundle_folder, change)
    with pytest.raises(PeerError, match=r"schema\.json"):
        open_now(forge({"schema.json": data}), signer)


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {"AutoTokenizer": ["x.Y", None]}},
        {"tokenizer_class": "Custom"},
        {"tokenizer_file": "/etc/passwd"},
        {"extra_special_tokens": [1]},
        {"extra_special_tokens": ["\n"]},
        {"padding_side": "top"},
        {"bos_token": {"content": "<s>"}},
        {"chat_template": "x" * (1 << 18)},
        {"chat_template": {"default": "x"}},
        {"model_max_length": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_tokenizer_settings_beyond_the_known_are_refused(
    settings: dict[str, object], bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    known = json.loads((bundle_folder / "tokenizer_config.json").read_bytes())
    data = json.dumps(known | settings).encode()
    with pytest.raises(PeerError, match=r"tokenizer_config\.json"):
        open_now(forge({"tokenizer_config.json": data}), signer)


@pytest.mark.parametrize("data", [b"import os", b"{}", b"\x80\x04", b'{"model":1}'])
def test_a_tokenizer_file_that_is_none_is_refused(
    data: bytes, forge: Forge, signer: IdentityKey
) -> None:
    with pytest.raises(PeerError, match=r"tokenizer\.json"):
        open_now(forge({"tokenizer.json": data}), signer)
