"""The main job with real processes, real TLS and real Flower, from token to exported adapter."""

import json
import subprocess
import sys
from pathlib import Path

from tests.system.programs import ENVIRONMENT, Owner, join, result, run, started

LOADS = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, folder = sys.argv[1], Path(sys.argv[2])
ids = torch.arange(1, 33).reshape(1, 32)
merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
full = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
peft = PeftModel.from_pretrained(full, folder / "peft")
with torch.no_grad():
    logits = [model(ids).logits for model in (merged, peft)]
assert "offsite" not in sys.modules
print(json.dumps({"difference": (logits[0] - logits[1]).abs().max().item()}))
"""


def test_two_edges_tune_and_the_owner_exports(owner: Owner, released: Path, tmp_path: Path) -> None:
    tokens = {name: owner.token(name) for name in ("a", "b")}
    edges = {
        name: join(token, released / f"{name}.jsonl", tmp_path / name)
        for name, token in tokens.items()
    }
    with (
        started(*owner.serve()) as coordinator,
        started(*edges["a"]) as first,
        started(*edges["b"]) as second,
    ):
        assert first.end() == 0, first.text
        assert second.end() == 0, second.text
        assert coordinator.end() == 0, coordinator.text

    status = result("coordinator", "status", "--state", owner.state)
    assert status["campaign"]["state"] == "ended"  # type: ignore[index]
    rounds = status["rounds"]
    assert isinstance(rounds, list) and [r["updates"] for r in rounds] == [2.0, 2.0]

    table = result("coordinator", "evaluate", "--state", owner.state)
    assert table["released"] is True
    assert {"full_zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in"} <= table.keys()

    out = tmp_path / "export"
    result("coordinator", "export", "--state", owner.state, "--out", out, "--rank", "64")
    # At rank 64 of 64 the low-rank form loses the norms' changes alone, which are tiny here.
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, released / "model", out],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(loaded.stdout)["difference"] < 0.05

    inspected = result(
        "edge-client", "inspect", tmp_path / "a" / "bundle", "--state", tmp_path / "a"
    )
    assert inspected["accepted"] is True
    known = result("edge-client", "status", "--state", tmp_path / "a")
    assert known["client"] == "a" and known["updates_not_yet_sent"] == 0


def test_a_second_coordinator_on_the_same_state_is_refused(owner: Owner) -> None:
    with started(*owner.serve()) as first:
        first.read_until("serving release")
        second = run(*owner.serve())
    assert second.returncode == 7
    assert "another process uses" in second.stderr


def test_an_empty_data_file_is_refused_before_anything_happens(
    owner: Owner, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    done = run(*join(owner.token("a"), tmp_path / "empty.jsonl", tmp_path / "edge"))
    assert done.returncode == 3
    assert "empty.jsonl" in done.stderr and "expected" in done.stderr
    assert not (tmp_path / "edge").exists()


def test_a_token_that_was_cut_is_named_as_such(released: Path, tmp_path: Path) -> None:
    done = run(*join("offsite1.abc", released / "a.jsonl", tmp_path / "edge"))
    assert done.returncode == 4
    assert "token" in done.stderr
