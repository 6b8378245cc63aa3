"""What is exported loads in a process that does not know Offsite, with the plug-in's logits."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.coordinator.models import FAMILIES, logits_of, make_tuned, tokens, untouched, weights_of
from torch import Tensor

from offsite.coordinator.export.checkpoint import ADAPTER_FILE, export_adapter, export_merged
from offsite.coordinator.export.low_rank import LowRankOptions
from offsite.coordinator.export.peft_adapter import PeftExport, export_peft
from offsite.coordinator.export.tuned import DESCRIPTION, README, Tuned
from offsite.coordinator.gate import GateScore
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.schema import read_header
from offsite.secure.errors import ConfigError

STRANGER = """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.load(open(sys.argv[1]))
ids = torch.tensor(job["ids"])
logits = {}
for name, folders in job["cases"].items():
    load = AutoModelForCausalLM.from_pretrained
    merged = load(folders["merged"], dtype=torch.float32).eval()
    AutoTokenizer.from_pretrained(folders["merged"])
    base = load(folders["base"], dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, folders["peft"]).eval()
    with torch.inference_mode():
        logits[name + "/merged"] = merged(input_ids=ids).logits.contiguous()
        logits[name + "/peft"] = peft(input_ids=ids).logits.contiguous()
assert not [module for module in sys.modules if module.split(".")[0] == "offsite"]
save_file(logits, job["out"])
"""
LORA, BLOCK = AdapterKind.LORA, AdapterKind.WHOLE_BLOCK
LORA_SPEC = {"kind": "lora", "rank": 4, "alpha": 8, "seed": 0}
CASES = [(family, kind) for family in FAMILIES for kind in (LORA, BLOCK)]


@dataclass(frozen=True)
class Case:
    tuned: Tuned
    folder: Path
    peft: PeftExport
    found: dict[str, Tensor]


def _linear_only(name: str, value: Tensor) -> Tensor:
    return value + 0.05 * torch.randn(value.shape) if value.ndim == 2 else value


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Everything is exported, then loaded by one process of a stranger."""
    root = tmp_path_factory.mktemp("export")
    made = {}
    for family, kind in CASES:
        name = f"{family}-{kind.value}"
        change = _linear_only if kind is BLOCK else None
        tuned = make_tuned(family, kind, root / name / "base", change=change)
        export_merged(root / name / "merged", tuned)
        peft = export_peft(root / name / "peft", tuned, LowRankOptions(rank=64))
        made[name] = (tuned, root / name, peft)
    job = {
        "ids": tokens().tolist(),
        "out": str(root / "logits.safetensors"),
        "cases": {
            name: {part: str(folder / part) for part in ("base", "merged", "peft")}
            for name, (_, folder, _) in made.items()
        },
    }
    (root / "job.json").write_text(json.dumps(job))
    (root / "stranger.py").write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, "-I", str(root / "stranger.py"), str(root / "job.json")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(root / "logits.safetensors")
    return {name: Case(*parts, found) for name, parts in made.items()}


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize("form", ["merged", "peft"])
def test_a_stranger_gets_the_logits_of_the_plug_in(
    form: str, family: str, kind: AdapterKind, cases: dict[str, Case]
) -> None:
    name = f"{family}-{kind.value}"
    tuned = cases[name].tuned
    untuned = logits_of(tuned.model)
    with plugged_in(tuned.model, tuned.adapter, tuned.tensors):
        expected = logits_of(tuned.model)
    found = cases[name].found[f"{name}/{form}"]
    assert float((found - expected).abs().max()) < 1e-3
    assert float((found - untuned).abs().max()) > 1e-2  # the adapter matters


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    tuned = make_tuned("llama-tied", BLOCK, tmp_path / "base")
    before = weights_of(tuned.model)
    export_merged(tmp_path / "merged", tuned)
    export_peft(tmp_path / "peft", tuned)
    export_adapter(tmp_path / "adapter", tuned)
    assert all(torch.equal(before[name], v) for name, v in weights_of(tuned.model).items())


@pytest.mark.parametrize("family", ["llama", "gpt2-tied"])
def test_a_truncated_export_is_the_low_rank_model_that_the_gate_scored(
    family: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    tuned = make_tuned(family, BLOCK, tmp_path / "base")
    scored: list[dict[str, Tensor]] = []

    class Gate:
        def baseline(self) -> GateScore:
            return GateScore(0.5, 0.0)

        def score(self, adapter: dict[str, Tensor]) -> GateScore:
            scored.append(dict(adapter))
            return GateScore(0.6 if len(scored) == 1 else 0.575, 0.0)

    exported = export_peft(tmp_path / "peft", tuned, LowRankOptions(3, 0.7), Gate())
    with plugged_in(tuned.model, tuned.adapter, scored[1]):
        expected = logits_of(tuned.model)
    loaded = PeftModel.from_pretrained(tuned.model, tmp_path / "peft").eval()
    assert float((logits_of(loaded) - expected).abs().max()) < 1e-3
    assert exported.kept_share == pytest.approx(0.75)
    description = json.loads((tmp_path / "peft" / DESCRIPTION).read_text())
    assert description["kept_share_of_gain"] == pytest.approx(0.75)
    assert description["kept_share_of_squared_change"] == exported.kept_energy < 0.9
    assert description["base_fingerprint_sha256"] == "ab" * 32
    assert description["dropped_tensors"] == list(exported.dropped) != []
    assert description["files_sha256"]["adapter_model.safetensors"] == exported.sha256
    readme = (tmp_path / "peft" / README).read_text()
    assert "kept share of gain: 0.75" in readme and "dropped tensors: " in readme


def test_the_adapter_file_is_the_adapter(tmp_path: Path) -> None:
    tuned = make_tuned("llama", LORA, tmp_path / "base")
    export_adapter(tmp_path / "adapter", tuned)
    path = tmp_path / "adapter" / ADAPTER_FILE
    assert read_header(path) == tuned.adapter.specs(tuned.model)
    found = load_file(path)
    assert all(torch.equal(found[name], value) for name, value in tuned.tensors.items())
    description = json.loads((tmp_path / "adapter" / DESCRIPTION).read_text())
    assert description["adapter"] == {**LORA_SPEC, "trains": "b"}
    assert description["layer_map"]["kept"] == [0, 1, 2, 4]


def test_an_untouched_adapter_is_not_exported_to_peft(tmp_path: Path) -> None:
    tuned = make_tuned("llama", BLOCK, tmp_path / "base", change=untouched)
    with pytest.raises(ConfigError, match="no change to export"):
        export_peft(tmp_path / "peft", tuned)
    assert not (tmp_path / "peft").exists()


def test_an_export_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    tuned = make_tuned("llama", LORA, tmp_path / "base")
    export_adapter(tmp_path / "out", tuned)
    export_adapter(tmp_path / "out", tuned)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        export_adapter(tmp_path / "mine", tuned)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not list(tmp_path.glob(".*partial"))
