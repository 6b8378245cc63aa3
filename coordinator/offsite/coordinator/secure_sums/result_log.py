"""The log of all results on disk, beside the evidence; what it is: `aggregation.result_log`.

evidence/log        every signed result, in order
evidence/log.head   its signed head
"""

from pathlib import Path
from typing import Final, Protocol

from offsite.emulator.durable import write_atomic
from offsite.secure.aggregation.result_log import head_of, log_bytes, sign_head
from offsite.secure.identity import IdentityKey

LOG: Final = "log"
HEAD: Final = "log.head"


class Results(Protocol):
    """The rows of the log."""

    def add(self, sum_id: str, result: bytes) -> None: ...
    def all(self) -> list[bytes]: ...


def publish(results: Results, sum_id: str, result: bytes, folder: Path, key: IdentityKey) -> None:
    """Appends a result, unless it is there; the files follow the rows."""
    results.add(sum_id, result)
    leaves = results.all()
    write_atomic(folder / LOG, log_bytes(leaves))
    write_atomic(folder / HEAD, sign_head(head_of(leaves), key))
