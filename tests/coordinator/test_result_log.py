"""The log of results only grows, and its signed head says what is in it."""

from pathlib import Path

import pytest
from tests.coordinator.fleet import COORDINATOR, Fleet, campaign

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.secure_sums.result_log import HEAD, LOG
from offsite.coordinator.secure_sums.secure_sum import RESULT
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.results import ResultTable
from offsite.secure.aggregation.messages import Result, opened
from offsite.secure.aggregation.result_log import Head, check_grew, check_log, open_head, read_log
from offsite.secure.errors import MachineError

pytestmark = pytest.mark.usefixtures("no_fsync")


def read_head(folder: Path) -> Head:
    return open_head((folder / HEAD).read_bytes(), COORDINATOR.public)


def test_every_result_stands_in_a_log_that_only_grows(tmp_path: Path) -> None:
    folder, heads, fleet = tmp_path / "evidence", [], Fleet()
    for rounds in (1, 3):  # the second campaign has another number of rounds: it is a new one
        run_campaign(campaign(tmp_path, fleet, rounds=rounds))
        heads.append(read_head(folder))
    leaves = read_log((folder / LOG).read_bytes())
    assert [head.size for head in heads] == [1, 4]
    check_log(leaves, heads[1])
    check_grew(leaves, heads[0])
    assert all(opened(Result, leaf, COORDINATOR.public) for leaf in leaves)
    stored = {path.read_bytes() for path in folder.glob(f"*/{RESULT}")}
    assert stored == set(leaves)


def test_a_result_is_never_replaced(tmp_path: Path) -> None:
    table = ResultTable(Database(tmp_path / "db"))
    for _ in range(2):
        table.add("1.1.1.0", b"one")
    with pytest.raises(MachineError, match="another one"):
        table.add("1.1.1.0", b"two")
    assert table.all() == [b"one"]
