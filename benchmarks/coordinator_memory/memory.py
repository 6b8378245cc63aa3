"""What a process takes: its resident set, sampled by itself."""

import threading
from pathlib import Path
from typing import Self

SAMPLE_S = 0.02


def resident_mb(field: str = "VmRSS") -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise AssertionError(f"no {field} in /proc/self/status")


class Peak:
    """The highest resident set, and the highest anonymous one, while the block lasts."""

    def __init__(self) -> None:
        self.resident_mb = 0.0
        self.anonymous_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        # From here on the kernel's own high-water mark counts from the present size.
        Path("/proc/self/clear_refs").write_text("5")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.resident_mb = resident_mb("VmHWM")

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.anonymous_mb = max(self.anonymous_mb, resident_mb("RssAnon"))
