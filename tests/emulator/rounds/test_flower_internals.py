"""The contract with the parts of Flower that are not public; a new Flower must pass this first."""

import logging
import re
import time
from pathlib import Path

import pytest
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.run import Run

from offsite.emulator.rounds import flower_internals


def test_a_message_can_be_made_after_the_identity_was_set() -> None:
    flower_internals.set_task_identity(run_id=7, node_id=1)
    message = Message(RecordDict(), dst_node_id=42, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 1)
    assert message.metadata.message_id == ""


def test_an_assigned_id_is_what_a_reply_refers_to() -> None:
    flower_internals.set_task_identity(run_id=7, node_id=1)
    message = Message(RecordDict(), dst_node_id=42, message_type="train")
    flower_internals.assign_message_id(message, "abc")
    reply = Message(RecordDict(), reply_to=message)
    assert message.metadata.message_id == "abc"
    assert reply.metadata.reply_to_message_id == "abc"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (42, 1)


def test_campaign_fields_of_metadata_have_public_setters() -> None:
    flower_internals.set_task_identity(run_id=7, node_id=1)
    message = Message(RecordDict(), dst_node_id=42, message_type="train")
    message.metadata.group_id, message.metadata.ttl = "1.1", 5.0
    assert (message.metadata.group_id, message.metadata.ttl) == ("1.1", 5.0)


@pytest.mark.parametrize("body", [RecordDict(), Error(3, "no")])
def test_a_message_with_given_metadata(body: RecordDict | Error) -> None:
    metadata = Metadata(1, "id", 2, 3, "other", "1", time.time(), 9.0, "train")
    message = flower_internals.message_with_metadata(metadata, body)
    assert message.metadata == metadata
    assert message.has_error() == isinstance(body, Error)


def test_an_empty_run() -> None:
    run = flower_internals.empty_run(5)
    assert isinstance(run, Run)
    assert run.run_id == 5


def test_flower_logs_no_chatter_when_quietened() -> None:
    flower_internals.quieten()
    assert not logging.getLogger("flwr").isEnabledFor(logging.INFO)
    from flwr.supercore.logger import FLOWER_LOGGER

    assert FLOWER_LOGGER.name == "flwr"


PUBLIC = re.compile(r"flwr\.(?:app|serverapp|serverapp\.strategy|clientapp|clientapp\.mod)")
IMPORT = re.compile(r"^\s*(?:from|import) (flwr[\w.]*)", re.MULTILINE)
ROOT = Path(__file__).parents[3]
EXECUTORS = ROOT / "emulator" / "offsite" / "emulator" / "engines" / "flower" / "internals.py"
"""What executors of tasks need; its contract is `tests/emulator/engines/test_flower_contract.py`."""
MEASURED = ROOT / "benchmarks" / "secure_aggregation" / "flower.py"
"""Measures Flower's own secure aggregation, which is not public; nothing of the product imports it."""


def test_no_other_file_imports_what_is_not_public() -> None:
    here = Path(flower_internals.__file__).resolve()
    roots = (
        "benchmarks",
        "coordinator",
        "edge_client",
        "emulator",
        "examples",
        "kernels",
        "secure",
    )
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for root in roots
        for path in (ROOT / root).rglob("*.py")
        if path.resolve() not in (here, EXECUTORS, MEASURED)
        for module in IMPORT.findall(path.read_text(encoding="utf-8"))
        if not PUBLIC.fullmatch(module)
    ]
    assert found == []
