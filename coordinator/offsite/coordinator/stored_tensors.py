"""Tensors that lie in files until somebody asks for one by its name.

What a round starts from is as large as an update and is needed three times for a moment: to name it by
digest, to send it, and to add the round's change to it. In between a sum takes hours, and nobody needs
the adapter in memory. Strategies go tensor by tensor, and so does whoever sends one.
"""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from offsite.emulator.bundle.bundle import Bundle


class StoredTensors(Mapping[str, Tensor]):
    """Reads a tensor whenever it is asked for; `names` in their order."""

    def __init__(self, names: Mapping[str, object], read: Callable[[str], Tensor]) -> None:
        self._names = tuple(names)
        self._known = frozenset(names)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def first_adapter(bundle: Bundle) -> StoredTensors:
    """The adapter of a release, as `Bundle.load_adapter` has it."""
    return StoredTensors(bundle.schema.adapter, bundle.read_adapter_tensor)
