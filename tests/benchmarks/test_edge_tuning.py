"""`python -m benchmarks.edge_tuning` with tiny models: all four ways run and are compared."""

import argparse
import json
from pathlib import Path

import pytest
from benchmarks.edge_tuning import __main__ as program
from benchmarks.edge_tuning.models import write_bundles, write_random
from benchmarks.edge_tuning.ways import Batch, measure
from tests.tiny import save_tokenizer

from offsite.emulator.methods.method import MethodName


def test_every_way_tunes_and_says_what_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    write_random(tmp_path, 1e5, tmp_path / "tokenizer")
    write_bundles(tmp_path, MethodName.UNIFORM_DROP, 0.5)
    capsys.readouterr()
    for way in program.WAYS:
        measure(way, tmp_path, Batch(rows=2, width=16, steps=3))
    lines = {x["what"]: x for x in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == set(program.WAYS)
    assert all(line["tokens_per_s"] > 0 for line in lines.values())
    trained = {way: line["trained_parameters"] for way, line in lines.items()}
    assert trained["full"] > trained["offsite"] > trained["offsite_lora"]
    assert trained["full_lora"] > trained["offsite_lora"]


def test_ratios_compare_with_both_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        "full": {"peak_mb": 60.0, "tokens_per_s": 10.0},
        "full_lora": {"peak_mb": 30.0, "tokens_per_s": 20.0},
        "offsite": {"peak_mb": 20.0, "tokens_per_s": 30.0},
        "offsite_lora": {"peak_mb": 10.0, "tokens_per_s": 40.0},
    }
    given = argparse.Namespace(parameters=1e9, rows=1, width=512, method="uniform_drop", ratio=0.62)
    program._compare(lines, given)
    summary = json.loads(capsys.readouterr().out)
    assert summary["offsite_memory_vs_full"] == 3.0
    assert summary["offsite_lora_memory_vs_full_lora"] == 3.0
    assert summary["offsite_throughput_vs_full_lora"] == 1.5
    assert summary["offsite_lora_throughput_vs_full"] == 4.0
