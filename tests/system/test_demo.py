"""The demonstration as a check: the real model, the real questions, the numbers that it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # about eight minutes on two quiet cores, and 240 MB of downloads
@pytest.mark.timeout(3600)
def test_the_plug_in_beats_the_full_model_and_the_tuned_emulator() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["plug_in"] >= result["full_zero_shot"] + 0.03
    assert result["plug_in"] > result["emulator_tuned"]
    report = json.loads((ROOT / "build/demo/report.json").read_text())
    assert report["plug_in"]["questions"] >= 500
    assert (ROOT / "build/demo/export/peft/adapter_config.json").is_file()
    assert (ROOT / "build/demo/export/merged/config.json").is_file()
