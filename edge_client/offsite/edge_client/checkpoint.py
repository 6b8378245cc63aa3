"""A tuning run on disk, so that a killed one continues where it was, bit for bit.

One safetensors file per round: the masters, AdamW's moments, the loss of every step, the best
values of an early stop, and a small JSON text as the tensor `state`. One file, because two could
disagree. It is written to the side, synced and renamed, so there is a whole one or none.

Notable: no random state is in it. The order of examples and the seed of every step follow from
(seed, round, step), so the step number is the whole cursor.

Rules: it is bound to the plan's digest and the examples' digest; one of another plan, other data or
another format is not used, and neither is a damaged one: the run then starts afresh. Its mode is
0600, for it holds values that were tuned on private data. No pickle.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from offsite.emulator.durable import is_disk_full, machine_error, sync_folder
from offsite.emulator.schema import (
    encode_header,
    load_checked,
    read_header,
    spec_of,
    storage_order,
    tensor_bytes,
)
from offsite.secure.errors import DiskFullError, PeerError

FORMAT = 1
_STATE = "state"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a checkpoint belongs to, both hexadecimal SHA-256."""

    plan_sha256: str
    data_sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run after some steps: plain numbers by name, and tensors by name."""

    numbers: dict[str, float]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one run."""

    path: Path
    binding: Binding

    def save(self, snapshot: Snapshot) -> None:
        """Replace what is there by ``snapshot``, wholly or not at all.

        Raises:
            DiskFullError: there is no room; the checkpoint before is still there.
            MachineError: the system refuses to write it; likewise.
        """
        text = json.dumps(self._header() | {"numbers": snapshot.numbers}).encode()
        state = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        tensors = {**snapshot.tensors, _STATE: state}
        temporary = self.path.with_name(f"{self.path.name}.part")
        with _refusal_named(temporary):
            _write(temporary, tensors)
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)

    def load(self) -> Snapshot | None:
        """Return what was saved for this plan and data, or None."""
        try:
            tensors = load_checked(self.path, read_header(self.path))
            state = json.loads(bytes(tensors.pop(_STATE).numpy()))
            numbers = state.pop("numbers")
        except (OSError, PeerError, KeyError, ValueError):
            return None
        return Snapshot(numbers, tensors) if state == self._header() else None

    def remove(self) -> None:
        """Delete it, once what came of it is safe."""
        self.path.unlink(missing_ok=True)

    def _header(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "plan_sha256": self.binding.plan_sha256,
            "data_sha256": self.binding.data_sha256,
        }


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    schema = {name: spec_of(tensor) for name, tensor in tensors.items()}
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(encode_header(schema))
        file.writelines(tensor_bytes(tensors[name]) for name in storage_order(schema))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _refusal_named(temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not is_disk_full(error):
            raise machine_error(temporary, error) from error
        raise DiskFullError(
            f"{temporary.parent}: no room for the checkpoint; free some space, nothing was lost"
        ) from error
