"""How much memory this machine can still give. Everything that asks an operating system is here.

On Linux it is the least of `MemAvailable` and what every control group above this process leaves of
its limit; a container sees the memory of its host in `/proc/meminfo`, so both count. A group's file
cache that can be dropped counts as free, as it does in `MemAvailable`. Elsewhere it is the physical
memory, for want of a better number, or nothing.

Source: proc_meminfo(5); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_UNLIMITED: Final = 1 << 60
"""A limit of version 1 is a huge number where there is none."""


def free_bytes(root: Path = Path("/")) -> int | None:
    """What can be allocated now; None where the system does not say. `root` is for tests."""
    found = [*_meminfo(root), *_groups(root)]
    return max(min(found), 0) if found else _physical()


def _meminfo(root: Path) -> Iterator[int]:
    text = _read(root / "proc/meminfo") or ""
    if match := re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE):
        yield int(match[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    """What is left of the limit of each control group of this process, of either version."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory"
            yield from _left(folder, path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _left(top: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    """Of a group and all above it; inside a container the path may lead nowhere, the top does."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        folder = top.joinpath(*parts[:depth])
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            yield limit - usage + _droppable(folder)


def _droppable(folder: Path) -> int:
    text = _read(folder / "memory.stat") or ""
    found = dict(re.findall(r"^(total_inactive_file|inactive_file) (\d+)$", text, re.MULTILINE))
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdecimal() else None  # "max" where there is no limit


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
