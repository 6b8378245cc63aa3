"""The adapter and the strategy's state after each round, as files of the state folder.

safetensors, named by campaign, round and attempt, written durably before the row that names them
with their digest; a file that no row names is left over from a kill and is overwritten.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from offsite.coordinator.stored_tensors import StoredTensors
from offsite.coordinator.tables.campaigns import FileRef
from offsite.emulator.durable import sha256_of, write_atomic_parts
from offsite.emulator.schema import (
    TensorFile,
    TensorSpec,
    load_checked,
    read_header,
    tensors_to_parts,
)
from offsite.secure.errors import IntegrityError, MachineError


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The folder `adapters` of a state folder."""

    root: Path
    """The state folder; paths in rows are relative to it."""
    folder: str = "adapters"

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> FileRef:
        """Put `tensors` into `<name>.safetensors`; on disk when this returns."""
        path = f"{self.folder}/{name}.safetensors"
        (self.root / self.folder).mkdir(parents=True, exist_ok=True)
        return FileRef(path, write_atomic_parts(self.root / path, tensors_to_parts(tensors)))

    def fits(self, ref: FileRef, schema: Mapping[str, TensorSpec]) -> bool:
        """Whether a file that is there holds tensors of these names, dtypes and shapes."""
        path = self.root / ref.path
        return not path.is_file() or read_header(path) == schema

    def lying(self, ref: FileRef, schema: Mapping[str, TensorSpec]) -> StoredTensors:
        """As `read`, but each tensor is read when it is asked for. The digest is compared now."""
        path = self.root / ref.path
        with _gone(path):
            _check_digest(path, ref)
            with TensorFile(path, schema):
                pass  # it holds these tensors

        def read(name: str) -> Tensor:
            with _gone(path), TensorFile(path, schema) as file:
                return file.read(name)

        return StoredTensors(schema, read)

    def read(self, ref: FileRef, schema: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """The tensors of a file, in the order of `schema`, after digest and schema.

        Raises:
            MachineError: the file is gone.
            IntegrityError: it is not what was written.
        """
        path = self.root / ref.path
        with _gone(path):
            _check_digest(path, ref)
            tensors = load_checked(path, schema)
        return {name: tensors[name] for name in schema}


def _check_digest(path: Path, ref: FileRef) -> None:
    if sha256_of(path) != ref.sha256:
        raise IntegrityError(f"{path}: changed since it was written")


@contextmanager
def _gone(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path}: expected the adapter of a closed round, {error.strerror};"
            " restore the state folder from a backup"
        ) from error
