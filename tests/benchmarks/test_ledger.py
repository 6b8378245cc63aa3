"""What was measured is not measured again, whatever happened to the process that measured it."""

from pathlib import Path

from benchmarks.emulators.ledger import Json, Ledger


def test_a_stage_is_measured_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> Json:
        calls.append(1)
        return {"acc": 0.5}

    ledger = Ledger(tmp_path / "records.jsonl")
    for _ in range(2):
        assert ledger.once("tuned", {"task": "piqa", "seed": 1}, measure) == {"acc": 0.5}
    again = Ledger(tmp_path / "records.jsonl")
    assert again.once("tuned", {"seed": 1, "task": "piqa"}, measure) == {"acc": 0.5}
    assert len(calls) == 1
    again.once("tuned", {"task": "piqa", "seed": 2}, measure)
    assert len(calls) == 2


def test_another_process_is_believed(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "records.jsonl"), Ledger(tmp_path / "records.jsonl")
    assert other.find("full", {"seed": 0}) is None
    one.add("full", {"seed": 0}, {"acc": 1.0})
    assert other.find("full", {"seed": 0}) == {"acc": 1.0}


def test_a_line_cut_off_by_a_kill_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Ledger(path).add("full", {"seed": 0}, {"acc": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    ledger = Ledger(path)
    assert ledger.find("full", {"seed": 0}) == {"acc": 1.0}
    ledger.add("full", {"seed": 1}, {"acc": 2.0})
    for reader in (ledger, Ledger(path)):
        assert reader.find("full", {"seed": 1}) == {"acc": 2.0}
