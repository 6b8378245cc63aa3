"""Work spread over processes, one thread of arithmetic each where there are as many as cores.

A second core adds little to one process here (`docs/log.md`), so two processes make more of two
cores than one. Each is told its next unit on standard input and says when it is done; one whose
parent is gone ends at once, so that a killed benchmark leaves nothing behind that would work on.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

Units = Mapping[str, Callable[[], None]]
"""Pieces of work by name; every process knows the same ones."""

ORPHANED = 3


def run_here(units: Units, finished: Callable[[str], None]) -> None:
    """All units in this process."""
    for name, work in units.items():
        _timed(name, work)
        finished(name)


def run_spread(
    names: Sequence[str], command: Sequence[str], workers: int, finished: Callable[[str], None]
) -> None:
    """All units in as many processes of `command`; `finished` is called in one thread at a time.

    Raises:
        SystemExit: a process failed; the others are ended, and what they recorded stays.
        Whatever `finished` raised, with the processes ended too.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    lock, failed, errors = threading.Lock(), list[str](), list[BaseException]()
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes = [_start(command, threads) for _ in range(workers)]

    def feed(process: "subprocess.Popen[str]") -> None:
        while not failed and not errors:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                break
            if not _does(process, name):
                failed.append(name)
                _end(processes)
                return
            with lock:
                finished(name)
        _say(process, "")  # no more work
        process.wait()

    def feed_or_say(process: "subprocess.Popen[str]") -> None:
        try:
            feed(process)
        except BaseException as error:  # noqa: BLE001 - a thread ends unseen
            errors.append(error)
            _end(processes)

    feeders = [threading.Thread(target=feed_or_say, args=(process,)) for process in processes]
    try:
        for feeder in feeders:
            feeder.start()
        for feeder in feeders:
            feeder.join()
    finally:
        _end(processes)
    if errors:
        raise errors[0]
    if failed:
        raise SystemExit(f"{failed[0]} failed; what was measured stays, and a new run goes on")


def _does(process: "subprocess.Popen[str]", name: str) -> bool:
    """Whether the process did this unit."""
    assert process.stdout is not None
    return _say(process, name) and process.stdout.readline().strip() == name


def _say(process: "subprocess.Popen[str]", line: str) -> bool:
    """False if the process is gone."""
    assert process.stdin is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except OSError:
        return False
    return True


def serve(units: Units) -> None:
    """The other side: a process that works until an empty line arrives."""
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line.strip())
        os._exit(ORPHANED)

    threading.Thread(target=listen, daemon=True).start()
    while name := asked.get():
        _timed(name, units[name])
        print(name, flush=True)


def _start(command: Sequence[str], threads: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _end(processes: "Sequence[subprocess.Popen[str]]") -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _timed(name: str, work: Callable[[], None]) -> None:
    started = time.monotonic()
    work()
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
