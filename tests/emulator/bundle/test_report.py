"""`inspect` says what is in a bundle, from whom, and what was checked, refused or not."""

import copy
import io
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.emulator.bundle.conftest import Forge
from tests.emulator.conftest import MakeModel
from tests.emulator.forms import FORMS, RANK, planned

from offsite.emulator.adapters.adapter import make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.report import (
    LEAK_FIGURES,
    Inspection,
    examine,
    inspect_bundle,
    render,
)
from offsite.emulator.bundle.statistics import Sampling
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.figures import Figure
from offsite.emulator.layer_map import Placement
from offsite.emulator.leak.report import LeakReport
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.middle import roundtrip
from offsite.emulator.packing.packing import Packing
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.tuning_memory import LEAST, TuningLoad
from offsite.secure.errors import PeerError
from offsite.secure.identity import IdentityKey

CREATED_UNIX_S = 1_790_000_000
EXPIRES_UNIX_S = CREATED_UNIX_S + 30 * 86_400


def shown(inspection: Inspection) -> str:
    return printed(inspection.description)


def printed(description: JsonObject, width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render(description))
    return stream.getvalue()


def pairs(text: str) -> dict[str, str]:
    """The rows of the tables of two columns."""
    return {
        cells[0].strip(): cells[1].strip()
        for line in text.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 2
    }


def examined(folder: Path, signer: IdentityKey) -> JsonObject:
    """Through JSON, as a script sees it."""
    inspection = inspect_bundle(folder, signer.public, CREATED_UNIX_S)
    assert inspection.bundle is not None
    document = examine(inspection.bundle, inspection.description, Sampling(7))
    found: JsonObject = json.loads(json.dumps(document, allow_nan=False))
    return found


def test_an_accepted_bundle_is_described(pristine: Path, signer: IdentityKey) -> None:
    inspection = inspect_bundle(pristine, signer.public, CREATED_UNIX_S + 5, minimum_version=3)
    found = json.loads(json.dumps(inspection.description))
    assert inspection.refusal is None and inspection.bundle is not None
    assert found["accepted"] is True
    assert found["release"]["signer_fingerprint"] == signer.public.fingerprint.hex()
    assert found["release"]["version"] == 7
    assert found["release"]["created"] == "2026-09-21T14:13:20Z"
    assert found["release"]["expires"] == "2026-10-21T14:13:20Z"
    assert found["release"]["days_left"] == 29
    assert found["variants"] == []
    assert found["release"]["base_fingerprint"] == "ab" * 32
    assert found["emulator"] == {
        "architecture": "llama",
        "method": "uniform_drop",
        "ratio": 0.67,
        "base_blocks": 5,
        "kept_blocks": 4,
        "bottom_slots": 1,
        "spread_slots": 0,
        "middle_slots": 0,
        "top_slots": 1,
        "tensors": 38,
        "parameters": 14_480,
        "packing": "none",
        "packed_tensors": 0,
        "bytes": 28_960,
        "tuning_bytes": inspection.bundle.manifest.tuning_bytes,
    }
    assert (found["adapter"]["kind"], found["adapter"]["trains"]) == ("lora", "b")
    assert found["adapter"]["slots"] == ["bottom.0", "top.0"]
    assert found["adapter"]["update_bytes"] == 4 * found["adapter"]["parameters"] == 2048
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
        "2,048",
        "chunk digests",
        "skipped: no release was accepted before",
        "warning: It has a chat template",
        "warning: The owner signed no report on leak.",
        "fidelity (claimed by the owner, not checked)",
    ):
        assert part in text
    assert pairs(text)["loss"] == "2.5"


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


@pytest.mark.parametrize(
    ("method", "ratio", "packing", "is_full"),
    [
        (MethodName.UNIFORM_DROP, 0.99, Packing.NONE, True),
        (MethodName.UNIFORM_DROP, 0.99, Packing.INT8, True),
        (MethodName.UNIFORM_DROP, 0.5, Packing.NONE, False),
        (MethodName.WIDTH_PRUNE, 0.7, Packing.NONE, False),
    ],
)
def test_the_full_model_is_known_by_what_is_there_whatever_is_stated(
    method: MethodName,
    ratio: float,
    packing: Packing,
    is_full: bool,
    make_model: MakeModel,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    text = (torch.arange(64).view(2, 32) % 96,)
    base = make_model("llama", torch.bfloat16)
    emulator = build_emulator(base, Placement(1, 1), method, ratio, text)
    roundtrip(emulator.model, emulator.layer_map, packing)
    adapter = make_adapter(contents.adapter_spec, emulator.layer_map)
    adapter.attach(emulator.model)
    tensors = adapter.extract(emulator.model)
    adapter.detach(emulator.model)
    release = replace(
        contents,
        model=emulator.model,
        config=emulator.model.config,
        layer_map=emulator.layer_map,
        adapter=tensors,
        packing=packing,
    )
    write_bundle(tmp_path / "b", release, replace(facts, ratio=0.3), signer)
    shown_text = shown(inspect_bundle(tmp_path / "b", signer.public, CREATED_UNIX_S))
    assert ("this is the full model" in shown_text) is is_full


def test_what_was_not_measured_says_so(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    leak = {
        "zero_shot": {"value": 0.25, "stderr": 0.02},
        "healed": {"value": None, "reason": "no attack was configured"},
        "kept": {"value": None, "stderr": None},
        "attack": {"steps": 12_000, "recipe": None},
    }
    fidelity = {
        "hidden_error": [{"block": 2, "error": 0.125}, {"block": 3, "error": 0.5}],
        "verbatim": [0.5, 1.0],
    }
    reports = {"leak": leak, "fidelity": fidelity, "leak_budget": {"zero_shot": 0.5, "kept": None}}
    stated = replace(facts, provenance={**reports, "steps": 3})
    write_bundle(tmp_path / "b", contents, stated, signer)
    text = shown(inspect_bundle(tmp_path / "b", signer.public, CREATED_UNIX_S))
    rows = pairs(text)
    assert rows["zero shot"] == "0.25 ± 0.02 (limit 0.5)"
    assert rows["healed"] == "not measured: no attack was configured"
    assert rows["kept"] == rows["attack, recipe"] == "not measured"
    assert rows["attack, steps"] == "12,000"
    assert rows["verbatim"] == "0.5, 1"
    assert rows["steps"] == "3"
    assert "block 2, error 0.125" in text and "block 3, error 0.5" in text
    assert "signed no report" not in text


@pytest.mark.parametrize(
    ("leak", "missing"),
    [
        ({}, "zero_shot, tuned, healed, kept, verbatim"),
        ("nothing to see", "zero_shot, tuned, healed, kept, verbatim"),
        ({"healed": {"value": None, "reason": "x"}, "kept": {"value": True}}, "healed, kept"),
        (None, ""),
    ],
)
def test_a_leak_report_without_figures_is_said(
    leak: object,
    missing: str,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    figures = {name: {"value": 0.1, "stderr": 0.01} for name in LEAK_FIGURES}
    if not isinstance(leak, dict) and leak is not None:
        report = leak
    else:
        report = {**(figures if leak != {} else {}), **(leak or {})}
    provenance = {"fidelity": {}, "leak": report}
    write_bundle(tmp_path / "b", contents, replace(facts, provenance=provenance), signer)
    found = inspect_bundle(tmp_path / "b", signer.public, CREATED_UNIX_S).description
    said = [w for w in found["warnings"] if "leak report has no figure" in str(w)]
    assert len(said) == bool(missing)
    assert all(f"no figure for {missing}:" in str(warning) for warning in said)


def test_the_figures_that_are_asked_for_are_those_of_a_leak_report() -> None:
    figures = {field.name for field in fields(LeakReport) if field.type in (Figure, "Figure")}
    assert set(LEAK_FIGURES) == figures


def test_what_an_edge_cannot_check_says_so_and_says_nothing_twice(
    contents: Contents, facts: ReleaseFacts, signer: IdentityKey, tmp_path: Path
) -> None:
    reason = "not measured: no healing was asked for"
    leak = {"zero_shot": {"value": 0.0, "stderr": 0.0}, "healed": {"value": None, "reason": reason}}
    stated = replace(facts, provenance={"leak": leak, "fidelity": {"loss": 2.5}, "steps": 1})
    write_bundle(tmp_path / "b", contents, stated, signer)
    text = shown(inspect_bundle(tmp_path / "b", signer.public, CREATED_UNIX_S))
    assert pairs(text)["healed"] == reason
    titles = [line.strip() for line in text.splitlines() if "claimed by the owner" in line]
    claimed = "claimed by the owner, not checked"
    assert sorted(titles) == sorted([claimed, f"leak ({claimed})", f"fidelity ({claimed})"])


def test_memory_for_tuning_is_recomputed(pristine: Path, forge: Forge, signer: IdentityKey) -> None:
    bundle = inspect_bundle(pristine, signer.public, CREATED_UNIX_S).bundle
    assert bundle is not None
    assert bundle.tuning_bytes(TuningLoad()) == bundle.manifest.tuning_bytes
    least = bundle.tuning_bytes(LEAST)
    assert inspect_bundle(forge(tuning_bytes=least), signer.public, CREATED_UNIX_S).refusal is None
    found = inspect_bundle(forge(tuning_bytes=least - 1), signer.public, CREATED_UNIX_S)
    assert isinstance(found.refusal, PeerError)
    assert f"expected at least {least} bytes stated for tuning" in str(found.refusal)
    checks = found.description["checks"]
    assert isinstance(checks, list)
    assert checks[-1]["name"] == "memory for tuning" and checks[-1]["outcome"] == "failed"


def test_the_tensors_are_described_and_checked(pristine: Path, signer: IdentityKey) -> None:
    found = examined(pristine, signer)
    statistics = found["statistics"]
    assert isinstance(statistics, dict)
    assert statistics["values"] == statistics["values_read"] == 14_480
    assert [block["slot"] for block in statistics["blocks"]] == ["bottom.0", None, None, "top.0"]
    assert [block["base_block"] for block in statistics["blocks"]] == [0, 1, 3, 4]
    assert {kind["tensors"] for kind in statistics["kinds"]} == {4}
    assert [row["tensor"] for row in statistics["outside"]] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]
    checks = found["hostile_checks"]
    assert isinstance(checks, list)
    assert {check["outcome"] for check in checks} == {"clear", "not judged"}
    assert all(check["name"] and check["looks_for"] and check["detail"] for check in checks)
    text = printed(found)
    for part in (
        "measured: 14,480 of 14,480 values",
        "mlp.down_proj",
        "16 x 32",
        "checks against a hostile release",
        "bias ladder",
        "the MLPs have no biases",
        "first adapter is drawn as stated",
    ):
        assert part in text
    assert max(map(len, printed(found, 80).splitlines())) <= 80


def test_a_part_that_was_read_is_said(pristine: Path, signer: IdentityKey) -> None:
    inspection = inspect_bundle(pristine, signer.public, CREATED_UNIX_S)
    assert inspection.bundle is not None
    told: list[tuple[int, int]] = []
    sampling = Sampling(1234, values=100)
    document = examine(
        inspection.bundle,
        inspection.description,
        sampling,
        lambda done, total: told.append((done, total)),
    )
    assert "of 14,480 values, in rows drawn from seed 1234" in printed(document)
    assert told[-1] == (14_480, 14_480)


@pytest.mark.parametrize(
    ("form", "packing"),
    [*((form, Packing.NONE) for form in FORMS), ("all", Packing.INT8), ("all", Packing.NF4)],
)
def test_every_form_of_an_emulator_is_described(
    form: str,
    packing: Packing,
    make_model: MakeModel,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
    tmp_path: Path,
) -> None:
    base = make_model("llama", torch.bfloat16)
    with planned(FORMS[form]):
        emulator = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    roundtrip(emulator.model, emulator.layer_map, packing)
    adapter = make_adapter(contents.adapter_spec, emulator.layer_map)
    adapter.attach(emulator.model)
    tensors = adapter.extract(emulator.model)
    adapter.detach(emulator.model)
    tokenizer = copy.deepcopy(contents.tokenizer)
    tokenizer.chat_template = None
    release = replace(
        contents,
        tokenizer=tokenizer,
        model=emulator.model,
        config=emulator.model.config,
        layer_map=emulator.layer_map,
        adapter=tensors,
        packing=packing,
    )
    write_bundle(tmp_path / "b", release, facts, signer)
    found = examined(tmp_path / "b", signer)
    statistics = found["statistics"]
    assert isinstance(statistics, dict)
    blocks = statistics["blocks"]
    assert len(blocks) == len(emulator.layer_map.kept)
    repeats = len(emulator.layer_map.kept) - len(set(emulator.layer_map.kept))
    assert sum(block.get("shared", False) for block in blocks) == repeats
    assert len(statistics["harmonisers"]) == (2 if form in ("harmonised", "all") else 0)
    ranks = {rank for block in blocks for rank in block.get("ranks", {}).values()}
    assert ranks == ({RANK} if "factored" in form or form == "all" else set())
    packings = {kind["packing"].removesuffix(", some") for kind in statistics["kinds"]}
    assert packings == {"none", packing.value}
    document = printed(found)
    assert "harmonisers" in document or form not in ("harmonised", "all")
