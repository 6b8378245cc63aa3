"""The file of a run: whole or not there, private, and bound to its plan and data."""

import errno
import os
from pathlib import Path

import pytest
import torch

from offsite.edge_client.checkpoint import Binding, Checkpoint, Snapshot
from offsite.secure.errors import DiskFullError, MachineError

NUMBERS = {"step": 3, "loss": 0.1 + 0.2, "best": float("inf")}
TENSORS = {
    "master/top.0.w": torch.randn(3, 4),
    "step/top.0.w": torch.tensor(3.0),
    "losses": torch.randn(3, dtype=torch.float64),
}


def checkpoint(folder: Path, *, plan: str = "a", data: str = "b") -> Checkpoint:
    return Checkpoint(folder / "tuning.safetensors", Binding(plan, data))


def test_it_returns_what_was_saved(tmp_path: Path) -> None:
    checkpoint(tmp_path).save(Snapshot({"step": 1}, {}))
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    found = checkpoint(tmp_path).load()
    assert found is not None
    assert found.numbers == NUMBERS
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype is tensor.dtype


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    assert checkpoint(tmp_path).path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["tuning.safetensors"]


def test_there_is_none_before_one_was_saved_and_after_it_was_removed(tmp_path: Path) -> None:
    assert checkpoint(tmp_path).load() is None
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    checkpoint(tmp_path).remove()
    checkpoint(tmp_path).remove()
    assert checkpoint(tmp_path).load() is None


@pytest.mark.parametrize("other", [{"plan": "c"}, {"data": "c"}])
def test_it_is_bound_to_plan_and_data(tmp_path: Path, other: dict[str, str]) -> None:
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    assert checkpoint(tmp_path, **other).load() is None


def test_any_cut_is_noticed(tmp_path: Path) -> None:
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    path = checkpoint(tmp_path).path
    data = path.read_bytes()
    for size in (0, 7, 8, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert checkpoint(tmp_path).load() is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoint(tmp_path).save(Snapshot({"step": 1}, TENSORS))

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(DiskFullError, match="no room for the checkpoint"):
            checkpoint(tmp_path).save(Snapshot({"step": 2}, TENSORS))
    found = checkpoint(tmp_path).load()
    assert found is not None and found.numbers == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["tuning.safetensors"]


def test_what_the_system_refuses_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(MachineError, match="Input/output error"):
            checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    assert list(tmp_path.iterdir()) == []
    checkpoint(tmp_path).path.mkdir()  # cannot be read
    assert checkpoint(tmp_path).load() is None


def test_what_a_kill_left_half_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tuning.safetensors.part").write_bytes(b"half")
    checkpoint(tmp_path).save(Snapshot(NUMBERS, TENSORS))
    assert checkpoint(tmp_path).load() is not None
