"""`python -m benchmarks.emulators` end to end with a tiny model: what it prints, how it resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from benchmarks.emulators import __main__ as program
from benchmarks.emulators.rows import ROWS, read_rows
from benchmarks.emulators.settings import Settings
from tests.benchmarks.inputs import records, write_inputs, write_rows

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs with a tiny model, and rows beside them."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_rows(folder / "rows.toml")
    return folder


def arguments(inputs: Path, out: Path, workers: int = 1) -> list[str]:
    given = ["--quick", "--inputs", str(inputs), "--rows", str(inputs / "rows.toml")]
    return [*given, "--out", str(out), "--workers", str(workers)]


def run(monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.emulators", *given])
    program.main()


def lines_of(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_it_prints_a_line_for_each_seed_and_a_summary_and_measures_nothing_twice(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [
        *arguments(inputs, tmp_path / "out"),
        "--seeds",
        "2",
        "--table",
        str(tmp_path / "t.md"),
    ]
    run(monkeypatch, given)
    lines = lines_of(capsys.readouterr().out)
    by_kind = {kind: [x for x in lines if x["what"] == kind] for kind in {x["what"] for x in lines}}
    assert sorted((x["row"], x["seed"]) for x in by_kind["seed"]) == [
        ("uniform", 0),
        ("uniform", 1),
        ("width-nf4", 0),
        ("width-nf4", 1),
    ]
    assert [x["row"] for x in by_kind["summary"]] == ["uniform", "width-nf4"]
    assert [x["row"] for x in by_kind["refused"]] == ["impossible"]
    assert "smallest ratio" in str(by_kind["refused"][0]["reason"])
    for line in by_kind["seed"]:
        gap = float(str(line["plug_in"])) - float(str(line["emulator_tuned"]))
        assert float(str(line["gap"])) == pytest.approx(gap, abs=1e-4)
        assert float(str(line["bytes_shipped"])) > 1000
    uniform, packed = by_kind["summary"]
    assert uniform["verbatim_middle"] == [0.5, 0.0] and packed["verbatim_middle"] != [0.5, 0.0]
    table = (tmp_path / "t.md").read_text()
    assert "| uniform |" in table and "| width-nf4 |" in table
    # Again: everything is there, so nothing is added and the same is printed.
    before = records(tmp_path / "out")
    run(monkeypatch, given)
    again = lines_of(capsys.readouterr().out)
    assert records(tmp_path / "out") == before
    assert sorted(map(str, again)) == sorted(map(str, lines))
    assert not list((tmp_path / "out" / "rows").glob("*"))  # bundles are gone with their rows


def test_a_killed_run_goes_on_where_it_was(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.emulators", *arguments(inputs, out, workers=2)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (out / "records.jsonl").exists() and len(records(out)) >= 3, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    assert len(workers) == 2
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]  # nobody works on unseen
    killed = records(out)
    with (out / "records.jsonl").open("ab") as file:
        file.write(b'{"stage": "tuned", "inpu')
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = records(out)
    assert found[: len(killed)] == killed
    keys = [json.dumps([record["stage"], record["inputs"]]) for record in found]
    assert len(set(keys)) == len(keys)
    assert {line["row"] for line in lines_of(done.stdout) if line["what"] == "summary"} == {
        "uniform",
        "width-nf4",
    }


FEATURES = ("uniform-62-distilled", "gradient-62-int8", "width-62-spread")
TWINS = ("svd-62-middle-lora", "svd-62-middle-lora-corrected")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((*FEATURES, *TWINS), id="one of each feature"),
        # A minute on a quiet core.
        pytest.param(tuple(row.name for row in read_rows(ROWS)), id="all", marks=pytest.mark.slow),
    ],
)
def test_rows_of_the_table_can_be_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
) -> None:
    short = Settings(
        steps=2,
        micro_batch_tokens=2048,
        whole_block_rates=(1e-3, 2e-3),
        lora_rates=(1e-3,),
        upper_whole_block_rates=(1e-3,),
        upper_lora_rates=(1e-3,),
        calibration_tokens=2048,
        distil_tokens=64,
        distil_row_tokens=32,
        heal_steps=2,
        heal_tokens=64,
        heal_row_tokens=32,
        heal_rank=2,
    )
    monkeypatch.setattr(program, "QUICK", short)
    inputs = write_inputs(tmp_path / "inputs", hidden=64, blocks=12)
    text = ROWS.read_text().replace("distil_steps = 300", "distil_steps = 2")
    write_rows(inputs / "rows.toml", text)
    run(monkeypatch, [*arguments(inputs, tmp_path / "out"), "--methods", ",".join(names)])
    lines = lines_of(capsys.readouterr().out)
    assert not [line for line in lines if line["what"] == "refused"]
    assert [line["row"] for line in lines if line["what"] == "summary"] == list(names)
    stages = [record["stage"] for record in records(tmp_path / "out")]
    twins = sum(name.endswith("-corrected") for name in names)
    assert stages.count("tuned") == stages.count("build") == len(names) - twins
    corrected = [r for r in records(tmp_path / "out") if "corrected" in dict(r["outcome"])]  # type: ignore[call-overload]
    assert len(corrected) == twins


def test_an_unknown_task_is_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="trivia"):
        run(monkeypatch, [*arguments(inputs, tmp_path), "--tasks", "trivia"])


def wait_for(condition: "object", process: "subprocess.Popen[bytes]") -> None:
    """Until it holds; the process must go on meanwhile."""
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
