"""Seconds per round and peak memory of the coordinator, on our own engine and on stock Flower.

    python -m benchmarks.engines [--quick] [--mb 1 50 512] [--rounds 3]

Two clients, fp32 updates of so many MB, each engine in processes of its own on loopback with TLS, one
after the other in one run.

`grpc`: `run_campaign` on the durable grid behind our service, clients that are the real worker with
a ClientApp whose tuning is a formula. Signed plans, secure sums in six exchanges, files and rows
synced to disk: nothing is left out.

`flower`: the baseline, stock in every part: `flower-superlink`, two `flower-supernode`, `flwr run` of a
small app with Flower's own FedAvg. Its updates are plain, in one exchange, and its state is in
memory: it does less. Its server side is two processes, whose peaks are added.

Seconds are those from the first instruction to the end of the last round, over the number of
rounds; the first, in which both sides load what they need, counts with the others. Peaks are VmHWM. Goals: at least
5 times faster on small updates; at most a third of the memory at 512 MB.

JSON lines; the last one is a summary.
"""
