"""The adapter and the strategy's state after each round, as files of the state folder.

safetensors, named by campaign, round and attempt, written durably before the row that names them
with their digest; a file that no row names is left over from a kill and is overwritten.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from offsite.coordinator.tables.campaigns import FileRef
from offsite.emulator.durable import write_atomic
from offsite.emulator.schema import TensorSpec, tensors_from_bytes, tensors_to_bytes
from offsite.secure.errors import IntegrityError, MachineError


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The folder `adapters` of a state folder."""

    root: Path
    """The state folder; paths in rows are relative to it."""
    folder: str = "adapters"

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> FileRef:
        """Put `tensors` into `<name>.safetensors`; on disk when this returns."""
        data = tensors_to_bytes(dict(tensors))
        path = f"{self.folder}/{name}.safetensors"
        (self.root / self.folder).mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / path, data)
        return FileRef(path, hashlib.sha256(data).digest())

    def read(self, ref: FileRef, schema: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """The tensors of a file, in the order of `schema`, after digest and schema.

        Raises:
            MachineError: the file is gone.
            IntegrityError: it is not what was written.
        """
        try:
            data = (self.root / ref.path).read_bytes()
        except OSError as error:
            raise MachineError(
                f"{self.root / ref.path}: expected the adapter of a closed round, {error.strerror};"
                " restore the state folder from a backup"
            ) from error
        if hashlib.sha256(data).digest() != ref.sha256:
            raise IntegrityError(f"{self.root / ref.path}: changed since it was written")
        tensors = tensors_from_bytes(data, schema)
        return {name: tensors[name] for name in schema}
