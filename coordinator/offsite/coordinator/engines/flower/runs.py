"""Runs of a SuperLink whose ServerApp is this process.

    stop the run before ─> start a run of our bundle ─> claim its task ─> pull its input

The number of the run at hand is on the disk, so a coordinator that was killed ends what it left:
otherwise nodes would go on with instructions that nobody waits for. A task of any other run, which a
user of this machine may have started, is never done.
"""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from offsite.coordinator.engines.flower.superlink import SuperLink
from offsite.emulator.durable import write_atomic
from offsite.emulator.engines.flower.fab import fab, fab_sha256
from offsite.secure.errors import TransportError

if TYPE_CHECKING:
    from offsite.emulator.engines.flower.internals import Claim, Control, Loopback, ServerTask

CLAIM_S: Final = 60.0
"""How long the task of a run that was just started may take to be there."""
_POLL_S: Final = 0.1

_log = logging.getLogger(__name__)


class FlowerRuns:
    """Starts runs, one at a time."""

    def __init__(self, superlink: SuperLink) -> None:
        self._superlink = superlink
        self._number = superlink.folder / "run"

    def start(self) -> "ServerTask":
        """A new run; the one before is stopped.

        Raises:
            TransportError: the SuperLink does not come up, or gives us no task.
        """
        from offsite.emulator.engines.flower.internals import Control, ServerTask

        loopback = self._superlink.loopback
        control = Control(loopback)
        try:
            self._stop_the_one_before(control)
            run_id = control.start_run(fab(), fab_sha256())
            write_atomic(self._number, str(run_id).encode())
        finally:
            control.close()
        task = ServerTask(loopback, self._claim(loopback, run_id))
        try:
            task.start()
        except BaseException:
            task.close()
            raise
        _log.info("Flower carries the rounds as its run %d", run_id)
        return task

    def register(self, public_key_pem: bytes, client_id: str) -> None:
        """Lets a client's node in."""
        from offsite.emulator.engines.flower.internals import Control

        control = Control(self._superlink.loopback)
        try:
            control.register_node(public_key_pem, client_id)
        finally:
            control.close()

    def _stop_the_one_before(self, control: "Control") -> None:
        earlier = read_number(self._number)
        if earlier is not None:
            control.stop_run(earlier)

    def _claim(self, loopback: "Loopback", run_id: int) -> "Claim":
        from offsite.emulator.engines.flower.internals import TaskKind, TaskSource

        source = TaskSource(loopback, self._superlink.secret, TaskKind.SERVER)
        until = time.monotonic() + CLAIM_S
        try:
            while time.monotonic() < until:
                claim = source.acquire()
                if claim is not None and claim.run_id == run_id:
                    return claim
                if claim is not None:
                    _log.warning("left alone: a run of Flower that we did not start")
                time.sleep(_POLL_S)
        finally:
            source.close()
        raise TransportError(f"expected the task of run {run_id} within {CLAIM_S:.0f} s")


def read_number(path: Path) -> int | None:
    """The number in a file, if there is one."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None
