"""What a round starts from lies in files, and is what it would be in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.coordinator.fleet import ADAPTER, SCHEMA

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.replies import norm_of
from offsite.coordinator.stored_tensors import StoredTensors
from offsite.emulator.rounds.instruction import adapter_digest
from offsite.secure.errors import IntegrityError, MachineError


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    files = AdapterFiles(tmp_path)
    ref = files.write("one", ADAPTER)
    lying = files.lying(ref, SCHEMA)
    assert list(lying) == list(SCHEMA) and len(lying) == 2 and "nothing" not in lying
    assert adapter_digest(lying) == adapter_digest(files.read(ref, SCHEMA))
    assert all(torch.equal(lying[name], value) for name, value in ADAPTER.items())
    (tmp_path / ref.path).unlink()
    with pytest.raises(MachineError, match="restore the state folder"):
        lying["top.0.w"]


def test_a_changed_file_is_found_before_anything_is_read(tmp_path: Path) -> None:
    files = AdapterFiles(tmp_path)
    ref = files.write("one", ADAPTER)
    data = bytearray((tmp_path / ref.path).read_bytes())
    data[-1] ^= 1
    (tmp_path / ref.path).write_bytes(data)
    with pytest.raises(IntegrityError, match="changed since it was written"):
        files.lying(ref, SCHEMA)


def test_only_known_names_are_read() -> None:
    def read(name: str) -> torch.Tensor:
        raise AssertionError("must not be asked")

    with pytest.raises(KeyError):
        StoredTensors({"a": None}, read)["../b"]


def test_a_norm_is_that_of_the_whole_vector() -> None:
    values = np.random.default_rng(0).normal(size=(1 << 18) * 2 + 5).astype(np.float32)
    assert norm_of(values) == pytest.approx(
        float(np.linalg.norm(values.astype(np.float64))), rel=1e-12
    )
