"""Where a round's result stands in the coordinator's log, and whether the log only grew.

    evidence/log         every signed result, in order
    evidence/log.head    size and root of the tree over them, signed by the coordinator
    --head FILE          a copy of log.head that was kept earlier, by somebody else

The log on the coordinator's disk proves nothing by itself. A head that another party kept does: the
log of today must continue it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from offsite.audit.files import read_file
from offsite.secure.aggregation.result_log import Head, check_grew, check_log, open_head, read_log
from offsite.secure.errors import IntegrityError
from offsite.secure.identity import IdentityPublicKey

LOG: Final = "log"
HEAD: Final = "log.head"
LOG_BYTES: Final = 1 << 30
HEAD_BYTES: Final = 1 << 12
_ADVICE: Final = "copy log and log.head from the coordinator's evidence/"


@dataclass(frozen=True, slots=True)
class LogPlace:
    """What was established about a result in the log."""

    position: int
    """From 0."""
    head: Head
    continues: Head | None
    """The older head, kept by somebody else, that the log continues."""

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "position": self.position,
            "size": self.head.size,
            "root": self.head.root.hex(),
            "continues_size": None if self.continues is None else self.continues.size,
        }


def find_in_log(
    log: Path, result: bytes, coordinator: IdentityPublicKey, kept_head: Path | None
) -> LogPlace:
    """The place of a signed result in a log, whose head lies beside it.

    Raises:
        ConfigError: a file is missing.
        PeerError: the head is not the coordinator's or not that of this log, the result is not in
            it, or the log does not continue the head that was kept.

    Guarantees: a result that is missing, or a log that was rewritten since a head was kept, is
    refused (`test_a_rewritten_log_is_refused`).
    """
    results = read_log(read_file(log, LOG_BYTES, _ADVICE))
    head = open_head(read_file(log.with_name(HEAD), HEAD_BYTES, _ADVICE), coordinator)
    check_log(results, head)
    if result not in results:
        raise IntegrityError(
            f"expected this round's result in the log of {head.size}, found it nowhere: the "
            "coordinator left it out, or the log is older than the round"
        )
    older = None
    if kept_head is not None:
        advice = "give a copy of log.head that was kept earlier"
        older = open_head(read_file(kept_head, HEAD_BYTES, advice), coordinator)
        check_grew(results, older)
    return LogPlace(results.index(result), head, older)
