"""`inspect` says what is in a bundle, from whom, and what was checked, refused or not."""

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.report import Inspection, inspect_bundle, render
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.secure.identity import IdentityKey

CREATED_UNIX_S = 1_790_000_000
EXPIRES_UNIX_S = CREATED_UNIX_S + 30 * 86_400


def shown(inspection: Inspection) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(render(inspection.description))
    return stream.getvalue()


def test_an_accepted_bundle_is_described(pristine: Path, signer: IdentityKey) -> None:
    inspection = inspect_bundle(pristine, signer.public, CREATED_UNIX_S + 5, minimum_version=3)
    found = json.loads(json.dumps(inspection.description))
    assert inspection.refusal is None
    assert found["accepted"] is True
    assert found["release"]["signer_fingerprint"] == signer.public.fingerprint.hex()
    assert found["release"]["version"] == 7
    assert found["release"]["created"] == "2026-09-21T14:13:20Z"
    assert found["release"]["expires"] == "2026-10-21T14:13:20Z"
    assert found["release"]["base_fingerprint"] == "ab" * 32
    assert found["emulator"] == {
        "architecture": "llama",
        "method": "uniform_drop",
        "ratio": 0.67,
        "base_blocks": 5,
        "kept_blocks": 4,
        "bottom_slots": 1,
        "top_slots": 1,
        "tensors": 38,
        "parameters": 14_480,
        "bytes": 28_960,
    }
    assert found["adapter"]["kind"] == "lora"
    assert found["adapter"]["slots"] == ["bottom.0", "top.0"]
    assert found["adapter"]["update_bytes"] == 4 * found["adapter"]["parameters"] == 4096
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert outcomes.pop("base model") == "skipped"
    assert set(outcomes.values()) == {"passed"}


def test_the_table_shows_what_the_description_says(pristine: Path, signer: IdentityKey) -> None:
    text = shown(inspect_bundle(pristine, signer.public, CREATED_UNIX_S + 5))
    for part in (
        "accepted",
        signer.public.short,
        "uniform_drop",
        "bottom.0, top.0",
        "4,096",
        "chunk digests",
        "skipped: no release was accepted before",
        "warning: It has a chat template",
        "loss 2.5",
    ):
        assert part in text


def test_a_refused_bundle_shows_the_check_that_failed(
    bundle_folder: Path, signer: IdentityKey
) -> None:
    path = bundle_folder / "emulator.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    inspection = inspect_bundle(bundle_folder, signer.public, CREATED_UNIX_S)
    assert inspection.refusal is not None
    assert inspection.description["accepted"] is False
    assert "release" not in inspection.description
    text = shown(inspection)
    assert "refused: emulator.safetensors: chunk 0 of 1" in text
    assert "failed" in text


def test_warnings_are_plain(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    poor = replace(facts, ratio=1.0, provenance={}, project="[red]x[/red]")
    write_bundle(tmp_path / "b", contents, poor, signer)
    inspection = inspect_bundle(tmp_path / "b", signer.public, EXPIRES_UNIX_S - 86_400)
    text = shown(inspection)
    assert "expires in 1 days" in text
    assert "not compressed" in text
    assert "states nothing" in text
    assert "[red]x[/red]" in text
