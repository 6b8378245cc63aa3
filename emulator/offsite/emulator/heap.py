"""Keeps freed buffers in the process, so that streams and tensors do not fault them in again.

Under its defaults glibc returns every freed buffer above 128 KiB to the kernel, or gives back the
top of the heap as soon as 128 KiB of it are free, and the next buffer of the same size is faulted
in and zeroed page by page. For chunks of 256 KiB, allocated several times each on their way
through gRPC and TLS, that was 1.8 million page faults per GiB. The gain in rate was threefold in one
experiment and 1.0 to 1.15 by median in others (`docs/log.md`); what is certain is the faults.

The values are those that glibc itself reaches by its dynamic rule when a program frees a 32 MiB
buffer (`M_MMAP_THRESHOLD` in mallopt(3)): nothing here is more than a head start. The price is at
most 64 MiB of freed memory that stays with the process.
"""

import ctypes
import sys
from functools import cache
from typing import Final

from offsite.secure import limits

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
MMAP_THRESHOLD_BYTES: Final = 32 * limits.MIB
TRIM_THRESHOLD_BYTES: Final = 64 * limits.MIB


@cache
def keep_freed_buffers() -> bool:
    """Sets glibc's thresholds, once per process; False where the C library is another one."""
    library = _glibc()
    if library is None:
        return False
    # Setting either switches the dynamic rule off, so both are set or neither matters.
    accepted = library.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    return bool(accepted and library.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


def give_back_freed_memory() -> bool:
    """Returns every free page of the heap to the kernel; False where the C library is another one.

    For what frees and makes many tensors of slightly different sizes below 32 MiB: the holes that
    one kind leaves do not fit the next, and stay with the process.
    """
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
