"""What was measured, one JSON line each, so that nothing is measured twice.

A record says which stage it is of, what that depended on (the full model, settings, and digests of
the code, see `sources`), and the outcome:

    {"stage": "tuned", "inputs": {"emulator": "…", "task": "piqa", "seed": 1, …}, "outcome": {…},
     "s": seconds, "cpu_s": of them on a processor}

Rules: a record is appended whole and synced before the work goes on; a line that a kill cut off is
skipped by readers, and the next record starts on a line of its own; several processes may append.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

Json = dict[str, object]
Inputs = Mapping[str, str | int | float]


class Ledger:
    """The records of one folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock")
        self._records: dict[str, Json] = {}
        self._read_bytes = 0

    def find(self, stage: str, inputs: Inputs) -> Json | None:
        """The outcome of a stage, if any process has recorded it."""
        key = _key(stage, inputs)
        if key not in self._records:
            self._read_on()
        return self._records.get(key)

    def once(self, stage: str, inputs: Inputs, measure: Callable[[], Json]) -> Json:
        """The outcome that is recorded, or else that of `measure`, which is then recorded."""
        found = self.find(stage, inputs)
        if found is not None:
            return found
        started, cpu_started = time.monotonic(), time.process_time()
        outcome = measure()
        took = {"s": time.monotonic() - started, "cpu_s": time.process_time() - cpu_started}
        return self.add(stage, inputs, outcome, took)

    def add(
        self, stage: str, inputs: Inputs, outcome: Json, took: Mapping[str, float] | None = None
    ) -> Json:
        """Record an outcome, and what it took; return it as it will be read."""
        record: Json = {"stage": stage, "inputs": dict(inputs), "outcome": outcome}
        record |= {name: round(value, 2) for name, value in (took or {}).items()}
        line = json.dumps(record, sort_keys=True).encode() + b"\n"
        with self._lock, self._path.open("ab+") as file:
            if file.tell() and not _ends_a_line(file.fileno(), file.tell()):
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._read_on()
        return self._records[_key(stage, inputs)]

    def _read_on(self) -> None:
        """Take in the whole lines that were added since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            key = _key(record["stage"], record["inputs"])
            self._records.setdefault(key, record["outcome"])
        except (ValueError, KeyError, TypeError):
            return  # cut off by a kill


def _key(stage: str, inputs: Inputs) -> str:
    return json.dumps([stage, dict(inputs)], sort_keys=True)


def _ends_a_line(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"
