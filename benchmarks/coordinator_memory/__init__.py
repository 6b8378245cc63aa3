"""How much memory a coordinator takes for the updates of a round, above what it takes idle.

    python -m benchmarks.coordinator_memory [--quick] [--clients 200] [--mb 40]

A coordinator and its clients in processes of their own, over mutual TLS on loopback, with the durable
mailbox, spool and database. All clients are connected at once and send a masked vector of `--mb` at the
same time; the coordinator adds them up as they come, as in phase 3 of a secure sum, keeps each as
evidence, and at the end compares the sum with what was sent.

`idle_mb` is the coordinator with its service up and every client connected; `above_idle_mb` what its peak
had more. Peaks are those of the resident set (VmHWM), and of its anonymous part: pages of files that the
kernel may drop are not memory that a coordinator needs. `first_s` and `last_s` say when the first and the
last client were in the sum: none is starved. Goal: at most 300 MB above idle for 200 uploads of 40 MB.

What a whole round takes for one large update is measured by `benchmarks.engines`.

JSON lines; the last one is a summary.
"""
