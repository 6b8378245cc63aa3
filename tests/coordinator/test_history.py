"""What `coordinator history` shows, in words, as a document and as a picture."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from offsite.coordinator.commands.history import render
from offsite.coordinator.history import History, history_of
from offsite.coordinator.history_plot import write_history_plot
from offsite.coordinator.policy.orders import Command, Order
from offsite.coordinator.round_metrics import BASELINE, GATE, GATE_STDERR, ROLLED_BACK
from offsite.coordinator.tables.campaigns import CampaignState, CampaignTable, FileRef
from offsite.coordinator.tables.database import Database

NOW = 1_800_000_000.0
FILE = FileRef("a", b"a" * 32)


def _history(folder: Path, gate: bool = True) -> History:
    """Two rounds, a rollback that gives an attempt up, a third round, and one that regressed."""
    table = CampaignTable(Database(folder / "coordinator.sqlite"))
    row = table.create(b"r" * 32, "{}", NOW)
    campaign = row.campaign_id

    def close(number: int, acc: float, at: float, **more: float) -> None:
        counts = {"updates": 4.0, "refused": 1.0, "late": 0.0, "dropped": 2.0}
        judged = {GATE: acc, GATE_STDERR: 0.01, BASELINE: 0.5} if gate else {}
        opened = table.open_round(campaign, number, NOW + at)
        table.close_round(opened, FILE, None, counts | judged | more, NOW + at + 30)

    close(1, 0.6, 0)
    close(2, 0.7, 60)
    table.open_round(campaign, 3, NOW + 120)
    table.give_order(campaign, Order(Command.ROLLBACK, "too", to_round=1), NOW + 130)
    close(3, 0.65, 140)
    close(4, 0.2, 200, **{ROLLED_BACK: 1.0})
    table.set_state(campaign, CampaignState.ENDED, NOW + 300, "round 3 of 4 is best")
    found = table.get(campaign)
    assert found is not None
    return history_of(table, found)


def test_every_attempt_and_every_order_is_shown(tmp_path: Path) -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(_history(tmp_path)))
    lines = [" ".join(line.replace("│", " ").split()) for line in capture.get().splitlines()]
    rows = [line for line in lines if line[:1].isdigit()]
    assert rows[:5] == [
        "1 1 closed 2027-01-15 08:00:00 30.0 4 3 0.6000 ± 0.0100",
        "2 1 closed 2027-01-15 08:01:00 30.0 4 3 0.7000 ± 0.0100",
        "3 1 abandoned 2027-01-15 08:02:00 10.0 0 0 - by order of the owner",
        "3 2 closed 2027-01-15 08:02:20 30.0 4 3 0.6500 ± 0.0100 best",
        "4 1 closed 2027-01-15 08:03:20 30.0 4 3 0.2000 ± 0.0100 the gate had regressed",
    ]
    assert rows[5] == "2027-01-15 08:02:10 rolled back to round 1 after round 2: too"
    assert "gate of the full model: 0.5000" in lines and "round 3 of 4 is best" in lines


def test_the_document_says_the_same(tmp_path: Path) -> None:
    document = json.loads(json.dumps(_history(tmp_path).to_json()))
    assert (document["stage"], document["best_round"], document["full_acc"]) == ("ended", 3, 0.5)
    assert [r["gate"] for r in document["rounds"]] == [0.6, 0.7, None, 0.65, 0.2]
    (order,) = document["orders"]
    assert (order["order"], order["to_round"], order["after_round"]) == ("rollback", 1, 2)


@pytest.mark.parametrize("gate", [True, False])
def test_a_picture_is_drawn_and_equal_histories_give_equal_files(
    gate: bool, tmp_path: Path
) -> None:
    history = _history(tmp_path, gate)
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    assert all(write_history_plot(path, history) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    root = ElementTree.parse(paths[0]).getroot()
    texts = [text for text in root.itertext() if text.strip()]
    assert "round" in texts and "edges" in texts
    assert ("full model" in texts) == gate == ("no gate judged a round" not in texts)


def test_nothing_is_drawn_before_a_round_is_closed(tmp_path: Path) -> None:
    table = CampaignTable(Database(tmp_path / "coordinator.sqlite"))
    row = table.create(b"r" * 32, "{}", NOW)
    table.open_round(row.campaign_id, 1, NOW)
    assert not write_history_plot(tmp_path / "a.svg", history_of(table, row))
    assert not (tmp_path / "a.svg").exists()
