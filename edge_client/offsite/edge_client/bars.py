"""Progress of several long pieces of work, one after the other, each shown while it lasts.

Two live bars cannot share a terminal, and a report does not know when its work begins or ends: a
bar opens with the first report of its label and closes with the last, or when another one begins.
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from offsite.emulator.progress import Report
from offsite.emulator.terminal import Terminal


class Bars:
    """A context manager that closes the bar that is left open by an error."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._open = ExitStack()
        self._label: str | None = None
        self._report: Report | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def bar(self, label: str) -> Report:
        """A report that shows itself under `label`."""

        def report(done: int, total: int) -> None:
            if label != self._label or done < total:
                self._shown(label)(done, total)
            elif self._report is not None:
                self._report(done, total)
            if done >= total:  # said once: what is done may be reported again
                self._close()

        return report

    def _shown(self, label: str) -> Report:
        if label != self._label or self._report is None:
            self._close()
            self._label = label
            self._report = self._open.enter_context(self._terminal.progress(label))
        return self._report

    def _close(self) -> None:
        self._report = None
        self._open.close()
