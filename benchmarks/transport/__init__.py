"""How fast, how lean and how resumable a release travels: `python -m benchmarks.transport`.

A server process and a client process on loopback, mutual TLS, the real service and the real
fetching code; the release is one file of random bytes with a real signed manifest. A whole bundle
is checked once more after it arrived (`open_bundle`); that is not transport and not measured.

Baselines: a bare gRPC server-stream of the same chunks of the same file over the same TLS, read by
a generated stub that counts bytes and drops them.
    bare        gRPC as it comes, in processes of its own; the ratio refers to it
    bare_tuned  the same with the allocator settings of `offsite.emulator.heap`, from the real server
All take turns, so that a busy machine disturbs all. A fetch does more than `bare_tuned` does: it
hashes every byte (about 0.5 s of processor time per GiB) and writes it (about 0.25 s).

Prints one JSON line per measurement and a summary:
    {"what": "bare" | "bare_tuned" | "fetch", "run": n, "seconds": s, "cpu_s": client's, ...}
    {"what": "resume", ...}   a client killed (SIGKILL) at half, and what its successor was sent
    {"what": "summary", "ratio": fetch / bare by medians, "client_peak_mb": above idle, ...}
"""
