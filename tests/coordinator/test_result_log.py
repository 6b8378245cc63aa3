"""The log of results only grows, and its signed head says what is in it."""

from pathlib import Path

import pytest
from tests.coordinator.fleet import COORDINATOR, Fleet, campaign

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.secure_sums.result_log import HEAD, HEAD_TYPE, LOG
from offsite.coordinator.secure_sums.secure_sum import RESULT
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.results import ResultTable
from offsite.secure import envelope
from offsite.secure.aggregation import merkle
from offsite.secure.aggregation.encoding import Reader
from offsite.secure.aggregation.messages import Result, opened
from offsite.secure.errors import MachineError

pytestmark = pytest.mark.usefixtures("no_fsync")


def head_of(folder: Path) -> tuple[int, bytes]:
    """Size and root, if the coordinator signed them."""
    signed = envelope.from_bytes((folder / HEAD).read_bytes())
    reader = Reader(envelope.verify(signed, HEAD_TYPE, COORDINATOR.public), "head")
    return reader.integer("size", 0, 1 << 32), reader.exactly("root", 32)


def leaves_of(folder: Path) -> list[bytes]:
    reader = Reader((folder / LOG).read_bytes(), "log")
    found = []
    while not reader.is_done:
        found.append(reader.field("result", 1 << 16))
    return found


def test_every_result_stands_in_a_log_that_only_grows(tmp_path: Path) -> None:
    folder, heads, fleet = tmp_path / "evidence", [], Fleet()
    for rounds in (1, 3):  # the second campaign has another number of rounds: it is a new one
        run_campaign(campaign(tmp_path, fleet, rounds=rounds))
        heads.append(head_of(folder))
    leaves = leaves_of(folder)
    digests = [merkle.leaf_digest(leaf) for leaf in leaves]
    (old_size, old_root), (size, root) = heads
    assert (old_size, size, root) == (1, len(leaves), merkle.root(digests)) and size == 4
    proof = merkle.consistency_proof(digests, old_size)
    merkle.check_consistency(old_root, old_size, root, size, proof)
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
